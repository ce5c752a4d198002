//! From a source to shards by cluster: what an organiser does once, before a run exists.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::kmeans::{KMeans, KMeansError};
use super::shard::{SAMPLES_MAX, SIDE_MAX, Shard, ShardError, shard_hash};
use super::source::{Skipped, Source, SourceError};
use crate::features::ImageFeatures;

/// Version of `prepared.json` that this program writes and reads.
pub const VERSION: u32 = 1;
/// The file that says which shards belong together.
pub const FILE_NAME: &str = "prepared.json";
/// Largest `prepared.json` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Pictures whose features are computed at once.
const PICTURES_A_CALL: usize = 64;

/// Why pictures can't be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A setting is out of range.
    #[error("can't prepare with these settings: {0}")]
    Settings(String),
    /// The source can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The pictures can't be clustered.
    #[error(transparent)]
    Clusters(#[from] KMeansError),
    /// A cluster can't be split into training and held-out pictures.
    #[error(
        "cluster {cluster} got {pictures} different pictures, and 2 are the least: give more pictures or ask for fewer clusters"
    )]
    SmallCluster {
        /// The cluster.
        cluster: usize,
        /// Different pictures in it.
        pictures: usize,
    },
    /// The features can't be computed.
    #[error("can't compute features: {0}")]
    Features(#[from] candle_core::Error),
    /// A shard can't be made.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The folder can't be read or written.
    #[error("can't use {path}: {error}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What went wrong.
        error: std::io::Error,
    },
    /// `prepared.json` is damaged or of another version.
    #[error("{path} can't be used: {reason}. Prepare the data again")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A shard's bytes aren't those that its name promises.
    #[error("{0} is damaged: its bytes don't have the hash of its name. Prepare the data again")]
    Damaged(PathBuf),
}

/// What decides the shards, beside the source and the features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareSettings {
    /// Number of clusters, and so of experts.
    pub clusters: usize,
    /// Side of every picture, in pixels.
    pub size: u32,
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
        Self { clusters: 4, size: 32, held_out: 0.1, samples_per_shard: 4096, seed: 0, limit: None }
    }
}

impl PrepareSettings {
    fn check(&self) -> Result<(), PrepareError> {
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
        Ok(())
    }
}

/// How far preparing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Pictures are read and described.
    Reading {
        /// Usable pictures so far.
        pictures: usize,
        /// Entries left out so far.
        skipped: u64,
    },
    /// All were read; clusters are being found.
    Clustering {
        /// Different pictures to cluster.
        pictures: usize,
    },
    /// A shard was written.
    Writing {
        /// Shards so far.
        shards: usize,
    },
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

    /// Reads the shard's bytes and checks them against the hash.
    pub fn load(&self, folder: &Path) -> Result<Vec<u8>, PrepareError> {
        let path = self.path(folder);
        let bytes = read_bounded(&path, self.bytes).map_err(at(&path))?;
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
    /// Shards by cluster.
    pub clusters: Vec<ClusterShards>,
    /// What the source held that couldn't be used.
    pub skipped: Skipped,
}

impl Prepared {
    /// Reads the record that [`prepare`] left in `folder`.
    pub fn read(folder: &Path) -> Result<Self, PrepareError> {
        let path = folder.join(FILE_NAME);
        let bytes = read_bounded(&path, FILE_BYTES_MAX).map_err(at(&path))?;
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

/// Reads `source`, clusters its pictures by `features` and writes each cluster's training and held-out shards into
/// `folder`, durably, and [`FILE_NAME`] last. Equal input and settings give equal hashes; run again, it leaves the same
/// files. Pictures that are equal pixel for pixel stay in one cluster and on one side of the held-out split.
///
/// Memory holds one row of features and one caption a picture; pixels wait in a temporary file in `folder`.
pub fn prepare(
    source: &Source,
    folder: &Path,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, PrepareError> {
    settings.check()?;
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let mut gathered = Gathered::new(folder, settings.size, features)?;
    let skipped = gathered.read(source, settings.limit, progress)?;
    let mut clusters = gathered.cluster(settings, progress)?;
    let mut writer = ShardWriter { folder, settings, gathered: &mut gathered, shards: 0, progress };
    let mut written = Vec::with_capacity(settings.clusters);
    for (index, pictures) in clusters.iter_mut().enumerate() {
        if pictures.len() < 2 {
            return Err(PrepareError::SmallCluster { cluster: index, pictures: pictures.len() });
        }
        pictures.sort_by_cached_key(|picture| order_key(settings.seed, &picture.hash));
        let (held_out, train) = pictures.split_at(held_out_pictures(pictures, settings.held_out));
        written.push(ClusterShards { train: writer.write(train)?, held_out: writer.write(held_out)? });
    }
    let prepared = Prepared { version: VERSION, settings: settings.clone(), clusters: written, skipped };
    let json = serde_json::to_vec_pretty(&prepared).map_err(|error| at(folder)(error.into()))?;
    write_durably(&folder.join(FILE_NAME), &json)?;
    Ok(prepared)
}

/// A picture with the samples (positions in the spool) that show exactly it.
struct Picture {
    hash: blake3::Hash,
    samples: Vec<usize>,
}

/// Everything that was read: features and captions in memory, pixels in a file.
struct Gathered<'a> {
    features: &'a dyn ImageFeatures,
    size: usize,
    folder: PathBuf,
    spool: BufWriter<File>,
    captions: Vec<String>,
    pictures: Vec<Picture>,
    known: HashMap<blake3::Hash, usize>,
    /// Features of `pictures`, row by row; the last ones may still wait in `fresh`.
    rows: Vec<f32>,
    fresh: Vec<f32>,
}

impl<'a> Gathered<'a> {
    fn new(folder: &Path, size: u32, features: &'a dyn ImageFeatures) -> Result<Self, PrepareError> {
        Ok(Self {
            features,
            size: size as usize,
            folder: folder.to_owned(),
            spool: BufWriter::new(tempfile::tempfile_in(folder).map_err(at(folder))?),
            captions: Vec::new(),
            pictures: Vec::new(),
            known: HashMap::new(),
            rows: Vec::new(),
            fresh: Vec::new(),
        })
    }

    fn read(
        &mut self,
        source: &Source,
        limit: Option<usize>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Skipped, PrepareError> {
        let mut failure = None;
        let skipped = source.read(self.size as u32, |sample, skipped| {
            if let Err(error) = self.add(&sample.picture, sample.caption) {
                failure = Some(error);
                return ControlFlow::Break(());
            }
            progress(Progress::Reading { pictures: self.captions.len(), skipped: skipped.count });
            if limit.is_some_and(|limit| self.captions.len() >= limit) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        failure.map_or(Ok(()), Err)?;
        self.describe()?;
        self.spool.flush().map_err(at(&self.folder))?;
        Ok(skipped)
    }

    fn add(&mut self, picture: &RgbImage, caption: String) -> Result<(), PrepareError> {
        self.spool.write_all(picture).map_err(at(&self.folder))?;
        let sample = self.captions.len();
        self.captions.push(caption);
        let hash = blake3::hash(picture);
        if let Some(known) = self.known.get(&hash) {
            self.pictures[*known].samples.push(sample);
            return Ok(());
        }
        self.known.insert(hash, self.pictures.len());
        self.pictures.push(Picture { hash, samples: vec![sample] });
        for channel in 0..3 {
            self.fresh.extend(picture.pixels().map(|pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0));
        }
        if self.fresh.len() >= PICTURES_A_CALL * 3 * self.size * self.size { self.describe() } else { Ok(()) }
    }

    /// Computes the features of the pictures that wait.
    fn describe(&mut self) -> Result<(), PrepareError> {
        let values = std::mem::take(&mut self.fresh);
        let count = values.len() / (3 * self.size * self.size);
        if count > 0 {
            let pictures = Tensor::from_vec(values, (count, 3, self.size, self.size), &Device::Cpu)?;
            let rows = self.features.extract(&pictures)?;
            if rows.dims() != [count, self.features.width()] {
                let expected = [count, self.features.width()];
                Err(candle_core::Error::Msg(format!("features of shape {:?} instead of {expected:?}", rows.dims())))?;
            }
            self.rows.extend(rows.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }

    /// Hands out the pictures by cluster.
    fn cluster(
        &mut self,
        settings: &PrepareSettings,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<Picture>>, PrepareError> {
        progress(Progress::Clustering { pictures: self.pictures.len() });
        let found = KMeans::new(settings.clusters, settings.seed).run(&self.rows, self.features.width())?;
        let mut clusters: Vec<Vec<Picture>> = (0..settings.clusters).map(|_| Vec::new()).collect();
        for (picture, label) in self.pictures.drain(..).zip(found.labels) {
            clusters[label as usize].push(picture);
        }
        Ok(clusters)
    }

    /// Takes samples out of the spool into a shard.
    fn shard(&mut self, samples: &[usize]) -> Result<Shard, PrepareError> {
        let bytes = self.size * self.size * 3;
        let mut pixels = vec![0; samples.len() * bytes];
        let spool = self.spool.get_mut();
        for (picture, sample) in pixels.chunks_exact_mut(bytes).zip(samples) {
            spool.seek(SeekFrom::Start((sample * bytes) as u64)).map_err(at(&self.folder))?;
            spool.read_exact(picture).map_err(at(&self.folder))?;
        }
        let captions = samples.iter().map(|sample| self.captions[*sample].clone()).collect();
        Ok(Shard::new(self.size, self.size, pixels, captions)?)
    }
}

/// Writes pictures as shards into the folder.
struct ShardWriter<'a, 'b> {
    folder: &'a Path,
    settings: &'a PrepareSettings,
    gathered: &'a mut Gathered<'b>,
    shards: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl ShardWriter<'_, '_> {
    fn write(&mut self, pictures: &[Picture]) -> Result<Vec<ShardInfo>, PrepareError> {
        let samples: Vec<usize> = pictures.iter().flat_map(|picture| picture.samples.iter().copied()).collect();
        let mut written = Vec::new();
        for samples in samples.chunks(self.settings.samples_per_shard) {
            let bytes = self.gathered.shard(samples)?.write()?;
            let hash = shard_hash(&bytes).to_hex().to_string();
            let info = ShardInfo { hash, bytes: bytes.len() as u64, samples: samples.len() };
            if info.load(self.folder).is_err() {
                write_durably(&info.path(self.folder), &bytes)?;
            }
            written.push(info);
            self.shards += 1;
            (self.progress)(Progress::Writing { shards: self.shards });
        }
        Ok(written)
    }
}

/// How many of a cluster's pictures, in their order, are held out: up to the fraction of its samples, and at least one on
/// either side.
fn held_out_pictures(pictures: &[Picture], fraction: f64) -> usize {
    if fraction == 0.0 {
        return 0;
    }
    let samples: usize = pictures.iter().map(|picture| picture.samples.len()).sum();
    let wanted = (samples as f64 * fraction).round() as usize;
    let mut held = 0;
    let fits = pictures.iter().take_while(|picture| {
        held += picture.samples.len();
        held <= wanted
    });
    fits.count().clamp(1, pictures.len() - 1)
}

/// What pictures are sorted by: random to the eye, and the same for a picture whatever stands around it.
fn order_key(seed: u64, picture: &blake3::Hash) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("paris-node order of pictures 1");
    hasher.update(&seed.to_le_bytes()).update(picture.as_bytes());
    *hasher.finalize().as_bytes()
}

/// Writes beside, syncs, renames, and syncs the folder, so that after a crash the file is whole or absent.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), PrepareError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // Only Unix can sync a folder.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    write().map_err(at(path))
}

fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
    move |error| PrepareError::Io { path: path.to_owned(), error }
}
