//! What a Paris training network agrees on.
//!
//! A *run* is fixed by its [`manifest`] and named by the hash of it. Its *parts* (an expert per cluster, and the router) are owned by [`claim`]s,
//! signed statements with a fencing term; what owners train they publish as [`checkpoint`] records. Every peer keeps all of these in a
//! [`register`] whose merge is a pure function of bytes, judges by its own clock alone whether an owner is alive ([`lease`]), and runs one
//! [`agent`]: a state machine that says what this node claims, trains, fetches and publishes.
//!
//! Pure: no socket, no file, no clock, no thread, no global randomness. Time and randomness are arguments, so the same code runs in a node and
//! in a simulation.

pub mod agent;
pub mod checkpoint;
pub mod claim;
pub mod codec;
pub mod hash;
pub mod heard;
pub mod identity;
pub mod invitation;
pub mod lease;
pub mod manifest;
pub mod message;
pub mod mixture;
pub mod part;
mod part_map;
pub mod register;
pub mod signed;
pub mod ticket;
