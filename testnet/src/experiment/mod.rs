//! The experiment: a mixture against a monolith of equal compute, on any captioned pictures, without a network.
//!
//! ```text
//! pictures -> shards -> monolith, experts, both routers, experts from a base -> losses, routers, strategies at each budget -> tables and plots
//! ```
//!
//! Everything follows from the pictures and the `plan`, which is fixed when the folder is begun. Shards, weights at every budget and measurements are
//! kept there as they are made, so an experiment that was killed goes on where it was.

mod clock;
mod contestants;
mod data;
mod measuring;
mod plan;
mod report;
mod results;
mod speed;
mod training;

use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use paris_model::{
    batch::BatchSource,
    data::PrepareSettings,
    device::DeviceChoice,
    evaluation::{contest::ContestSettings, distances::NamedFeatures, frechet::COMPONENTS},
    features::ColourAndEdges,
    text::HashedText,
};
use paris_node::cli::encoders::FeaturesChoice;

use self::{
    clock::Clock,
    data::Data,
    measuring::Measuring,
    plan::{Models, Plan, Training},
};

/// Compare mixtures of experts with a monolith of equal compute, on any captioned pictures, without a network.
///
/// Prepares the pictures, trains a monolith, an expert a cluster, two routers (one reads captions) and experts that start from a base checkpoint, and measures at 1/4, 1/2
/// and all of the budget: losses of every expert on every cluster, the routers, and how far pictures drawn by each strategy lie from real ones.
/// Writes results.md, results.json, plots and grids of pictures into --out. Killed and started again with the same arguments, it goes on.
///
/// Examples: paris-testnet experiment --data pictures/ --minutes 60 --out experiment; paris-testnet experiment --data pictures.tar --samples 20000 --seed 1 --out another
#[derive(Args)]
pub struct Experiment {
    /// Pictures with captions, as `paris-node data prepare` takes them.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Where everything goes.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Clusters, and so experts.
    #[arg(long, default_value_t = 4)]
    clusters: usize,
    /// Minutes that it may take in all: this machine's speed is measured, and decides the samples. Give --samples for results that can be repeated.
    #[arg(long, conflicts_with = "samples", required_unless_present = "samples")]
    minutes: Option<f64>,
    /// Samples that each expert and each router is trained on; the monolith on so many for each cluster.
    #[arg(long)]
    samples: Option<u64>,
    /// Seed of clusters, weights, training and drawing.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Without experts that start from a base checkpoint.
    #[arg(long)]
    no_base: bool,
    /// Where to train and draw: auto, cpu or cuda:N.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,

    /// What pictures are clustered by. Distances are taken in them too, beside the built-in ones.
    #[arg(long, value_enum, default_value = "colour-and-edges", help_heading = "Data")]
    features: FeaturesChoice,
    /// Where pretrained encoders lie, a folder each, for --features that are not built in.
    #[arg(long, env = "PARIS_ENCODERS", value_name = "DIR", default_value = "encoders", help_heading = "Data")]
    encoders: PathBuf,
    /// Width and height of the pictures.
    #[arg(long, default_value_t = 16, help_heading = "Data")]
    size: u32,
    /// Share of each cluster that is never trained on.
    #[arg(long, default_value_t = 0.1, help_heading = "Data")]
    held_out: f64,
    /// Take only the first pictures.
    #[arg(long, value_name = "N", help_heading = "Data")]
    limit: Option<usize>,

    /// Width of the experts and the monolith.
    #[arg(long, default_value_t = 96, help_heading = "Models")]
    width: usize,
    /// Their transformer blocks.
    #[arg(long, default_value_t = 4, help_heading = "Models")]
    depth: usize,
    /// Their attention heads.
    #[arg(long, default_value_t = 4, help_heading = "Models")]
    heads: usize,
    /// Side of a patch, for routers too.
    #[arg(long, default_value_t = 2, help_heading = "Models")]
    patch: usize,
    /// Width of the routers.
    #[arg(long, default_value_t = 64, help_heading = "Models")]
    router_width: usize,
    /// Their transformer blocks.
    #[arg(long, default_value_t = 3, help_heading = "Models")]
    router_depth: usize,
    /// Their attention heads.
    #[arg(long, default_value_t = 4, help_heading = "Models")]
    router_heads: usize,
    /// Tokens of an encoded caption.
    #[arg(long, default_value_t = 8, help_heading = "Models")]
    text_tokens: usize,
    /// Numbers of a token.
    #[arg(long, default_value_t = 64, help_heading = "Models")]
    text_width: usize,

    /// Samples a step.
    #[arg(long, default_value_t = 32, help_heading = "Training")]
    batch: usize,
    /// AdamW's learning rate.
    #[arg(long, default_value_t = 1e-3, help_heading = "Training")]
    learning_rate: f64,
    /// Steps of linear warm-up.
    #[arg(long, default_value_t = 50, help_heading = "Training")]
    warmup: u64,
    /// Decay of the averaged weights.
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    ema: f64,

    /// Pictures drawn a strategy and seed; with --minutes as many as fit into a third of the time, up to 1024, if not given.
    #[arg(long, help_heading = "Measuring")]
    pictures: Option<usize>,
    /// Seeds that each strategy draws with at the last budget.
    #[arg(long, default_value_t = 3, help_heading = "Measuring")]
    draws: u64,
    /// Euler steps a picture.
    #[arg(long, default_value_t = 16, help_heading = "Measuring")]
    steps: usize,
    /// Strength of classifier-free guidance.
    #[arg(long, default_value_t = 1.5, help_heading = "Measuring")]
    cfg: f64,
    /// Held-out samples of a cluster that losses are measured on, at most.
    #[arg(long, default_value_t = 128, help_heading = "Measuring")]
    loss_samples: usize,
}

/// Pictures a strategy where neither they nor minutes are given.
const PICTURES: usize = 512;
/// Samples and pictures that are replaced when minutes are given.
const UNKNOWN: u64 = 0;

impl Experiment {
    /// Runs it, or what is left of it, to its end.
    pub fn run(self) -> anyhow::Result<()> {
        self.check()?;
        let device = self.device.open_to_train()?;
        let clustered_by = self.features.open(&self.encoders)?;
        let built_in = FeaturesChoice::ColourAndEdges;
        let mut features = vec![NamedFeatures { name: built_in.name(), features: &ColourAndEdges }];
        if self.features != built_in {
            features.push(NamedFeatures { name: self.features.name(), features: &*clustered_by });
        }
        let prepared = self.out.join("prepared");
        let named = data::prepared(&self.data, &prepared, &self.prepare_settings(), &*clustered_by)?;
        let data = Data::open(&prepared, HashedText { tokens: self.text_tokens, width: self.text_width })?;
        let held_out = data.splits.clusters.iter().map(|it| it.held_out.len().min(self.loss_samples)).sum();
        let plan = self.plan(named, &data, held_out, &device)?;
        for part in plan.parts() {
            plan.config(part).validate()?;
        }
        println!(
            "{} samples an expert and router, {} the monolith; {} pictures a strategy",
            plan.samples,
            plan.samples * plan.models.clusters as u64,
            plan.measuring.pictures
        );
        let training: f64 = plan.parts().into_iter().map(|part| training::work(&plan, part)).sum();
        let mut clock = Clock::new(training + measuring::work(&plan, held_out));
        for part in plan.parts() {
            training::train(&plan, part, &data, &self.out, &device, &mut clock)?;
        }
        let results = Measuring::new(&plan, &data, &self.out, &device, &features)?.run(&mut clock)?;
        report::write(&results, &self.out, &self.command(&plan))?;
        for distance in report::distances(&results) {
            println!("\n{distance}\n\n{}", report::strategies(&results, &distance));
        }
        println!("{}", self.out.join("results.md").display());
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.clusters >= 2, "a mixture takes 2 clusters or more: one is the monolith");
        ensure!(
            self.batch >= 1 && self.steps >= 1 && self.draws >= 1,
            "--batch, --steps and --draws must be 1 or more"
        );
        ensure!(
            self.held_out > 0.0,
            "--held-out must be above 0: losses and distances are measured on what nobody trains on"
        );
        ensure!(self.minutes.is_none_or(|it| it.is_finite() && it > 0.0), "--minutes must be above 0");
        ensure!(self.samples.is_none_or(|it| it >= 4 * self.batch as u64), "--samples must be four batches or more");
        if self.pictures.is_some_and(|pictures| pictures <= COMPONENTS) {
            bail!("--pictures must be above {COMPONENTS}: distances of fewer mean nothing");
        }
        Ok(())
    }

    fn prepare_settings(&self) -> PrepareSettings {
        PrepareSettings {
            clusters: self.clusters,
            size: self.size,
            held_out: self.held_out,
            seed: self.seed,
            limit: self.limit,
            ..PrepareSettings::default()
        }
    }

    /// The plan that the folder was begun with, if these arguments ask for it; else a new one.
    fn plan(
        &self,
        data_name: String,
        data: &Data,
        held_out: usize,
        device: &paris_model::Device,
    ) -> anyhow::Result<Plan> {
        let mut asked = Plan {
            version: Plan::version(),
            data: data_name,
            minutes: self.minutes,
            samples: self.samples.unwrap_or(UNKNOWN),
            seed: self.seed,
            models: Models {
                clusters: self.clusters,
                size: self.size as usize,
                patch: self.patch,
                width: self.width,
                depth: self.depth,
                heads: self.heads,
                router_width: self.router_width,
                router_depth: self.router_depth,
                router_heads: self.router_heads,
                text_tokens: self.text_tokens,
                text_width: self.text_width,
            },
            training: Training {
                batch: self.batch,
                learning_rate: self.learning_rate,
                warmup: self.warmup,
                ema: self.ema,
                caption_drop: 0.1,
            },
            base: !self.no_base,
            measuring: plan::Measuring {
                pictures: self.pictures.unwrap_or(PICTURES),
                contest: ContestSettings {
                    steps: self.steps,
                    guidance: self.cfg,
                    // Apart for each --seed, so that two experiments draw from different noise.
                    seeds: (0..self.draws).map(|draw| self.seed * 1000 + draw).collect(),
                },
                held_out: self.loss_samples,
            },
        };
        if let Some(begun) = Plan::read(&self.out)? {
            if asked.minutes.is_some() {
                asked.samples = begun.samples;
                asked.measuring.pictures = self.pictures.unwrap_or(begun.measuring.pictures);
            }
            ensure!(
                asked == begun,
                "{} holds an experiment with other settings (its plan.json has them): use another --out, or remove it",
                self.out.display()
            );
            return Ok(begun);
        }
        if let Some(minutes) = asked.minutes {
            let speed = speed::measure(&asked, data, device)?;
            speed::fit(&mut asked, &speed, minutes, self.pictures, held_out)?;
        }
        asked.write(&self.out)?;
        Ok(asked)
    }

    /// What repeats the experiment, with the samples that minutes came to.
    fn command(&self, plan: &Plan) -> String {
        let mut command = format!(
            "paris-testnet experiment --data {} --clusters {} --samples {} --seed {} --size {} --held-out {}",
            self.data.display(),
            self.clusters,
            plan.samples,
            self.seed,
            self.size,
            self.held_out
        );
        if let Some(limit) = self.limit {
            command += &format!(" --limit {limit}");
        }
        if self.no_base {
            command += " --no-base";
        }
        if let Some(features) = self.features.to_possible_value() {
            command += &format!(" --features {}", features.get_name());
        }
        command += &format!(
            " --width {} --depth {} --heads {} --patch {} --router-width {} --router-depth {} --router-heads {} --text-tokens {} --text-width {}",
            self.width,
            self.depth,
            self.heads,
            self.patch,
            self.router_width,
            self.router_depth,
            self.router_heads,
            self.text_tokens,
            self.text_width
        );
        command += &format!(
            " --batch {} --learning-rate {} --warmup {} --ema {} --pictures {} --draws {} --steps {} --cfg {} --loss-samples {} --out experiment",
            self.batch,
            self.learning_rate,
            self.warmup,
            self.ema,
            plan.measuring.pictures,
            self.draws,
            self.steps,
            self.cfg,
            self.loss_samples
        );
        command
    }
}
