//! What a Paris training network agrees on.
//!
//! Pure: no socket, no file, no clock, no thread, no global randomness. Time and randomness are arguments, so the same code runs in a node and in a simulation.

pub mod codec;
pub mod identity;
