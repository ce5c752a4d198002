//! What a Paris run learns: data, clusters, experts, router, training, sampling and checkpoints. No network.

pub mod batch;
pub mod data;
pub mod distance;
pub mod features;
pub mod grid;
pub mod image_codec;
pub mod text;
