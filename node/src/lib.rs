//! (skeleton)

pub mod network;
