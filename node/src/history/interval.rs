//! Adding steps up to an interval.

use std::time::{Duration, Instant};

use paris_model::report::{LossByTime, StepReport};

use super::{Split, Steps, VERSION, now_s};

/// An interval under way.
pub(crate) struct Interval {
    began: Instant,
    step: u64,
    steps: u64,
    loss: f64,
    gradient_norm: f64,
    loss_by_time: LossByTime,
    split: Split,
}

impl Interval {
    pub(crate) fn begin() -> Self {
        let (loss_by_time, split) = (LossByTime::default(), Split::default());
        Self { began: Instant::now(), step: 0, steps: 0, loss: 0.0, gradient_norm: 0.0, loss_by_time, split }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn add(&mut self, step: &StepReport) {
        self.step = step.step;
        self.steps += 1;
        self.loss += f64::from(step.loss);
        self.gradient_norm += f64::from(step.gradient_norm);
        self.split.data += step.durations.data.as_secs_f64();
        self.split.forward += step.durations.forward.as_secs_f64();
        self.split.backward += step.durations.backward.as_secs_f64();
        self.split.optimizer += step.durations.optimizer.as_secs_f64();
        self.loss_by_time.merge(&step.loss_by_time);
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
        Some(Steps {
            version: VERSION,
            time_s: now_s(),
            step,
            steps,
            seconds,
            loss: (loss / steps as f64) as f32,
            gradient_norm: (gradient_norm / steps as f64) as f32,
            loss_by_time: loss_by_time.means().to_vec(),
            held_out_loss: held_out_loss.is_finite().then_some(held_out_loss),
            samples_per_s: steps as f64 * batch as f64 / seconds,
            split,
            snapshot_step: None,
            snapshot_problem: None,
        })
    }
}
