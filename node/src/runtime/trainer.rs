//! Training a part on an operating-system thread of its own.
//!
//! The trainer never waits for the network: it reads shards that are on this disk, ahead of its steps, and hands finished checkpoints over a bounded
//! channel. The network never waits for the trainer: it hears of its progress, and of its death, by events. Nor does the trainer wait for the disk: snapshots
//! are written beside it.

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
    batch::Text,
    config::PartConfig,
    data::Dataset,
    device::DeviceChoice,
    durable::{Beginning, Durable, Origin, Outcome, Setup},
    prefetch::Prefetch,
    state::Published,
    trainer::TrainSettings,
};
use paris_protocol::{message::Progress, part::Part};
use tokio::sync::mpsc;

use super::{fit, keeping::Places};
use crate::{
    history::{EventName, History, Interval, Line, file::HistoryFile},
    memory::Memory,
};

/// Between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Between two lines of the history.
const RECORD_EVERY: Duration = Duration::from_secs(5);
/// A trainer's first checkpoint comes after this share of the interval between two: a new part can soon be drawn with, and a machine that never lasts a whole
/// interval leaves something.
const FIRST_CHECKPOINT: f64 = 0.2;
/// But not sooner, unless the interval is shorter.
const FIRST_CHECKPOINT_MIN: Duration = Duration::from_secs(60);
/// Held-out samples that a checkpoint's loss is measured on, at most.
const HELD_OUT_SAMPLES: usize = 256;
/// Weight of the newest step in the reported training loss.
const LOSS_SMOOTHING: f32 = 0.05;

/// How this machine trains.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    /// Where.
    pub device: DeviceChoice,
    /// In less memory and more time ([`Trainer::set_recompute`](paris_model::trainer::Trainer::set_recompute)).
    pub recompute: bool,
}

/// Everything a trainer needs.
pub(super) struct Job {
    pub(super) part: Part,
    pub(super) config: PartConfig,
    pub(super) settings: TrainSettings,
    /// Keys all randomness: from the run and the part, so that a successor draws what the owner would have drawn.
    pub(super) key: [u8; 32],
    pub(super) null_text: Text,
    /// What to go on from, unless a snapshot has gone further from it.
    pub(super) published: Option<Published>,
    /// This node published it, and so knows its micro-batch to be good.
    pub(super) published_here: bool,
    /// The weights that it starts from where there is neither; random ones if none.
    pub(super) base: Option<Arc<[u8]>>,
    pub(super) train: Arc<Dataset>,
    pub(super) held_out: Dataset,
    /// Steps at which the part is finished; 0 for never.
    pub(super) steps: u64,
    pub(super) checkpoint_every: Duration,
    pub(super) compute: Compute,
}

/// What a trainer has to say.
pub(super) enum TrainerEvent {
    Progress(Progress),
    /// A line was written to the part's history.
    Recorded(Part, Line),
    /// A checkpoint, in memory.
    Checkpoint {
        part: Part,
        step: u64,
        held_out_loss: f32,
        published: Published,
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
pub(super) fn start(
    job: Job,
    places: Places,
    memory: Memory,
    events: mpsc::Sender<TrainerEvent>,
) -> std::io::Result<TrainerHandle> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    thread::Builder::new().name(format!("train-{}", job.part)).spawn(move || {
        let part = job.part;
        let outcome = catch_unwind(AssertUnwindSafe(|| train(job, &places, &memory, &flag, &events)));
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

fn train(
    job: Job,
    places: &Places,
    memory: &Memory,
    stop: &AtomicBool,
    events: &mpsc::Sender<TrainerEvent>,
) -> anyhow::Result<()> {
    let Job { part, config, settings, key, null_text, published, published_here, base, train, held_out, .. } = job;
    let (steps, checkpoint_every, Compute { device, recompute }) = (job.steps, job.checkpoint_every, job.compute);
    let device = device.open_to_train()?;
    let setup = Setup { config: config.clone(), settings, key, null_text, device, recompute, base };
    let mut recorder = Recorder::open(part, &places.history(), events.clone());
    let beginning = Beginning::choose(setup, &places.run(), places.snapshots(part), published)?;
    let trained_here = published_here || matches!(beginning.origin(), Origin::Snapshot { .. });
    let (trainer, _reserved) = fit::fitted(memory, &config, &*train, trained_here, || beginning.trainer())?;
    let mut durable = beginning.train(trainer)?;
    recorder.event(EventName::Began, durable.trainer().step_count(), said_of(&durable));
    let draw = |durable: &Durable| {
        let trainer = durable.trainer();
        Prefetch::start(trainer.draw_rule().clone(), train.clone(), trainer.cursor())
    };
    let mut draws = draw(&durable)?;
    let mut held_out_loss = {
        let _computing = memory.computing();
        durable.trainer().held_out_loss(&held_out, HELD_OUT_SAMPLES)?
    };
    let mut checkpoint_in = first_checkpoint(checkpoint_every);
    let mut smoothed: Option<f32> = None;
    let mut interval = Interval::begin();
    let (mut reported, mut written, mut snapped) = (Instant::now() - REPORT_EVERY, Instant::now(), Instant::now());
    loop {
        let _computing = memory.computing();
        let mut finished = stop.load(Ordering::Relaxed) || (steps > 0 && durable.trainer().step_count() >= steps);
        let mut publishes = finished || written.elapsed() >= checkpoint_in;
        // What is published is known to have gone well.
        let outcome = match publishes {
            true => durable.check()?.map(Outcome::WentBack),
            false => Some(durable.step_from(&mut draws)?),
        };
        match outcome {
            Some(Outcome::Stepped(report)) => {
                interval.add(&report);
                smoothed = Some(smoothed.map_or(report.loss, |mean| mean + LOSS_SMOOTHING * (report.loss - mean)));
            }
            Some(Outcome::WentBack(fallback)) => {
                tracing::error!("{part}: {fallback}");
                recorder.event(EventName::WentBack, fallback.step, fallback.to_string());
                smoothed = None;
                draws = draw(&durable)?;
                (finished, publishes) = (false, false);
                // What it went back to may be older than what was published.
                written = Instant::now();
            }
            None => {}
        }
        if finished || snapped.elapsed() >= places.snapshot_every {
            let began = Instant::now();
            if finished {
                durable.settle();
            }
            durable.snapshot()?;
            snapped = Instant::now();
            interval.add_snapshot(snapped - began);
        }
        if publishes {
            let began = Instant::now();
            held_out_loss = durable.trainer().held_out_loss(&held_out, HELD_OUT_SAMPLES)?;
            let step = durable.trainer().step_count();
            let published = durable.publish()?;
            events.blocking_send(TrainerEvent::Checkpoint { part, step, held_out_loss, published })?;
            (written, checkpoint_in) = (Instant::now(), checkpoint_every);
            interval.add_checkpoint(written - began);
        }
        if finished {
            durable.settle();
        }
        if finished || interval.elapsed() >= RECORD_EVERY {
            durable.collect();
            if let Some(mut steps) = interval.end(settings.batch, held_out_loss) {
                steps.snapshot_step = durable.last_snapshot().map(|written| written.step);
                steps.snapshot_problem = durable.snapshot_problem().map(str::to_owned);
                recorder.add(Line::Steps(steps));
            }
        }
        if finished || reported.elapsed() >= REPORT_EVERY {
            let loss = smoothed.unwrap_or(f32::NAN);
            // A report that finds the channel full is dropped: the next one says more.
            let _ = events.try_send(TrainerEvent::Progress(Progress {
                part,
                step: durable.trainer().step_count(),
                loss,
                held_out_loss,
            }));
            reported = Instant::now();
        }
        if finished {
            recorder.event(EventName::Ended, durable.trainer().step_count(), "as it was told to, or finished");
            return Ok(());
        }
    }
}

/// When a trainer makes its first checkpoint, if it makes one `every` so often.
fn first_checkpoint(every: Duration) -> Duration {
    every.mul_f64(FIRST_CHECKPOINT).max(FIRST_CHECKPOINT_MIN).min(every)
}

/// Where training begins, for people.
fn said_of(durable: &Durable) -> String {
    let from = match durable.origin() {
        Origin::Beginning => "anew".to_owned(),
        Origin::Published => "from a published checkpoint".to_owned(),
        Origin::Snapshot { threads } => format!("from this machine's own snapshot, written by {threads} threads"),
    };
    format!("at step {} {from}", durable.trainer().step_count())
}

/// Writes a part's history, and tells the driver what it wrote.
struct Recorder {
    part: Part,
    file: Option<HistoryFile>,
    events: mpsc::Sender<TrainerEvent>,
}

impl Recorder {
    fn open(part: Part, history: &History, events: mpsc::Sender<TrainerEvent>) -> Self {
        let file = history.append(&part.name());
        let file = file.inspect_err(|error| tracing::warn!("the history of {part} is not written: {error}")).ok();
        Self { part, file, events }
    }

    fn event(&mut self, event: EventName, step: u64, message: impl Into<String>) {
        self.add(Line::event(event, step, message));
    }

    fn add(&mut self, line: Line) {
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.add(&line)) {
            tracing::warn!("the history of {} is written no more: {error}", self.part);
            self.file = None;
        }
        // Where the channel is full, the file has it.
        let _ = self.events.try_send(TrainerEvent::Recorded(self.part, line));
    }
}

#[cfg(test)]
mod tests {
    use paris_model::{
        config::ExpertConfig,
        data::Shard,
        objective::Objective,
        text::{HashedText, TextEncoder},
    };
    use paris_protocol::{hash::Hash, manifest::RunId};

    use super::*;
    use crate::{history::summary::Summary, store::DataDir};

    /// A part whose every caption is dropped in favour of one that is no number.
    fn broken_job(folder: &std::path::Path) -> Job {
        let encoder = Arc::new(HashedText { tokens: 2, width: 4 });
        let path = folder.join("shard");
        let shard = Shard::new(4, 4, vec![7; 8 * 48], vec!["grey".to_owned(); 8]).unwrap();
        std::fs::write(&path, shard.write().unwrap()).unwrap();
        let open = || Dataset::open(vec![(path.clone(), 0)], encoder.clone()).unwrap();
        let text = encoder.encode(&[""], &paris_model::Device::Cpu).unwrap();
        let (tokens, pooled) = ((text.tokens * f64::NAN).unwrap(), text.pooled);
        Job {
            part: Part::Expert(0),
            config: PartConfig::Expert(ExpertConfig {
                channels: 3,
                size: 4,
                patch: 2,
                width: 16,
                depth: 1,
                heads: 2,
                text_tokens: 2,
                text_width: 4,
            }),
            settings: TrainSettings {
                batch: 4,
                learning_rate: 1e-3,
                warmup_steps: 1,
                clip: 1.0,
                ema_decay: 0.9,
                caption_drop: 1.0,
                objective: Objective::Velocity,
            },
            key: [1; 32],
            null_text: Text { tokens, pooled },
            published: None,
            published_here: false,
            base: None,
            train: Arc::new(open()),
            held_out: open(),
            steps: 0,
            checkpoint_every: Duration::from_secs(3600),
            compute: Compute { device: DeviceChoice::Cpu, recompute: false },
        }
    }

    #[test]
    fn the_first_checkpoint_comes_sooner_and_never_later_than_the_next() {
        let seconds = |every| first_checkpoint(Duration::from_secs(every)).as_secs();
        assert_eq!([10, 60, 300, 3600].map(seconds), [10, 60, 60, 720]);
    }

    #[test]
    fn a_part_that_goes_on_failing_ends_with_the_reason_in_its_history() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(DataDir::new(folder.path()), RunId(Hash::of(b"run")), Duration::ZERO);
        let (events, mut said) = mpsc::channel(32);
        let _handle = start(broken_job(folder.path()), places.clone(), Memory::new(Some(1 << 30)), events).unwrap();
        let mut recorded = Vec::new();
        let reason = loop {
            match said.blocking_recv().unwrap() {
                TrainerEvent::Recorded(_, line) => recorded.push(line),
                TrainerEvent::Failed(part, reason) => {
                    assert_eq!(part, Part::Expert(0));
                    break reason;
                }
                _ => {}
            }
        };
        assert!(reason.contains("loss NaN") && reason.contains("gives up"), "{reason}");
        let lines = places.history().lines("expert-0").unwrap();
        assert_eq!(lines, recorded);
        let failures = lines.iter().filter(|line| matches!(line, Line::Event(event) if event.is_failure())).count();
        assert_eq!(failures, paris_model::durable::FALLBACKS_MAX as usize);
        let passed_over = |line: &Line| matches!(line, Line::Event(event) if event.message.contains("passed over"));
        assert!(lines.iter().any(passed_over), "{lines:?}");
        let shown = Summary::of(lines).to_string();
        assert!(shown.contains("3 of 3 times"), "{shown}");
    }
}
