//! A machine of a Paris training network.
//!
//! `network` is the libp2p swarm (discovery, gossip, register exchange), `blobs` the iroh store and endpoint (checkpoints and shards), `store` what is
//! kept on disk, [`history`] how training went here, [`memory`] what training may take of the machine's, [`encoders`] what encodes captions and pictures,
//! [`runtime`] drives the protocol's agent and the trainers, [`plot`] draws numbers, [`api`] lets commands talk to the running node, [`cli`] is the command
//! line.

mod admission;
pub mod api;
pub mod blobs;
pub mod cli;
pub mod encoders;
pub mod hex;
pub mod history;
pub mod hub;
pub mod memory;
pub mod models;
pub mod network;
pub mod plot;
pub mod runtime;
pub mod sampling;
pub mod status;
pub mod store;
