//! What snapshots cost training: `cargo bench -p paris-model --bench snapshot [-- WIDTH DEPTH THREADS]`.
//!
//! The trainer's thread pays for a copy of the state in memory; a thread beside it pays for writing. Both are measured by themselves, for a step takes so
//! much longer than either that the difference of two runs of steps would show nothing but their noise. The shares are those of a minute's
//! cadence: the copy's wall time of the trainer's minute, and both threads' CPU time of what the training threads have in a minute.

use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::DType;
use paris_model::{
    Device, Tensor,
    batch::Text,
    config::{ExpertConfig, PartConfig},
    objective::Objective,
    snapshot::{Header, Snapshots},
    state::State,
    trainer::{TrainSettings, Trainer},
};

/// Snapshots that are measured, after one that is not.
const ROUNDS: usize = 9;
/// Between two snapshots of a node.
const CADENCE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (width, depth, threads) = match numbers[..] {
        [width, depth, threads] => (width, depth, threads),
        _ => (192, 6, 2),
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("the thread pool")?;
    let (channels, size, patch, heads, text_tokens, text_width) = (4, 32, 2, 3, 77, 768);
    let config =
        PartConfig::Expert(ExpertConfig { channels, size, patch, width, depth, heads, text_tokens, text_width });
    let settings = TrainSettings {
        batch: 8,
        learning_rate: 1e-4,
        warmup_steps: 1,
        clip: 1.0,
        ema_decay: 0.999,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let null_text = Text { tokens: zeros(&[1, text_tokens, text_width])?, pooled: zeros(&[1, text_width])? };
    let trainer = Trainer::new(config.clone(), settings, &[1; 32], &null_text, &Device::Cpu)?;

    let folder = tempfile::tempdir()?;
    let snapshots = Snapshots::new(folder.path(), "expert-0");
    let _lock = snapshots.lock()?;
    let header = Header {
        run: "bench".to_owned(),
        part: "expert-0".to_owned(),
        step: 0,
        cursor: 0,
        threads,
        supersedes: Vec::new(),
    };
    let mut state = State::default();
    let (mut copies, mut writes) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..=ROUNDS {
        copies.push(measured(|| Ok(trainer.copy_state(&mut state)?))?);
        writes.push(measured(|| {
            bytes = snapshots.write(&header, &state)?;
            Ok(())
        })?);
    }
    let [copy_wall, copy_cpu] = medians(&copies[1..]);
    let [write_wall, write_cpu] = medians(&writes[1..]);
    let minute = CADENCE.as_secs_f64() * 1e3;
    println!(
        "{width}x{depth}, {threads} threads, a snapshot of {:.1} MiB, medians of {ROUNDS}:",
        bytes as f64 / (1 << 20) as f64
    );
    println!("  copy, in training's way:  {copy_wall:7.1} ms, {copy_cpu:7.1} ms of CPU");
    println!("  writing, beside training: {write_wall:7.1} ms, {write_cpu:7.1} ms of CPU, checksum and fsync included");
    println!(
        "  once a minute: {:.3} % of the trainer's time, {:.3} % of the CPU time of {threads} threads",
        100.0 * copy_wall / minute,
        100.0 * (copy_cpu + write_cpu) / (minute * threads as f64)
    );
    Ok(())
}

/// Wall and CPU time of `work` over all threads, milliseconds.
fn measured(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<[f64; 2]> {
    let (started, cpu) = (Instant::now(), cpu_ms()?);
    work()?;
    Ok([started.elapsed().as_secs_f64() * 1e3, cpu_ms()? - cpu])
}

/// CPU time of this process so far, milliseconds.
#[cfg(unix)]
fn cpu_ms() -> anyhow::Result<f64> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let ms = |time: TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

/// Not known here.
#[cfg(not(unix))]
fn cpu_ms() -> anyhow::Result<f64> {
    Ok(0.0)
}

fn medians(measured: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|which| {
        let mut sorted: Vec<f64> = measured.iter().map(|it| it[which]).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    })
}
