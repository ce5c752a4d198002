//! `paris-node bench`

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use paris_model::{
    Device, Tensor,
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig},
    cost::transformer_flops,
    expert::Expert,
    objective::Objective,
    parameters::Parameters,
    peak::{fused_multiply_add_flops, matrix_product_flops},
    preset::Preset,
    random::Stream,
    trainer::{TrainSettings, Trainer},
};
use serde::Serialize;

/// Steps before the measured ones: memory is mapped, caches are filled.
const WARM_UP: usize = 2;
/// Rows of the matrix product that is measured alone: about as many as go through a sublayer together.
const PRODUCT_ROWS: usize = 512;
/// Batches that are drawn from.
const BATCHES: usize = 4;
/// Everything random follows from it.
const KEY: [u8; 32] = [1; 32];

/// Measure what this machine does.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    Train(Train),
}

/// Time training steps of an expert, by the code that nodes train with.
///
/// Prints medians over the steps, the floating-point operations a second of the matrix products alone, and their share of what the threads' fused
/// multiply-adds did at most just before and just after. Example: paris-node bench train --width 384 --depth 12 --batch 8 --threads 1
#[derive(Args)]
pub(super) struct Train {
    /// An expert of a published size, dit-s/2, dit-b/2 or dit-xl/2, instead of --width, --depth and --heads.
    #[arg(long, conflicts_with_all = ["width", "depth", "heads"])]
    preset: Option<Preset>,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 192)]
    width: usize,
    /// Transformer blocks.
    #[arg(long, default_value_t = 6)]
    depth: usize,
    /// Attention heads.
    #[arg(long, default_value_t = 3)]
    heads: usize,
    /// Channels of a picture or latent.
    #[arg(long, default_value_t = 4)]
    channels: usize,
    /// Its side.
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Side of a patch.
    #[arg(long, default_value_t = 2)]
    patch: usize,
    /// Tokens of a caption.
    #[arg(long, default_value_t = 77)]
    text_tokens: usize,
    /// Numbers of a caption's token.
    #[arg(long, default_value_t = 768)]
    text_width: usize,
    /// Samples a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Samples that go through the model at once, as many as are worth their memory if not given: fewer take less.
    #[arg(long, conflicts_with = "forward_only")]
    micro_batch: Option<usize>,
    /// Compute what the way back reads a second time instead of keeping it, as `run --recompute`: less memory, more time.
    #[arg(long, conflicts_with = "forward_only")]
    recompute: bool,
    /// Threads; as many as the machine has cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Steps to measure.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Forward passes without gradients, as in sampling.
    #[arg(long)]
    forward_only: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Measured {
    /// Median wall time of a step, milliseconds.
    wall_ms: f64,
    /// Median CPU time of a step over all threads, milliseconds.
    cpu_ms: f64,
    samples_per_s: f64,
    /// Floating-point operations a second, of the matrix products alone.
    flops: f64,
    /// Their share of the peak.
    peak_share: f64,
    /// Operations a second that fused multiply-adds did at most on these threads.
    peak_flops: f64,
    /// Operations a second that the matrix product alone does at most, on one thread, at the extents of this expert's MLP.
    product_flops: f64,
    /// The largest resident memory of the process, bytes.
    peak_rss_bytes: u64,
    threads: usize,
}

impl BenchCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let BenchCommand::Train(command) = self;
        command.run()
    }
}

impl Train {
    fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.batch > 0 && self.steps > 0, "--batch and --steps must be 1 or more");
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("setting --threads")?;
        }
        let config = self.config();
        PartConfig::Expert(config.clone()).validate()?;
        let mut step: Box<dyn FnMut() -> anyhow::Result<()>> =
            if self.forward_only { self.forward_pass(&config)? } else { self.training_step(&config)? };
        let product_flops = matrix_product_flops(PRODUCT_ROWS, config.width, 4 * config.width);
        let peak_before = fused_multiply_add_flops();
        let (mut walls, mut cpus) = (Vec::new(), Vec::new());
        for number in 0..WARM_UP + self.steps {
            let (started, (cpu, _)) = (Instant::now(), usage()?);
            step()?;
            if number >= WARM_UP {
                walls.push(started.elapsed());
                cpus.push(usage()?.0 - cpu);
            }
        }
        let peak_flops = fused_multiply_add_flops().max(peak_before);
        let wall = median(&mut walls).as_secs_f64();
        let flops = transformer_flops(&config, self.batch, self.forward_only) / wall;
        let measured = Measured {
            wall_ms: 1e3 * wall,
            cpu_ms: 1e3 * median(&mut cpus).as_secs_f64(),
            samples_per_s: self.batch as f64 / wall,
            flops,
            peak_share: flops / peak_flops,
            peak_flops,
            product_flops,
            peak_rss_bytes: usage()?.1,
            threads: rayon::current_num_threads(),
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&measured)?);
        } else {
            println!(
                "{:.1} ms a step ({:.1} ms of CPU on {} threads), {:.2} samples/s, {:.1} GFLOP/s ({:.0} % of a peak of {:.1}; the matrix product alone \
                 {:.1} on one thread), {} MiB at most",
                measured.wall_ms,
                measured.cpu_ms,
                measured.threads,
                measured.samples_per_s,
                flops / 1e9,
                100.0 * measured.peak_share,
                peak_flops / 1e9,
                product_flops / 1e9,
                measured.peak_rss_bytes >> 20
            );
        }
        Ok(())
    }

    fn config(&self) -> ExpertConfig {
        let Train { channels, size, patch, text_tokens, text_width, .. } = *self;
        let (width, depth, heads) = match self.preset {
            Some(Preset { width, depth, heads, .. }) => (width, depth, heads),
            None => (self.width, self.depth, self.heads),
        };
        ExpertConfig { channels, size, patch, width, depth, heads, text_tokens, text_width }
    }

    fn training_step(&self, config: &ExpertConfig) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<()>>> {
        let data = Noise::new(config, self.batch)?;
        let settings = TrainSettings {
            batch: self.batch,
            learning_rate: 1e-4,
            warmup_steps: 1,
            clip: 1.0,
            ema_decay: 0.999,
            caption_drop: 0.1,
            objective: Objective::Velocity,
        };
        let null = data.batch(&[0], &Device::Cpu)?.text;
        let mut trainer = Trainer::new(PartConfig::Expert(config.clone()), settings, &KEY, &null, &Device::Cpu)?;
        if let Some(samples) = self.micro_batch {
            trainer.set_micro_batch(samples);
        }
        trainer.set_recompute(self.recompute);
        Ok(Box::new(move || Ok(trainer.step(&data).map(drop)?)))
    }

    fn forward_pass(&self, config: &ExpertConfig) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<()>>> {
        let parameters = Parameters::initial(&PartConfig::Expert(config.clone()), &KEY, &Device::Cpu)?;
        let expert = Expert::new(config, &parameters)?;
        let batch = Noise::new(config, self.batch)?.batch(&(0..self.batch).collect::<Vec<_>>(), &Device::Cpu)?;
        let times = Tensor::full(500f32, self.batch, &Device::Cpu)?;
        Ok(Box::new(move || Ok(expert.forward(&batch.images, &times, &batch.text.tokens).map(drop)?)))
    }
}

/// Samples of the right shapes, in memory.
struct Noise {
    images: Tensor,
    tokens: Tensor,
}

impl Noise {
    fn new(config: &ExpertConfig, batch: usize) -> anyhow::Result<Self> {
        let samples = BATCHES * batch;
        let mut stream = Stream::new(&KEY, "bench", 0);
        Ok(Self {
            images: stream.normal_tensor((samples, config.channels, config.size, config.size), &Device::Cpu)?,
            tokens: stream.normal_tensor((samples, config.text_tokens, config.text_width), &Device::Cpu)?,
        })
    }
}

impl BatchSource for Noise {
    fn len(&self) -> usize {
        self.images.dims()[0]
    }

    fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
        let indices = Tensor::from_iter(indices.iter().map(|index| *index as u32), device)?;
        let tokens = self.tokens.index_select(&indices, 0)?;
        let text = Text { pooled: tokens.mean(1)?, tokens };
        Ok(Batch { images: self.images.index_select(&indices, 0)?, spread: None, text, labels: indices })
    }
}

fn median(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

/// CPU time of this process so far, over all threads, and the largest resident memory that it has had, bytes.
#[cfg(unix)]
fn usage() -> anyhow::Result<(Duration, u64)> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let duration = |time: TimeVal| Duration::new(time.tv_sec() as u64, 1_000 * time.tv_usec() as u32);
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    Ok((duration(usage.user_time()) + duration(usage.system_time()), usage.max_rss() as u64 * unit))
}

/// Not known here.
#[cfg(not(unix))]
fn usage() -> anyhow::Result<(Duration, u64)> {
    Ok((Duration::ZERO, 0))
}
