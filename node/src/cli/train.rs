//! `paris-node train`

use std::{
    fs,
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, builder::FalseyValueParser};
use paris_model::{
    Device,
    batch::BatchSource,
    config::{ExpertConfig, PartConfig},
    data::{Dataset, Splits},
    device::DeviceChoice,
    durable::{Durable, Outcome, Setup},
    objective::Objective,
    snapshot::Snapshots,
    text::TextEncoder,
    trainer::TrainSettings,
    whole_file::write_whole,
};

use super::encoders::TextChoice;
use crate::{runtime::SNAPSHOT_EVERY, store::DataDir};

/// Held-out samples that the loss is measured on, at most.
const HELD_OUT_SAMPLES: usize = 512;
/// Between two lines.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Train on this machine alone.
#[derive(Subcommand)]
pub(super) enum TrainCommand {
    Base(Base),
}

/// Train a base checkpoint: one expert on the pictures of all clusters, from which a run's experts can start.
///
/// Ctrl-C, or a crash, loses little: started again with the same arguments it goes on. The sizes must be those of the run: give `manifest new` the same ones, and the file with
/// --base.
///
/// Example: paris-node train base --data prepared --minutes 30 --width 96 --depth 3 --heads 4 --out base.safetensors
#[derive(Args)]
pub(super) struct Base {
    /// The folder that `paris-node data prepare` wrote.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The checkpoint.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Minutes to train.
    #[arg(long, conflicts_with = "steps", required_unless_present = "steps")]
    minutes: Option<f64>,
    /// Steps to train, over all starts.
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of weights and training.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to train: auto, cpu or cuda:N.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,
    /// Train in less memory and more time: the same weights, to the bit.
    #[arg(long, env = "PARIS_RECOMPUTE", value_parser = FalseyValueParser::new())]
    recompute: bool,

    /// Width of the experts.
    #[arg(long, default_value_t = 192, help_heading = "Models")]
    width: usize,
    /// Transformer blocks of an expert.
    #[arg(long, default_value_t = 6, help_heading = "Models")]
    depth: usize,
    /// Attention heads of an expert.
    #[arg(long, default_value_t = 6, help_heading = "Models")]
    heads: usize,
    /// Side of a patch, in pixels.
    #[arg(long, default_value_t = 2, help_heading = "Models")]
    patch: usize,
    /// What encodes captions.
    #[arg(long, value_enum, default_value_t = TextChoice::Hashed, help_heading = "Models")]
    text: TextChoice,
    /// Tokens of an encoded caption, as for `manifest new`.
    #[arg(long, help_heading = "Models")]
    text_tokens: Option<u16>,
    /// Numbers of a token, likewise.
    #[arg(long, help_heading = "Models")]
    text_width: Option<u16>,

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
    /// Share of captions dropped, for classifier-free guidance.
    #[arg(long, default_value_t = 0.1, help_heading = "Training")]
    caption_drop: f32,
}

impl TrainCommand {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let TrainCommand::Base(command) = self;
        command.run(dir)
    }
}

impl Base {
    fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        ensure!(self.batch > 0, "--batch must be 1 or more");
        ensure!(self.minutes.is_none_or(|it| it.is_finite() && it > 0.0), "--minutes must be above 0");
        ensure!(!self.out.exists(), "{} is there already: move it, or choose another --out", self.out.display());
        let device = self.device.open_to_train()?;
        let encoder = self.text.open(&dir.encoders_path(), self.text_tokens, self.text_width)?;
        let all = Splits::open(&self.data, &encoder)?.all;
        let setup = Setup {
            config: self.config(&all.train, &*encoder),
            settings: self.settings(),
            key: self.key(),
            null_text: encoder.encode(&[""], &Device::Cpu)?,
            device,
            recompute: self.recompute,
            base: None,
        };
        setup.config.validate()?;
        let snapshots = self.snapshots_path()?;
        fs::create_dir_all(&snapshots).with_context(|| format!("making {}", snapshots.display()))?;
        let mut durable = Durable::begin(setup, &self.run_name()?, Snapshots::new(&snapshots, "base"), None)?;
        let train: Arc<dyn BatchSource + Send + Sync> = all.train;
        self.train(&mut durable, &train)?;
        let trainer = durable.trainer();
        let loss = trainer.held_out_loss(&*all.held_out, HELD_OUT_SAMPLES)?;
        write_whole(&self.out, &trainer.weights()?)?;
        println!("{}: step {}, held-out loss {loss:.4}", self.out.display(), trainer.step_count());
        println!("next: {}", self.next());
        drop(durable);
        fs::remove_dir_all(&snapshots).with_context(|| format!("removing {}", snapshots.display()))
    }

    /// The command that makes a run of experts that start from the base: with all that decides their shape.
    fn next(&self) -> String {
        let Self { data, out, width, depth, heads, patch, text, text_tokens, text_width, .. } = self;
        let mut next = format!(
            "paris-node manifest new --data {} --base {} --width {width} --depth {depth} --heads {heads} --patch {patch} --text {}",
            data.display(),
            out.display(),
            text.option()
        );
        for (option, value) in [("--text-tokens", text_tokens), ("--text-width", text_width)] {
            next.extend(value.map(|value| format!(" {option} {value}")));
        }
        next
    }

    fn train(&self, durable: &mut Durable, data: &Arc<dyn BatchSource + Send + Sync>) -> anyhow::Result<()> {
        let (began, first) = (Instant::now(), durable.trainer().step_count());
        let mut said = began;
        durable.train_alone(data, SNAPSHOT_EVERY, |trainer, outcome| {
            let (step, passed) = (trainer.step_count(), began.elapsed());
            // How much of it is done; of minutes, of this start's.
            let share = match (self.steps, self.minutes) {
                (Some(steps), _) => step.saturating_sub(first) as f64 / steps.saturating_sub(first).max(1) as f64,
                (None, minutes) => passed.as_secs_f64() / 60.0 / minutes.unwrap_or(0.0),
            };
            match outcome {
                Some(Outcome::WentBack(fallback)) => eprintln!("{fallback}"),
                Some(Outcome::Stepped(report)) if said.elapsed() >= SAY_EVERY => {
                    said = Instant::now();
                    let speed = (step.saturating_sub(first) * self.batch as u64) as f64 / passed.as_secs_f64();
                    let left = passed.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0) / 60.0;
                    eprintln!("step {step}, loss {:.4}, {speed:.0} samples/s, {left:.1} min left", report.loss);
                }
                _ => {}
            }
            let is_over = share >= 1.0 || self.steps.is_some_and(|steps| step >= steps);
            anyhow::Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }

    fn config(&self, data: &Dataset, encoder: &dyn TextEncoder) -> PartConfig {
        let (channels, size) = (data.encoding().channels(), data.side());
        let (text_tokens, text_width) = (encoder.tokens(), encoder.width());
        let Self { patch, width, depth, heads, .. } = *self;
        PartConfig::Expert(ExpertConfig { channels, size, patch, width, depth, heads, text_tokens, text_width })
    }

    fn settings(&self) -> TrainSettings {
        TrainSettings {
            batch: self.batch,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup,
            clip: 1.0,
            ema_decay: self.ema,
            caption_drop: self.caption_drop,
            objective: Objective::Velocity,
        }
    }

    fn key(&self) -> [u8; 32] {
        blake3::derive_key("paris-node 1 base training", &self.seed.to_le_bytes())
    }

    /// What names the training: its snapshots are used again if nothing of this has changed.
    fn run_name(&self) -> anyhow::Result<String> {
        let prepared = self.data.join(paris_model::data::prepared::FILE_NAME);
        let prepared = fs::read(&prepared).with_context(|| format!("reading {}", prepared.display()))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&prepared).update(format!("{:?} {:?} {}", self.text, self.settings(), self.seed).as_bytes());
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn snapshots_path(&self) -> anyhow::Result<PathBuf> {
        let name = self.out.file_name().context("--out must name a file")?;
        Ok(self.out.with_file_name(format!("{}.snapshots", name.to_string_lossy())))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{super::Cli, *};

    #[test]
    fn what_comes_next_makes_experts_of_the_bases_shape() {
        let base = "paris-node train base --data prepared --out b.safetensors --steps 1";
        let usual = "--width 192 --depth 6 --heads 6 --patch 2 --text hashed";
        for given in ["", "--width 96 --depth 3 --heads 4 --patch 4 --text minilm --text-tokens 16 --text-width 384"] {
            let command = Cli::parse_from(format!("{base} {given}").split_whitespace()).command;
            let super::super::Command::Train(TrainCommand::Base(command)) = command else { panic!("another command") };
            let shape = if given.is_empty() { usual } else { given };
            let next = command.next();
            assert_eq!(next, format!("paris-node manifest new --data prepared --base b.safetensors {shape}"));
            assert!(Cli::try_parse_from(next.split_whitespace()).is_ok(), "{next}");
        }
    }
}
