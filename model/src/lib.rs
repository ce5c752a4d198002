//! What a Paris run learns: data, clusters, experts, router, training, sampling and checkpoints. No network.

pub mod batch;
