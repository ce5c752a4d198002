//! From a source to shards by cluster: what an organiser does once, before a run exists.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::kmeans::{KMeans, KMeansError};
use super::prepared::{ClusterShards, FILE_NAME, PrepareSettings, Prepared, ShardInfo, VERSION};
use super::shard::{Shard, ShardError, shard_hash};
use super::source::{Skipped, Source, SourceError};
use crate::{features::ImageFeatures, image_codec::ImageCodec};

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
    /// The pictures can't be encoded.
    #[error("can't encode the pictures: {0}")]
    Codec(candle_core::Error),
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

/// Reads `source`, clusters its pictures by `features` and writes each cluster's training and held-out shards into
/// `folder`, durably, as `codec` keeps them, and [`FILE_NAME`] last. Equal input and settings give equal hashes; run again, it leaves the same
/// files. Pictures that are equal pixel for pixel stay in one cluster and on one side of the held-out split.
///
/// Memory holds one row of features and one caption a picture; pixels wait in a temporary file in `folder`.
pub fn prepare(
    source: &Source,
    folder: &Path,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
    codec: &dyn ImageCodec,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, PrepareError> {
    settings.check()?;
    if !(settings.size as usize).is_multiple_of(codec.reduction()) {
        let (size, reduction) = (settings.size, codec.reduction());
        return Err(PrepareError::Settings(format!(
            "a size of {size} where the codec needs a multiple of {reduction}"
        )));
    }
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let mut gathered = Gathered::new(folder, settings.size, features)?;
    let skipped = gathered.read(source, settings.limit, progress)?;
    let mut clusters = gathered.cluster(settings, progress)?;
    let mut writer = ShardWriter { folder, settings, codec, gathered: &mut gathered, shards: 0, progress };
    let mut written = Vec::with_capacity(settings.clusters);
    for (index, pictures) in clusters.iter_mut().enumerate() {
        if pictures.len() < 2 {
            return Err(PrepareError::SmallCluster { cluster: index, pictures: pictures.len() });
        }
        pictures.sort_by_cached_key(|picture| order_key(settings.seed, &picture.hash));
        let (held_out, train) = pictures.split_at(held_out_pictures(pictures, settings.held_out));
        written.push(ClusterShards { train: writer.write(train)?, held_out: writer.write(held_out)? });
    }
    let prepared = Prepared {
        version: VERSION,
        settings: settings.clone(),
        features: features.identity(),
        codec: codec.identity(),
        clusters: written,
        skipped,
    };
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
    codec: &'a dyn ImageCodec,
    gathered: &'a mut Gathered<'b>,
    shards: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl ShardWriter<'_, '_> {
    fn write(&mut self, pictures: &[Picture]) -> Result<Vec<ShardInfo>, PrepareError> {
        let samples: Vec<usize> = pictures.iter().flat_map(|picture| picture.samples.iter().copied()).collect();
        let mut written = Vec::new();
        for samples in samples.chunks(self.settings.samples_per_shard) {
            let bytes = self.gathered.shard(samples)?.encode(self.codec).map_err(PrepareError::Codec)?.write()?;
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

pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
    move |error| PrepareError::Io { path: path.to_owned(), error }
}
