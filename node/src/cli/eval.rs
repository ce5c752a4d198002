//! `paris-node eval`

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::Args;
use paris_model::{
    Device,
    data::{Dataset, Splits},
    device::DeviceChoice,
    evaluation::{
        classification::{self, Answers, Classification},
        contest::{ContestSettings, Outcome, Prompts, Strategy, compete},
        distances::{NamedFeatures, Reference, pictures},
        frechet::COMPONENTS,
        held_out::HeldOut,
        losses::LossMatrix,
        table::Table,
    },
    features::ImageFeatures,
    report::TIME_BINS,
    whole_file::write_whole,
};
use paris_protocol::hash::Hash;
use serde::Serialize;

use super::{
    asked::{Asked, bar},
    encoders::FeaturesChoice,
};
use crate::{
    memory::Memory,
    models::ModelSource,
    plot,
    sampling::{Assembled, Drawing, Place},
    store::DataDir,
};

/// Real pictures that drawn ones are compared with, at most.
const REFERENCE_MAX: usize = 10_000;

/// Measure a mixture on prepared pictures: every expert's loss on every cluster, the router, and how far pictures drawn by each strategy lie from real ones.
///
/// The mixture is the run's best checkpoints of now, the one that --mixture names, or one in the published layout (--model). The pictures must be clustered as those it
/// was trained on, so take what the run was prepared from. Distances are named by the features they are taken in, FD for Fréchet and KD for kernel: they compare
/// with each other, not with published FIDs. Losses are those of the velocity, whatever an expert predicts.
///
/// Examples: paris-node eval --data prepared; paris-node eval --data prepared --json quality.json --plot losses.svg --calibration router.json
#[derive(Args)]
pub(super) struct Eval {
    /// The folder that `paris-node data prepare` wrote.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Measure this mixture instead of the best checkpoints of now.
    #[arg(long, value_name = "HASH", conflicts_with = "model")]
    mixture: Option<Hash>,
    /// Measure a mixture in the published layout: a folder, the name of an imported one, or hub:OWNER/NAME.
    #[arg(long, value_name = "DIR")]
    model: Option<ModelSource>,

    /// Pictures drawn a strategy and seed, from held-out captions.
    #[arg(long, default_value_t = 512)]
    pictures: usize,
    /// Seeds that each strategy draws with.
    #[arg(long, default_value_t = 3)]
    draws: u64,
    /// What distances are taken in.
    #[arg(long, value_enum, default_value_t = FeaturesChoice::ColourAndEdges)]
    features: FeaturesChoice,
    /// Euler steps a picture.
    #[arg(long, default_value_t = 16)]
    steps: usize,
    /// Strength of classifier-free guidance.
    #[arg(long, default_value_t = 1.5)]
    cfg: f64,
    /// Held-out samples of a cluster that losses are measured on, at most.
    #[arg(long, default_value_t = 128)]
    loss_samples: usize,
    /// Measure losses and the router only; nothing is drawn.
    #[arg(long)]
    no_drawing: bool,
    /// Seed of noise, times and captions.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the losses of experts on clusters.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the router's fitted temperatures, for `paris-node sample --calibration`.
    #[arg(long, value_name = "FILE.json")]
    calibration: Option<PathBuf>,

    /// MiB of memory that weights may take; most of what is available if not given.
    #[arg(long, env = "PARIS_MEMORY", value_name = "MIB")]
    memory: Option<u64>,
    /// Where to compute: auto, cpu, cuda:N or metal.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,
    /// Seconds to wait for checkpoints before measuring those that are here; for all of them with --mixture.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Measured {
    losses: LossMatrix,
    router: Option<Classification>,
    /// Real training pictures that drawn ones are compared with.
    reference: usize,
    /// Pictures drawn a strategy and seed.
    pictures: usize,
    contest: ContestSettings,
    strategies: Vec<Row>,
}

/// A strategy.
#[derive(Serialize)]
struct Row {
    strategy: String,
    outcome: Outcome,
}

impl Eval {
    pub(super) async fn run(self, dir: DataDir) -> anyhow::Result<()> {
        ensure!(
            self.no_drawing || self.pictures > COMPONENTS,
            "distances take more than {COMPONENTS} pictures, not {}: give more --pictures, or --no-drawing",
            self.pictures
        );
        let place = self.place()?;
        let device = place.device.clone();
        let features = self.features.open(&dir.encoders_path())?;
        let drawing = match &self.model {
            Some(source) => tokio::task::block_in_place(|| Drawing::of_published(source.open(&dir)?, place))?,
            None => self.assembled(&dir).await?.drawing(place, &dir.encoders_path())?,
        };
        // It keeps the processor busy for minutes: the runtime's threads go on meanwhile.
        let measured = tokio::task::block_in_place(|| self.measure(&drawing, &*features, &device))?;
        self.say(&measured)
    }

    /// The device, and what weights may take of its memory.
    fn place(&self) -> anyhow::Result<Place> {
        let device = self.device.open()?;
        let limit = self.memory.map(|mib| mib.saturating_mul(1 << 20));
        let limit = if device.is_cpu() { limit } else { limit.or(Some(u64::MAX)) };
        Ok(Place { device, memory_bytes: Memory::new(limit).alone().left_bytes() })
    }

    async fn assembled(&self, dir: &DataDir) -> anyhow::Result<Assembled> {
        let wait = Duration::from_secs(self.wait);
        let asked = Asked::of(dir, wait).await?;
        let assembly = match self.mixture {
            Some(hash) => asked.mixture(hash, wait).await,
            None => asked.assemble(wait).await,
        };
        asked.leave().await?;
        let assembled = Assembled::of(&assembly?)?;
        eprintln!("{}\nmixture {}", assembled.describe(), assembled.record().hash()?);
        Ok(assembled)
    }

    fn measure(&self, drawing: &Drawing, features: &dyn ImageFeatures, device: &Device) -> anyhow::Result<Measured> {
        let (mixture, splits) = (drawing.mixture(), Splits::open(&self.data, drawing.text())?);
        if splits.clusters.len() != mixture.experts.len() {
            bail!(
                "{} was prepared in {} clusters, and the mixture is of {}: measure on what it was trained on",
                self.data.display(),
                splits.clusters.len(),
                mixture.experts.len()
            );
        }
        let (train, (channels, side, _)) = (&splits.all.train, mixture.shape);
        if (train.encoding().channels(), train.side()) != (channels, side) {
            bail!(
                "{} holds samples of {} channels and {} a side, and the mixture draws {channels} and {side}: prepare them as those that it was trained on",
                self.data.display(),
                train.encoding().channels(),
                train.side()
            );
        }
        let held_out: Vec<_> = splits.clusters.iter().map(|split| self.ask(&split.held_out, 1)).collect();
        let mut losses = LossMatrix::default();
        let progress = bar("losses {wide_bar} {pos}/{len} experts, {eta} left", mixture.experts.len() as u64)?;
        for (cluster, expert) in mixture.experts.iter().enumerate() {
            if let Some(expert) = expert {
                losses.measure(&format!("expert-{cluster}"), Some(cluster), expert.as_ref(), &held_out, device)?;
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        let all = self.ask(&splits.all.held_out, splits.clusters.len());
        let router = mixture.router.as_deref();
        let router = router.map(|router| Answers::of(router, &all, device)?.classification()).transpose()?;
        let null = drawing.text().encode(&[""], &Device::Cpu)?;
        let prompts = Prompts::of(&*splits.all.held_out, &null, self.pictures, self.seed, device)?;
        let seeds = (0..self.draws).map(|draw| self.seed * 1000 + draw).collect();
        let contest = ContestSettings { steps: self.steps, guidance: self.cfg, seeds };
        let (reference, strategies) = match self.no_drawing {
            true => (0, Vec::new()),
            false => self.contests(drawing, features, &splits.all.train, &prompts, &contest)?,
        };
        Ok(Measured { losses, router, reference, pictures: self.pictures, contest, strategies })
    }

    fn ask<'a>(&self, data: &'a Dataset, clusters: usize) -> HeldOut<'a> {
        HeldOut { data, samples: self.loss_samples * clusters, draws: TIME_BINS, seed: self.seed }
    }

    /// Draws by every strategy that the mixture allows; also how many real pictures that is compared with.
    fn contests(
        &self,
        drawing: &Drawing,
        features: &dyn ImageFeatures,
        train: &Dataset,
        prompts: &Prompts,
        contest: &ContestSettings,
    ) -> anyhow::Result<(usize, Vec<Row>)> {
        let real = pictures(train, drawing.codec(), REFERENCE_MAX)?;
        let features = NamedFeatures { name: self.features.name(), features };
        let references = [Reference::of(features, &real, prompts.len())?];
        let mixture = drawing.mixture();
        let present = mixture.experts.iter().flatten().count();
        let mut strategies = Vec::new();
        if mixture.router.is_some() {
            strategies.extend((1..=2).filter(|k| *k < present).map(Strategy::Top));
        }
        strategies.push(Strategy::Full);
        if present == mixture.experts.len() {
            strategies.push(Strategy::Oracle);
        }
        strategies.push(Strategy::Random);
        let all = (strategies.len() * contest.seeds.len() * prompts.len()) as u64;
        let progress = bar("drawing {wide_bar} {pos}/{len} pictures, {eta} left", all)?;
        let mut rows = Vec::new();
        for strategy in strategies {
            let before = progress.position();
            let mut heard = |drawn: usize| progress.set_position(before + drawn as u64);
            let (outcome, _) = compete(mixture, drawing.codec(), strategy, prompts, &references, contest, &mut heard)?;
            rows.push(Row { strategy: strategy.to_string(), outcome });
        }
        progress.finish_and_clear();
        Ok((references[0].pictures(), rows))
    }

    fn say(&self, measured: &Measured) -> anyhow::Result<()> {
        println!("{}", measured.losses);
        if let Some(router) = &measured.router {
            println!("{}", classification::table([("router", router)]));
        }
        if !measured.strategies.is_empty() {
            println!("{}", table(&measured.strategies));
            println!(
                "{} pictures a strategy and seed against {} training pictures; lower is better, right is the share of pictures whose heaviest expert is the caption's \
                 cluster, at the first step and the last",
                measured.pictures, measured.reference
            );
        }
        if let Some(path) = &self.json {
            write_whole(path, &serde_json::to_vec_pretty(measured)?)?;
        }
        if let Some(path) = &self.plot {
            let columns: Vec<_> = (0..measured.losses.clusters()).map(|cluster| format!("cluster {cluster}")).collect();
            let rows = measured
                .losses
                .rows
                .iter()
                .map(|row| (row.model.clone(), row.clusters.iter().map(|loss| f64::from(loss.mean)).collect()));
            let svg =
                plot::matrix("held-out loss: the least of each cluster is framed", &columns, &rows.collect::<Vec<_>>());
            write_whole(path, svg.as_bytes())?;
        }
        if let Some(path) = &self.calibration {
            let router = measured.router.as_ref().context("without a router there are no temperatures to write")?;
            write_whole(path, &serde_json::to_vec_pretty(&router.temperatures)?)?;
        }
        Ok(())
    }
}

/// A row a strategy, a column a distance.
fn table(rows: &[Row]) -> Table {
    let names: Vec<&String> = rows.first().map_or(Vec::new(), |row| row.outcome.distances.keys().collect());
    let head = ["strategy"].into_iter().chain(names.iter().map(|name| name.as_str())).chain(["right, first", "last"]);
    let mut table = Table::new(head);
    for Row { strategy, outcome } in rows {
        let distances = names.iter().map(|name| outcome.spread(name).map_or(String::new(), |it| it.to_string()));
        let right = |share: Option<&f32>| share.map_or(String::new(), |share| format!("{share:.2}"));
        let agreement = [outcome.agreement.first(), outcome.agreement.last()].map(right);
        table.add([strategy.clone()].into_iter().chain(distances).chain(agreement));
    }
    table
}
