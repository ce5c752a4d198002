//! `paris-node data`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use paris_model::data::{PrepareSettings, Progress, ShardInfo, Source, prepare};

use super::encoders::{CodecChoice, FeaturesChoice};
use crate::store::DataDir;

/// Prepare pictures for a run.
#[derive(Subcommand)]
pub(super) enum Data {
    Prepare(Prepare),
}

/// Cluster pictures by content and write them as content-addressed shards, a share of each cluster held out.
///
/// SOURCE is a folder of pictures with metadata.jsonl (file_name and text, caption or prompt) or with a .txt beside each picture, a webdataset tar
/// (.tar, .tar.gz; pictures with .txt or .json), or a folder of such tars. The same pictures and settings give the same shards. Broken pictures and
/// missing captions are counted and skipped.
///
/// Example: paris-node data prepare pictures/ --out prepared --clusters 4
#[derive(Args)]
pub(super) struct Prepare {
    /// Pictures with captions.
    source: PathBuf,

    /// Where the shards and prepared.json go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Clusters, and so experts.
    #[arg(long, default_value_t = 8)]
    clusters: usize,

    /// Width and height of the training pictures; sources are cropped to a square and scaled.
    #[arg(long, default_value_t = 32)]
    size: u32,

    /// What pictures are clustered by.
    #[arg(long, value_enum, default_value_t = FeaturesChoice::ColourAndEdges)]
    features: FeaturesChoice,

    /// What experts learn of a picture.
    #[arg(long, value_enum, default_value_t = CodecChoice::Pixels)]
    codec: CodecChoice,

    /// Share of each cluster that is never trained on.
    #[arg(long, default_value_t = 0.1)]
    held_out: f64,

    /// Take only the first pictures.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Seed of the clustering.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Data {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let Data::Prepare(command) = self;
        let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("{spinner} {pos} pictures read")?);
        let settings = PrepareSettings {
            clusters: command.clusters,
            size: command.size,
            held_out: command.held_out,
            seed: command.seed,
            limit: command.limit,
            ..PrepareSettings::default()
        };
        let (features, codec) =
            (command.features.open(&dir.encoders_path())?, command.codec.open(&dir.encoders_path())?);
        let source = Source::open(&command.source)?;
        let prepared =
            prepare(&source, &command.out, &settings, &*features, &*codec, &mut |progress| match progress {
                Progress::Reading { pictures, .. } => bar.set_position(pictures as u64),
                Progress::Clustering { .. } | Progress::Writing { .. } => bar.tick(),
            })?;
        bar.finish_and_clear();
        for (number, cluster) in prepared.clusters.iter().enumerate() {
            let count = |shards: &[ShardInfo]| shards.iter().map(|shard| shard.samples).sum::<usize>();
            let (train, held_out) = (count(&cluster.train), count(&cluster.held_out));
            println!("cluster {number}: {train} pictures to train on, {held_out} held out");
        }
        if prepared.skipped.count > 0 {
            eprintln!("{}", prepared.skipped);
        }
        println!("next: paris-node manifest new --data {}", command.out.display());
        Ok(())
    }
}
