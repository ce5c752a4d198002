//! (skeleton)

pub mod blobs;
pub mod network;
