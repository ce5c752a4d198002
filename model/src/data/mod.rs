//! From a person's pictures to what training reads.
//!
//! ```text
//! Source (folder, webdataset, parquet, idx)  ->  features  ->  balanced k-means  ->  shards by cluster  ->  Dataset
//! ```
//!
//! The first four steps run once, where an organiser prepares a run ([`prepare()`]); the shards they leave are named by
//! their BLAKE3 hash and travel the network; [`Dataset`] reads them, sample by sample, on every machine that trains.

pub mod dataset;
pub mod kmeans;
pub mod prepare;
pub mod prepared;
pub mod shard;
pub mod source;
pub mod splits;

mod caption_cache;
mod picture;

pub use caption_cache::CAPTION_CACHE_BYTES_MAX;
pub use dataset::{Dataset, DatasetError};
pub use prepare::{PrepareError, Progress, Report, prepare};
pub use prepared::{ClusterShards, PrepareSettings, Prepared, ShardInfo};
pub use shard::{Encoding, Shard, ShardError, ShardFile, ShardFileError, shard_hash};
pub use source::{Entry, Reason, Sample, Skipped, Source, SourceError};
pub use splits::{Split, Splits, SplitsError};
