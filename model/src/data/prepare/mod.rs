//! From a source to shards by cluster: what an organiser does once, before a run exists.
//!
//! Four stages, a file each: `reading` decodes and describes pictures into the `spool` on disk; `clustering` finds out which of them belong together;
//! `writing` makes the shards; `report` shows what came out (with its `words` and its contact `sheet`). The spool lies in the folder `spool` of the
//! output until all is done. Whoever is killed goes on from it: every stage says there how far it came, and for which input.

use std::path::{Path, PathBuf};

use super::kmeans::KMeansError;
use super::prepared::{FILE_NAME, PrepareSettings, Prepared, VERSION};
use super::shard::ShardError;
use super::source::{Source, SourceError};
use crate::{
    features::ImageFeatures,
    image_codec::ImageCodec,
    whole_file::{remove_unfinished, write_whole},
};

mod clustering;
mod reading;
mod report;
mod sheet;
mod spool;
mod words;
mod writing;

pub use report::{ClusterReport, NearestPicture, REPORT_NAME, Report, SHEET_NAME};
pub use words::Word;

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
    /// A file can't be written; the error names it.
    #[error(transparent)]
    Write(std::io::Error),
    /// The contact sheet can't be drawn.
    #[error("can't draw the contact sheet: {0}")]
    Sheet(#[from] image::ImageError),
    /// Another process prepares into the same folder.
    #[error("{0} is in use: another `data prepare` works on it. Wait for it, or give another folder")]
    Busy(PathBuf),
    /// `prepared.json` or `report.json` is damaged or of another version.
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
    /// An earlier run was interrupted, and this one goes on from what it left.
    Resuming {
        /// Usable pictures that needn't be read again.
        pictures: usize,
    },
    /// Pictures are read and described.
    Reading {
        /// Usable pictures so far.
        pictures: usize,
        /// Entries left out so far.
        skipped: u64,
        /// How much of the source was read, of `extent`.
        position: u64,
        /// How much there is to read, in bytes or entries ([`Listing::extent`](super::source::Listing)).
        extent: u64,
    },
    /// All were read; clusters are being found.
    Clustering {
        /// Different pictures that have their cluster.
        pictures: usize,
        /// Different pictures in all.
        of: usize,
    },
    /// A shard was written.
    Writing {
        /// Samples in shards so far.
        samples: usize,
        /// Samples in all.
        of: usize,
    },
    /// The report is being written.
    Reporting,
}

/// Reads `source`, clusters its pictures by `features` and writes into `folder`, durably: each cluster's training and held-out shards, as `codec` keeps pictures, a report with a
/// contact sheet, and [`FILE_NAME`] last. Equal input and settings give equal hashes, whatever the number of threads and however often it was killed and
/// started again; run again, it leaves the same files. Pictures that are equal pixel for pixel stay in one cluster and on one side of the held-out split.
///
/// Decoding and features run on rayon's threads. Memory holds some hundreds of pictures a thread, two shards, the sample that clusters are found on
/// (at most 128 MiB), and about 50 + 4 x clusters bytes a picture; everything else waits on disk, in `folder`, and takes there what the pictures and their
/// features take.
pub fn prepare(
    source: &Source,
    folder: &Path,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
    codec: &dyn ImageCodec,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, PrepareError> {
    settings.check()?;
    let (size, reduction) = (settings.size, codec.reduction());
    if !(size as usize).is_multiple_of(reduction) {
        return Err(PrepareError::Settings(format!(
            "a size of {size} where the codec needs a multiple of {reduction}"
        )));
    }
    let listing = source.list()?;
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let mut spool = spool::Spool::open(folder, reading::key(&listing, settings, features)?, settings.size, features)?;
    remove_unfinished(folder).map_err(at(folder))?;
    if spool.state().samples > 0 {
        progress(Progress::Resuming { pictures: spool.state().samples as usize });
    }
    if !spool.state().finished {
        reading::read(source, &listing, &mut spool, settings, features, progress)?;
    }
    let skipped = spool.state().skipped.clone();
    if spool.state().samples == 0 {
        return Err(SourceError::Empty { path: source.path().to_owned(), skipped }.into());
    }
    let pictures = clustering::Pictures::gather(&spool, settings.seed)?;
    let clusters = clustering::cluster(&spool, &pictures, settings, progress)?;
    let shards = writing::write(&spool, &pictures, &clusters, folder, settings, codec, progress)?;
    progress(Progress::Reporting);
    let prepared = Prepared {
        version: VERSION,
        settings: settings.clone(),
        features: features.identity(),
        codec: codec.identity(),
        clusters: shards,
        skipped,
    };
    report::write(&spool, &pictures, &clusters, &prepared, folder)?;
    let json = serde_json::to_vec_pretty(&prepared).map_err(|error| at(folder)(error.into()))?;
    write_durably(&folder.join(FILE_NAME), &json)?;
    spool.remove()?;
    Ok(prepared)
}

/// Writes a file that is there whole or not at all.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), PrepareError> {
    write_whole(path, bytes).map_err(PrepareError::Write)
}

pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
    move |error| PrepareError::Io { path: path.to_owned(), error }
}
