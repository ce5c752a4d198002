//! `paris-node data`

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use paris_model::data::{PrepareSettings, Progress, Report, Source, prepare, prepare::SHEET_NAME};

use super::encoders::{CodecChoice, FeaturesChoice};
use crate::store::DataDir;

/// Largest file of class names, in bytes.
const CAPTIONS_BYTES_MAX: u64 = 16 << 20;
/// How often progress is written where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Prepare pictures for a run.
#[derive(Subcommand)]
pub(super) enum Data {
    Prepare(Prepare),
}

/// Cluster pictures by content and write them as content-addressed shards, a share of each cluster held out.
///
/// SOURCE is a folder of pictures with metadata.jsonl or metadata.csv (file_name and text, caption or prompt) or with a .txt beside each picture; a webdataset
/// tar (.tar, .tar.gz; pictures with .txt or .json); a .parquet with encoded pictures and captions; an idx file of images with its labels beside it; or a
/// folder of tars, parquets or idx files. The same pictures and settings give the same shards. Broken or tiny pictures and missing captions are skipped and
/// listed in report.json; report.png shows the clusters. Interrupted, it goes on where it was when it is started again.
///
/// Example: paris-node data prepare pictures/ --out prepared --clusters 4
#[derive(Args)]
pub(super) struct Prepare {
    /// Pictures with captions.
    source: PathBuf,

    /// Where the shards, prepared.json and the report go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Clusters, and so experts.
    #[arg(long, default_value_t = 8)]
    clusters: usize,

    /// Width and height of the training pictures; sources are cropped to a square and scaled.
    #[arg(long, default_value_t = 32)]
    size: u32,

    /// Leave out pictures whose shorter side has fewer pixels.
    #[arg(long, default_value_t = 8, value_name = "PIXELS")]
    min_side: u32,

    /// Names of the classes, a line each, as captions of pictures that only have a class number (idx, and parquet with labels).
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,

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
        let settings = PrepareSettings {
            clusters: command.clusters,
            size: command.size,
            min_side: command.min_side,
            held_out: command.held_out,
            seed: command.seed,
            limit: command.limit,
            ..PrepareSettings::default()
        };
        let (features, codec) =
            (command.features.open(&dir.encoders_path())?, command.codec.open(&dir.encoders_path())?);
        let mut source = Source::open(&command.source)?;
        if let Some(file) = &command.captions {
            source = source.with_class_names(class_names(file)?);
        }
        let mut shown = Shown::new(command.limit)?;
        let prepared =
            prepare(&source, &command.out, &settings, &*features, &*codec, &mut |progress| shown.show(progress))?;
        shown.finish();
        let report = Report::read(&command.out)?;
        for (number, cluster) in report.clusters.iter().enumerate() {
            let words: Vec<_> = cluster.words.iter().take(6).map(|word| word.word.as_str()).collect();
            let (train, held_out) = (HumanCount(cluster.train as u64), HumanCount(cluster.held_out as u64));
            println!("cluster {number}: {train} pictures to train on, {held_out} held out: {}", words.join(", "));
        }
        println!("largest cluster / smallest: {:.2}", report.balance);
        if prepared.skipped.count() > 0 {
            eprintln!("{}", prepared.skipped);
        }
        println!("look at {}: words and pictures of each cluster", command.out.join(SHEET_NAME).display());
        println!("next: paris-node manifest new --data {}", command.out.display());
        Ok(())
    }
}

fn class_names(file: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = file.metadata().with_context(|| format!("can't read {}", file.display()))?.len();
    anyhow::ensure!(bytes <= CAPTIONS_BYTES_MAX, "{} is too large for a list of class names", file.display());
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// Progress, a bar for each stage on a terminal, and else a line now and then.
struct Shown {
    limit: Option<usize>,
    bar: ProgressBar,
    stage: &'static str,
    began: Instant,
    said: Instant,
    resumed: usize,
}

impl Shown {
    fn new(limit: Option<usize>) -> anyhow::Result<Self> {
        let style =
            ProgressStyle::with_template("{prefix:>10} [{bar:30}] {percent:>3} %  {msg}")?.progress_chars("=> ");
        let (bar, now) = (ProgressBar::new(1000).with_style(style), Instant::now());
        Ok(Self { limit, bar, stage: "", began: now, said: now, resumed: 0 })
    }

    fn show(&mut self, progress: Progress) {
        let limit = self.limit.map_or(f64::INFINITY, |limit| limit as f64);
        let share = |done: f64, of: f64| if of > 0.0 { (done / of).min(1.0) } else { 1.0 };
        match progress {
            Progress::Resuming { pictures } => {
                self.resumed = pictures;
                self.bar.suspend(|| {
                    eprintln!("going on from {} pictures that were read before", HumanCount(pictures as u64))
                });
            }
            Progress::Reading { pictures, skipped, position, extent } => {
                let done = share(position as f64, extent as f64).max(share(pictures as f64, limit));
                let skipped = if skipped > 0 { format!(", {} skipped", HumanCount(skipped)) } else { String::new() };
                self.stage("reading", done, pictures, &skipped);
            }
            Progress::Clustering { pictures, of } => {
                self.stage("clustering", share(pictures as f64, of as f64), pictures, "")
            }
            Progress::Writing { samples, of } => self.stage("writing", share(samples as f64, of as f64), samples, ""),
            Progress::Reporting => self.stage("reporting", 0.0, 0, ""),
        }
    }

    fn stage(&mut self, stage: &'static str, done: f64, pictures: usize, note: &str) {
        let now = Instant::now();
        if self.stage != stage {
            (self.stage, self.began) = (stage, now);
            if stage != "reading" {
                self.resumed = 0;
            }
        }
        let seconds = (now - self.began).as_secs_f64();
        let rate = pictures.saturating_sub(self.resumed) as f64 / seconds.max(1e-3);
        let mut message = format!("{} pictures, {}/s{note}", HumanCount(pictures as u64), HumanCount(rate as u64));
        if done > 0.0 && done < 1.0 && seconds > 1.0 {
            let left = seconds * (1.0 - done) / done;
            message += &format!(", {} left", HumanDuration(Duration::from_secs_f64(left.min(1e9))));
        }
        self.bar.set_prefix(stage);
        self.bar.set_position((done * 1000.0) as u64);
        if !std::io::stderr().is_terminal() && now - self.said >= LINE_EVERY {
            eprintln!("{stage}: {:.0} %, {message}", done * 100.0);
            self.said = now;
        }
        self.bar.set_message(message);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
