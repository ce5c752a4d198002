//! A machine of a Paris training network.
//!
//! `network` is the libp2p swarm (discovery, gossip, register exchange), `blobs` the iroh store and endpoint (checkpoints and shards), `store` what is
//! kept on disk, [`history`] how training went here, [`memory`] what training may take of the machine's, [`runtime`] drives the protocol's agent and the
//! trainers, [`api`] lets commands talk to the running node, [`cli`] is the command line.

mod admission;
pub mod api;
pub mod blobs;
pub mod cli;
pub mod hex;
pub mod history;
pub mod memory;
pub mod network;
pub mod runtime;
pub mod sampling;
pub mod status;
pub mod store;
