//! What a step did: its loss, by time as well, and where its time went.

use std::time::{Duration, Instant};

/// Equal parts of the time 0..1 that losses are told apart by.
pub const TIME_BINS: usize = 10;

/// Which of them a time lies in.
pub(crate) fn time_bin(t: f32) -> usize {
    ((t * TIME_BINS as f32) as usize).min(TIME_BINS - 1)
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The batch's loss: mean squared error of what an expert predicts, or cross-entropy of the cluster.
    pub loss: f32,
    /// The same, sample by sample, by the time at which each was learnt from.
    pub loss_by_time: LossByTime,
    /// The gradients' global norm before clipping.
    pub gradient_norm: f32,
    /// Micro-batches that the step was cut into.
    pub micro_batches: usize,
    /// Where its time went.
    pub durations: StepDurations,
}

/// Sums of samples' losses by their time t: bin i is that of i / [`TIME_BINS`] <= t < (i + 1) / [`TIME_BINS`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossByTime {
    sums: [f64; TIME_BINS],
    samples: [u64; TIME_BINS],
}

impl LossByTime {
    /// Counts the loss of a sample at time `t`.
    pub fn add(&mut self, t: f32, loss: f32) {
        let bin = time_bin(t);
        self.sums[bin] += f64::from(loss);
        self.samples[bin] += 1;
    }

    /// Counts all of `other` as well.
    pub fn merge(&mut self, other: &Self) {
        for bin in 0..TIME_BINS {
            self.sums[bin] += other.sums[bin];
            self.samples[bin] += other.samples[bin];
        }
    }

    /// The mean loss in each bin; none where there was no sample.
    pub fn means(&self) -> [Option<f32>; TIME_BINS] {
        std::array::from_fn(|bin| mean(self.sums[bin], self.samples[bin]))
    }

    /// The mean loss of all samples; none where there was none.
    pub fn mean(&self) -> Option<f32> {
        mean(self.sums.iter().sum(), self.samples.iter().sum())
    }
}

fn mean(sum: f64, samples: u64) -> Option<f32> {
    (samples > 0).then(|| (sum / samples as f64) as f32)
}

/// Where a step's time went. A device that computes on its own is not waited for, so there the computation counts where its results are read: in
/// `optimizer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepDurations {
    /// Waiting for draws; making them, where nobody makes them ahead.
    pub data: Duration,
    /// From draws to losses.
    pub forward: Duration,
    /// From losses to summed gradients.
    pub backward: Duration,
    /// Updating parameters and averages.
    pub optimizer: Duration,
}

impl StepDurations {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.data + self.forward + self.backward + self.optimizer
    }
}

/// Runs `work` and adds the time that it took to `spent`.
pub(crate) fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    *spent += started.elapsed();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_in_the_bin_of_their_time() {
        let mut losses = LossByTime::default();
        assert_eq!(losses.mean(), None);
        for (t, loss) in [(0.0, 1.0), (0.0999, 3.0), (0.1, 5.0), (0.999_999_94, 7.0)] {
            losses.add(t, loss);
        }
        let mut twice = losses;
        twice.merge(&losses);
        for losses in [losses, twice] {
            let means = losses.means();
            assert_eq!((means[0], means[1], means[9]), (Some(2.0), Some(5.0), Some(7.0)));
            assert_eq!(means.iter().flatten().count(), 3);
            assert_eq!(losses.mean(), Some(4.0));
        }
    }
}
