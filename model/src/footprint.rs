//! How much memory a step takes, and the largest micro-batch that fits. Plain arithmetic: who measures, and what there is, the caller says.

/// What a step takes beside what the trainer holds between steps, in bytes: a fixed part, and a part for each sample of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Whatever the micro-batch.
    pub fixed_bytes: u64,
    /// For each sample of it.
    pub sample_bytes: u64,
}

/// The most memory that a step of so many samples took, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Samples of the micro-batch.
    pub samples: usize,
    /// Bytes at the peak, beyond what was taken before.
    pub bytes: u64,
}

impl Footprint {
    /// The line through two peaks. Where they give none (they are of one size, or the larger took no more), all counts as the samples' own, so that what
    /// is not known is held against them.
    pub fn from_peaks(small: Peak, large: Peak) -> Self {
        let (more_samples, more_bytes) =
            (large.samples.saturating_sub(small.samples), large.bytes.saturating_sub(small.bytes));
        if more_samples == 0 || more_bytes == 0 {
            let sample_bytes = small.bytes.max(large.bytes).div_ceil(small.samples.max(1) as u64).max(1);
            return Self { fixed_bytes: 0, sample_bytes };
        }
        let sample_bytes = more_bytes.div_ceil(more_samples as u64);
        Self {
            fixed_bytes: small.bytes.saturating_sub(sample_bytes.saturating_mul(small.samples as u64)),
            sample_bytes,
        }
    }

    /// Bytes of a step in micro-batches of so many samples.
    pub fn bytes(&self, samples: usize) -> u64 {
        self.fixed_bytes.saturating_add(self.sample_bytes.saturating_mul(samples as u64))
    }

    /// The largest micro-batch for a step of `batch` samples in `budget_bytes`: the whole, or else a power of two. None if not even one sample fits.
    pub fn micro_batch(&self, batch: usize, budget_bytes: u64) -> Option<usize> {
        micro_batches(batch).find(|samples| self.bytes(*samples) <= budget_bytes)
    }
}

/// The micro-batches that a step of `batch` samples is cut into, the largest first: the whole, then each power of two below it.
pub fn micro_batches(batch: usize) -> impl Iterator<Item = usize> {
    let powers = (0..usize::BITS).rev().map(|power| 1 << power).filter(move |samples| *samples < batch);
    [batch].into_iter().chain(powers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peak(samples: usize, bytes: u64) -> Peak {
        Peak { samples, bytes }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_line_goes_through_both_peaks(fixed in 0u64..1 << 40, sample in 1u64..1 << 40, small in 1usize..100, more in 1usize..100) {
            let exact = Footprint { fixed_bytes: fixed, sample_bytes: sample };
            let at = |samples| peak(samples, exact.bytes(samples));
            prop_assert_eq!(Footprint::from_peaks(at(small), at(small + more)), exact);
        }

        #[test]
        fn no_measurement_promises_less_than_the_larger_peak(a in 1usize..100, more in 0usize..100, bytes: [u32; 2]) {
            let (small, large) = (peak(a, bytes[0].into()), peak(a + more, bytes[1].into()));
            prop_assert!(Footprint::from_peaks(small, large).bytes(large.samples) >= large.bytes);
        }

        #[test]
        fn the_micro_batch_fits_and_twice_as_much_does_not(
            fixed in 0u64..1000, sample in 1u64..1000, batch in 1usize..100_000, budget in 0u64..10_000_000,
        ) {
            let footprint = Footprint { fixed_bytes: fixed, sample_bytes: sample };
            match footprint.micro_batch(batch, budget) {
                None => prop_assert!(footprint.bytes(1) > budget),
                Some(samples) => {
                    prop_assert!((1..=batch).contains(&samples) && footprint.bytes(samples) <= budget);
                    let twice_is_too_much = footprint.bytes((2 * samples).min(batch)) > budget;
                    prop_assert!(samples == batch || samples.is_power_of_two() && twice_is_too_much);
                }
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let footprint = Footprint::from_peaks(peak(0, u64::MAX), peak(usize::MAX, u64::MAX));
        assert_eq!(footprint.micro_batch(usize::MAX, 1), None);
        assert_eq!(Footprint::from_peaks(peak(1, 0), peak(1, 0)).micro_batch(5, 5), Some(5));
    }
}
