//! What preparing was asked for and what it left: the record `prepared.json` and the shards it names.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::prepare::{PrepareError, at};
use super::shard::{SAMPLES_MAX, SIDE_MAX, shard_hash};
use super::source::Skipped;
use crate::pretrained::Identity;
use crate::whole_file::read_whole;

/// Version of `prepared.json` that this program writes and reads.
pub const VERSION: u32 = 2;
/// The file that says which shards belong together.
pub const FILE_NAME: &str = "prepared.json";
/// Largest `prepared.json` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most pixel bytes in one shard: it is read whole into memory, and sent whole again when a transfer fails.
const SHARD_BYTES_MAX: u64 = 1 << 30;

/// What decides the shards, beside the source and the features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareSettings {
    /// Number of clusters, and so of experts.
    pub clusters: usize,
    /// Side of every picture, in pixels.
    pub size: u32,
    /// Pictures whose shorter side has fewer pixels are left out.
    pub min_side: u32,
    /// Fraction of each cluster that is kept for validation, below 1; at least one picture, unless it is 0.
    pub held_out: f64,
    /// Most samples in one shard.
    pub samples_per_shard: usize,
    /// What clustering, the held-out choice and the order of samples follow from.
    pub seed: u64,
    /// Stop after this many usable pictures.
    pub limit: Option<usize>,
}

impl Default for PrepareSettings {
    fn default() -> Self {
        Self { clusters: 4, size: 32, min_side: 8, held_out: 0.1, samples_per_shard: 1024, seed: 0, limit: None }
    }
}

impl PrepareSettings {
    pub(super) fn check(&self) -> Result<(), PrepareError> {
        let refuse = |message: String| Err(PrepareError::Settings(message));
        if self.clusters == 0 {
            return refuse("at least one cluster is needed".into());
        }
        if !(1..=SIDE_MAX as u32).contains(&self.size) {
            return refuse(format!("a size of {} where 1 to {SIDE_MAX} is possible", self.size));
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return refuse(format!("a held-out fraction of {} where 0 to less than 1 is possible", self.held_out));
        }
        if !(1..=SAMPLES_MAX).contains(&self.samples_per_shard) {
            return refuse(format!("{} samples a shard where 1 to {SAMPLES_MAX} are possible", self.samples_per_shard));
        }
        let shard_bytes = self.samples_per_shard as u64 * u64::from(self.size).pow(2) * 3;
        if shard_bytes > SHARD_BYTES_MAX {
            return refuse(format!(
                "{} samples of {} pixels a side make a shard of {shard_bytes} bytes, over the {SHARD_BYTES_MAX} possible: \
                 put fewer samples in a shard",
                self.samples_per_shard, self.size
            ));
        }
        if self.limit == Some(0) {
            return refuse("a limit of 0 leaves no picture".into());
        }
        Ok(())
    }
}

/// One shard as a run manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// BLAKE3 hash of the file, 64 lower-case hexadecimal digits.
    pub hash: String,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// Samples in it.
    pub samples: usize,
}

impl ShardInfo {
    /// Where the shard lies in the folder it was prepared into.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.safetensors", self.hash))
    }

    /// The same, once the file's bytes are checked against the hash.
    pub fn checked_path(&self, folder: &Path) -> Result<PathBuf, PrepareError> {
        let path = self.path(folder);
        let mut hasher = blake3::Hasher::new();
        File::open(&path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(at(&path))?;
        if hasher.finalize().to_hex().as_str() != self.hash {
            return Err(PrepareError::Damaged(path));
        }
        Ok(path)
    }

    /// Reads the shard's bytes and checks them against the hash.
    pub fn load(&self, folder: &Path) -> Result<Vec<u8>, PrepareError> {
        let path = self.path(folder);
        let bytes = read_whole(&path, self.bytes).map_err(at(&path))?;
        if shard_hash(&bytes).to_hex().as_str() != self.hash {
            return Err(PrepareError::Damaged(path));
        }
        Ok(bytes)
    }
}

/// The shards of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterShards {
    /// To train on.
    pub train: Vec<ShardInfo>,
    /// To validate on; no picture of it is in any training shard.
    pub held_out: Vec<ShardInfo>,
}

impl ClusterShards {
    /// Samples in all its shards.
    pub fn samples(&self) -> usize {
        self.train.iter().chain(&self.held_out).map(|shard| shard.samples).sum()
    }
}

/// What was prepared: the contents of `prepared.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// What it was prepared with.
    pub settings: PrepareSettings,
    /// What it was clustered by.
    pub features: Identity,
    /// How the shards keep pictures; who samples needs the same to see them.
    pub codec: Identity,
    /// Shards by cluster.
    pub clusters: Vec<ClusterShards>,
    /// What the source held that couldn't be used.
    pub skipped: Skipped,
}

impl Prepared {
    /// Reads the record that [`prepare`](super::prepare()) left in `folder`.
    pub fn read(folder: &Path) -> Result<Self, PrepareError> {
        let path = folder.join(FILE_NAME);
        let bytes = read_whole(&path, FILE_BYTES_MAX).map_err(at(&path))?;
        let refuse = |reason: String| PrepareError::Record { path: path.clone(), reason };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        // The version comes first: another version may have other fields.
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(VERSION)) {
            return Err(refuse(format!("its version is {version:?} and this program reads {VERSION}")));
        }
        let prepared: Self = serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
        prepared.settings.check()?;
        let shards = prepared.clusters.iter().flat_map(|cluster| cluster.train.iter().chain(&cluster.held_out));
        for shard in shards {
            // A hash becomes a file name, so nothing else may stand there.
            if shard.hash.len() != 64 || !shard.hash.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(refuse(format!("{:?} is no hash", shard.hash)));
            }
        }
        if prepared.clusters.len() != prepared.settings.clusters {
            return Err(refuse("it doesn't list as many clusters as its settings ask for".into()));
        }
        Ok(prepared)
    }
}
