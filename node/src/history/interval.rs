//! Adding steps up to an interval.

use std::time::{Duration, Instant};

use paris_model::trainer::StepReport;

use super::{Split, Steps, TIME_BINS, VERSION, now_s};

/// What one step adds to an interval.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepMeasures {
    pub(crate) step: u64,
    pub(crate) loss: f32,
    pub(crate) gradient_norm: f32,
    /// Waiting for and drawing the batch.
    pub(crate) data: Duration,
    pub(crate) forward: Duration,
    pub(crate) backward: Duration,
    pub(crate) optimizer: Duration,
    /// Sums of the samples' losses and their number, by the time t of the noising; empty where not measured.
    pub(crate) loss_by_time: Vec<(f32, u32)>,
}

impl From<&StepReport> for StepMeasures {
    fn from(report: &StepReport) -> Self {
        Self { step: report.step, loss: report.loss, gradient_norm: report.gradient_norm, ..Self::default() }
    }
}

/// An interval under way.
pub(crate) struct Interval {
    began: Instant,
    step: u64,
    steps: u64,
    loss: f64,
    gradient_norm: f64,
    loss_by_time: [(f64, u64); TIME_BINS],
    split: Split,
}

impl Interval {
    pub(crate) fn begin() -> Self {
        let loss_by_time = [(0.0, 0); TIME_BINS];
        let split = Split::default();
        Self { began: Instant::now(), step: 0, steps: 0, loss: 0.0, gradient_norm: 0.0, loss_by_time, split }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn add(&mut self, step: &StepMeasures) {
        self.step = step.step;
        self.steps += 1;
        self.loss += f64::from(step.loss);
        self.gradient_norm += f64::from(step.gradient_norm);
        self.split.data += step.data.as_secs_f64();
        self.split.forward += step.forward.as_secs_f64();
        self.split.backward += step.backward.as_secs_f64();
        self.split.optimizer += step.optimizer.as_secs_f64();
        for ((sum, count), (more, samples)) in self.loss_by_time.iter_mut().zip(&step.loss_by_time) {
            *sum += f64::from(*more);
            *count += u64::from(*samples);
        }
    }

    pub(crate) fn add_snapshot(&mut self, time: Duration) {
        self.split.snapshot += time.as_secs_f64();
    }

    pub(crate) fn add_checkpoint(&mut self, time: Duration) {
        self.split.checkpoint += time.as_secs_f64();
    }

    /// The interval so far, and another begun. None where nothing was done.
    pub(crate) fn end(&mut self, batch: usize, held_out_loss: f32) -> Option<Steps> {
        let Self { began, step, steps, loss, gradient_norm, loss_by_time, mut split } =
            std::mem::replace(self, Self::begin());
        let seconds = began.elapsed().as_secs_f64();
        if steps == 0 {
            return None;
        }
        let known: f64 = split.named().into_iter().map(|(_, seconds)| seconds).sum();
        split.other = (seconds - known).max(0.0);
        let measured = loss_by_time.iter().any(|(_, count)| *count > 0);
        let by_time = loss_by_time.map(|(sum, count)| (count > 0).then(|| (sum / count as f64) as f32));
        Some(Steps {
            version: VERSION,
            time_s: now_s(),
            step,
            steps,
            seconds,
            loss: (loss / steps as f64) as f32,
            gradient_norm: (gradient_norm / steps as f64) as f32,
            loss_by_time: if measured { by_time.to_vec() } else { Vec::new() },
            held_out_loss: held_out_loss.is_finite().then_some(held_out_loss),
            samples_per_s: steps as f64 * batch as f64 / seconds,
            split,
            snapshot_step: None,
            snapshot_problem: None,
        })
    }
}
