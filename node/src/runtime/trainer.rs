//! Training a part on an operating-system thread of its own.
//!
//! The trainer never waits for the network: it reads shards that are on this disk, ahead of its steps, and hands finished checkpoints over a bounded
//! channel. The network never waits for the trainer: it hears of its progress, and of its death, by events.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use paris_model::{
    Device,
    batch::Text,
    config::PartConfig,
    data::Dataset,
    prefetch::Prefetch,
    trainer::{TrainSettings, Trainer},
};
use paris_protocol::{message::Progress, part::Part};
use tokio::sync::mpsc;

use super::fit;
use crate::memory::Memory;

/// Between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Held-out samples that a checkpoint's loss is measured on, at most.
const HELD_OUT_SAMPLES: usize = 256;
/// Weight of the newest step in the reported training loss.
const LOSS_SMOOTHING: f32 = 0.05;

/// Everything a trainer needs.
pub(super) struct Job {
    pub(super) part: Part,
    pub(super) config: PartConfig,
    pub(super) settings: TrainSettings,
    /// Keys all randomness: from the run and the part, so that a successor draws what the owner would have drawn.
    pub(super) key: [u8; 32],
    pub(super) null_text: Text,
    /// Where to go on.
    pub(super) state: Option<Vec<u8>>,
    /// This node trained the state, and so knows its micro-batch to be good.
    pub(super) state_is_own: bool,
    pub(super) train: Arc<Dataset>,
    pub(super) held_out: Dataset,
    /// Steps at which the part is finished; 0 for never.
    pub(super) steps: u64,
    pub(super) checkpoint_every: Duration,
}

/// What a trainer has to say.
pub(super) enum TrainerEvent {
    Progress(Progress),
    /// A checkpoint, in memory: serialised weights and resumable state.
    Checkpoint {
        part: Part,
        step: u64,
        held_out_loss: f32,
        weights: Vec<u8>,
        state: Vec<u8>,
    },
    /// The thread ended as it was told to, or the part is finished.
    Ended(Part),
    /// The thread died.
    Failed(Part, String),
}

/// A running trainer.
pub(super) struct TrainerHandle {
    stop: Arc<AtomicBool>,
}

impl TrainerHandle {
    /// Asks for a last checkpoint and the end; does not wait.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Starts the thread.
pub(super) fn start(job: Job, memory: Memory, events: mpsc::Sender<TrainerEvent>) -> std::io::Result<TrainerHandle> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    thread::Builder::new().name(format!("train-{}", job.part)).spawn(move || {
        let part = job.part;
        let outcome = catch_unwind(AssertUnwindSafe(|| train(job, &memory, &flag, &events)));
        let last = match outcome {
            Ok(Ok(())) => TrainerEvent::Ended(part),
            Ok(Err(error)) => TrainerEvent::Failed(part, format!("{error:#}")),
            Err(_) => TrainerEvent::Failed(part, "the trainer panicked; the log has the place".to_owned()),
        };
        // Nobody listens any more when the node is gone; then there is nobody to tell either.
        let _ = events.blocking_send(last);
    })?;
    Ok(TrainerHandle { stop })
}

fn train(job: Job, memory: &Memory, stop: &AtomicBool, events: &mpsc::Sender<TrainerEvent>) -> anyhow::Result<()> {
    let Job { part, config, settings, key, null_text, state, state_is_own, train, held_out, steps, checkpoint_every } =
        job;
    let device = Device::Cpu;
    let build = || match state {
        Some(state) => Trainer::resume(config.clone(), settings, &key, &null_text, &state, &device),
        None => Trainer::new(config.clone(), settings, &key, &null_text, &device),
    };
    let (mut trainer, _reserved) = fit::fitted(memory, &config, &*train, state_is_own, build)?;
    let mut draws = Prefetch::start(trainer.draw_rule().clone(), train, trainer.step_count())?;
    let mut held_out_loss = {
        let _computing = memory.computing();
        trainer.held_out_loss(&held_out, HELD_OUT_SAMPLES)?
    };
    let mut smoothed: Option<f32> = None;
    let (mut reported, mut written) = (Instant::now() - REPORT_EVERY, Instant::now());
    loop {
        let _computing = memory.computing();
        let finished = stop.load(Ordering::Relaxed) || (steps > 0 && trainer.step_count() >= steps);
        if !finished {
            let loss = trainer.step_from(&mut draws)?.loss;
            smoothed = Some(smoothed.map_or(loss, |mean| mean + LOSS_SMOOTHING * (loss - mean)));
        }
        if finished || written.elapsed() >= checkpoint_every {
            held_out_loss = trainer.held_out_loss(&held_out, HELD_OUT_SAMPLES)?;
            let step = trainer.step_count();
            let (weights, state) = (trainer.weights()?, trainer.state()?);
            events.blocking_send(TrainerEvent::Checkpoint { part, step, held_out_loss, weights, state })?;
            written = Instant::now();
        }
        if finished || reported.elapsed() >= REPORT_EVERY {
            let loss = smoothed.unwrap_or(f32::NAN);
            // A report that finds the channel full is dropped: the next one says more.
            let _ = events.try_send(TrainerEvent::Progress(Progress {
                part,
                step: trainer.step_count(),
                loss,
                held_out_loss,
            }));
            reported = Instant::now();
        }
        if finished {
            return Ok(());
        }
    }
}
