//! What came out: sizes, words and nearest pictures of each cluster, as `report.json` and as one picture.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::clustering::Pictures;
use super::sheet;
use super::spool::Spool;
use super::words::{Word, Words};
use super::{PrepareError, at, write_durably};
use crate::data::kmeans::Assigned;
use crate::data::prepared::{Prepared, ShardInfo};
use crate::data::source::Skipped;
use crate::whole_file::read_whole;

/// The report's file, in the folder of the output.
pub const REPORT_NAME: &str = "report.json";
/// The contact sheet's file, in the folder of the output.
pub const SHEET_NAME: &str = "report.png";
/// Pictures of a cluster that are shown.
pub(super) const NEAREST: usize = 10;
/// Largest `report.json` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What preparing found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Usable samples.
    pub samples: usize,
    /// Different pictures among them.
    pub pictures: usize,
    /// Samples of the largest cluster over those of the smallest.
    pub balance: f64,
    /// The clusters, by number.
    pub clusters: Vec<ClusterReport>,
    /// What couldn't be used.
    pub skipped: Skipped,
}

/// What one cluster holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Its samples.
    pub samples: usize,
    /// Those to train on.
    pub train: usize,
    /// Those held out.
    pub held_out: usize,
    /// Words that are commoner in its captions than in all, the most telling first.
    pub words: Vec<Word>,
    /// The pictures nearest to its centre, the nearest first.
    pub nearest: Vec<NearestPicture>,
}

/// A picture near the centre of its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearestPicture {
    /// Where it stands in the source.
    pub name: String,
    /// Its caption.
    pub caption: String,
    /// Squared distance from the centre, of features of length one.
    pub distance: f32,
}

impl Report {
    /// Reads the report that [`prepare`](super::prepare()) left in `folder`.
    pub fn read(folder: &Path) -> Result<Self, PrepareError> {
        let path = folder.join(REPORT_NAME);
        let bytes = read_whole(&path, FILE_BYTES_MAX).map_err(at(&path))?;
        serde_json::from_slice(&bytes).map_err(|error| PrepareError::Record { path, reason: error.to_string() })
    }
}

/// Writes report and contact sheet into `folder`.
pub(super) fn write(
    spool: &Spool,
    pictures: &Pictures,
    clusters: &Assigned,
    prepared: &Prepared,
    folder: &Path,
) -> Result<(), PrepareError> {
    let nearest = nearest(clusters, prepared.clusters.len());
    let shown = spool.samples()?;
    let words = words(spool, pictures, clusters, prepared.clusters.len())?;
    let mut reports = Vec::with_capacity(words.len());
    for ((shards, words), nearest) in prepared.clusters.iter().zip(words).zip(&nearest) {
        let samples = |shards: &[ShardInfo]| shards.iter().map(|shard| shard.samples).sum();
        let (train, held_out): (usize, usize) = (samples(&shards.train), samples(&shards.held_out));
        let near = |picture: &usize| {
            let (name, caption) = shown.text(first(pictures, *picture))?;
            Ok(NearestPicture { name, caption, distance: clusters.distances[*picture] })
        };
        let nearest = nearest.iter().map(near).collect::<Result<_, PrepareError>>()?;
        reports.push(ClusterReport { samples: train + held_out, train, held_out, words, nearest });
    }
    let sizes = || reports.iter().map(|cluster| cluster.samples as f64);
    let balance = sizes().fold(0.0, f64::max) / sizes().fold(f64::INFINITY, f64::min);
    let skipped = prepared.skipped.clone();
    let samples = spool.state().samples as usize;
    let report = Report { samples, pictures: pictures.len(), balance, clusters: reports, skipped };
    let side = prepared.settings.size;
    let sheet = sheet::draw(&report, side, |cluster, place, pixels| {
        shown.pixels(first(pictures, nearest[cluster][place]), pixels)
    })?;
    write_durably(&folder.join(SHEET_NAME), &sheet)?;
    let json = serde_json::to_vec_pretty(&report).map_err(|error| at(folder)(error.into()))?;
    write_durably(&folder.join(REPORT_NAME), &json)
}

fn first(pictures: &Pictures, picture: usize) -> u32 {
    pictures.samples(picture).next().unwrap_or_default()
}

/// The pictures of each cluster that lie nearest to its centre.
fn nearest(clusters: &Assigned, count: usize) -> Vec<Vec<usize>> {
    let mut nearest: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (picture, label) in clusters.labels.iter().enumerate() {
        let kept = &mut nearest[*label as usize];
        let distance = clusters.distances[picture];
        let place = kept.partition_point(|other| clusters.distances[*other] <= distance);
        if place < NEAREST {
            kept.truncate(NEAREST - 1);
            kept.insert(place, picture);
        }
    }
    nearest
}

fn words(
    spool: &Spool,
    pictures: &Pictures,
    clusters: &Assigned,
    count: usize,
) -> Result<Vec<Vec<Word>>, PrepareError> {
    let mut labels = vec![0; spool.state().samples as usize];
    for (picture, label) in clusters.labels.iter().enumerate() {
        pictures.samples(picture).for_each(|sample| labels[sample as usize] = *label);
    }
    let mut words = Words::new(count);
    spool.captions(|sample, caption| words.add(labels[sample] as usize, caption))?;
    Ok(words.of_clusters())
}
