//! Trains on more data than the process has memory, and says how much memory it had and how long it waited for the data.
//!
//! ```sh
//! cargo run --release -p paris-model --example larger_than_memory -- FOLDER MIB STEPS [WIDTH DEPTH BATCH]
//! ```
//! writes MIB of shards of noise, 32x32, into FOLDER (unless it has them), and trains on all of them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use candle_core::Device;
use paris_model::{
    batch::BatchSource,
    config::{ExpertConfig, PartConfig},
    data::{Dataset, Shard},
    objective::Objective,
    prefetch::Prefetch,
    random::Stream,
    report::StepDurations,
    text::{HashedText, TextEncoder},
    trainer::{TrainSettings, Trainer},
};

const SIDE: usize = 32;
const SAMPLES_A_SHARD: usize = 4096;
const TEXT: HashedText = HashedText { tokens: 8, width: 64 };

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| arguments.get(place).map_or(Ok(default), |text| text.parse());
    let folder = PathBuf::from(arguments.first().context("give a folder, and MiB of data")?);
    let (mib, steps, width, depth, batch) =
        (number(1, 1024)?, number(2, 50)?, number(3, 64)?, number(4, 2)?, number(5, 32)?);

    let shards = write_shards(&folder, mib << 20)?;
    report("shards written");
    let opening = Instant::now();
    let data = Arc::new(Dataset::open(shards, Arc::new(TEXT))?);
    report(&format!("{data:?} opened in {:.2?}", opening.elapsed()));
    time_reading(&data)?;

    let config = PartConfig::Expert(ExpertConfig {
        channels: 3,
        size: SIDE,
        patch: 4,
        width,
        depth,
        heads: 2,
        text_tokens: TEXT.tokens,
        text_width: TEXT.width,
    });
    let settings = TrainSettings {
        batch,
        learning_rate: 1e-3,
        warmup_steps: 1,
        clip: 1.0,
        ema_decay: 0.99,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    let null = TEXT.encode(&[""], &Device::Cpu)?;
    let mut trainer = Trainer::new(config, settings, &[0; 32], &null, &Device::Cpu)?;
    let mut draws = Prefetch::start(trainer.draw_rule().clone(), data.clone(), 0)?;
    let mut spent = StepDurations::default();
    trainer.step_from(&mut draws)?;
    for _ in 0..steps {
        let durations = trainer.step_from(&mut draws)?.durations;
        spent.data += durations.data;
        spent.forward += durations.forward;
        spent.backward += durations.backward;
        spent.optimizer += durations.optimizer;
    }
    let share = |part: Duration| 100.0 * part.as_secs_f64() / spent.total().as_secs_f64();
    report(&format!(
        "{steps} steps of {batch} samples, {:.2?} each: data {:.3} %, forward {:.1} %, backward {:.1} %, optimiser {:.1} %",
        spent.total() / steps as u32,
        share(spent.data),
        share(spent.forward),
        share(spent.backward),
        share(spent.optimizer)
    ));
    let mut here = Duration::ZERO;
    drop(draws);
    for _ in 0..steps.min(20) {
        here += trainer.step(&*data)?.durations.data;
    }
    println!("making the draws of a step takes {:.2?}", here / steps.min(20) as u32);
    Ok(())
}

/// Shards of so many bytes in all; those that are there are kept.
fn write_shards(folder: &Path, bytes: usize) -> anyhow::Result<Vec<(PathBuf, u32)>> {
    fs::create_dir_all(folder)?;
    let mut shards = Vec::new();
    for number in 0..bytes.div_ceil(SAMPLES_A_SHARD * SIDE * SIDE * 3) {
        let path = folder.join(format!("{number}.safetensors"));
        if !path.exists() {
            let mut noise = Stream::seeded(number as u64, "pixels");
            let pixels = (0..SAMPLES_A_SHARD * SIDE * SIDE * 3 / 8).flat_map(|_| noise.bits().to_le_bytes()).collect();
            let captions = (0..SAMPLES_A_SHARD).map(|sample| format!("picture {sample} of shard {number}")).collect();
            fs::write(&path, Shard::new(SIDE, SIDE, pixels, captions)?.write()?)?;
        }
        shards.push((path, 0));
    }
    Ok(shards)
}

/// Reads samples here and there, and says what one takes.
fn time_reading(data: &Dataset) -> anyhow::Result<()> {
    const SAMPLES: usize = 2000;
    let mut places = Stream::seeded(1, "places");
    let indices: Vec<usize> = (0..SAMPLES).map(|_| places.below(data.len())).collect();
    let reading = Instant::now();
    for indices in indices.chunks(100) {
        data.batch(indices, &Device::Cpu)?;
    }
    report(&format!("{:.1?} to read a sample and encode its caption", reading.elapsed() / SAMPLES as u32));
    Ok(())
}

/// Prints what has been done, and the largest resident memory so far.
fn report(done: &str) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or("unknown", str::trim);
    println!("{done}; peak memory {peak}");
}
