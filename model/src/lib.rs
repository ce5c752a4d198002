//! What a Paris run learns. No network.
//!
//! Pictures with captions become content-addressed shards ([`data`]); an [`expert`] is trained on the shards of one cluster and the [`router`] on those of
//! all ([`trainer`]), each step on a [`draw`] that may be made ahead of it, and no step is lost ([`durable`]); the [`sampler`] draws with the mixture of
//! them, and [`evaluation`] says how good it is. All randomness follows from keys and counters ([`random`]).

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod cost;
#[cfg(feature = "cuda")]
mod cuda;
pub mod data;
pub mod device;
pub mod draw;
pub mod durable;
mod embeddings;
pub mod evaluation;
pub mod expert;
pub mod features;
pub mod flow;
pub mod footprint;
mod fused;
mod gradients;
mod graph;
pub mod grid;
mod host;
pub mod hub;
pub mod image_codec;
pub mod objective;
mod operations;
pub mod optimizer;
pub mod parameters;
pub mod parity;
mod part_model;
pub mod peak;
pub mod prefetch;
pub mod preset;
pub mod pretrained;
pub mod random;
mod recomputation;
pub mod report;
pub mod router;
pub mod sampler;
pub mod shuffle;
pub mod snapshot;
pub mod state;
mod sublayers;
pub mod tensor_file;
pub mod text;
pub mod trainer;
mod trunk;
mod vector;
pub mod whole_file;

pub use candle_core::{Device, Tensor};
