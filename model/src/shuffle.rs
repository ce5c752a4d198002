//! The order of an epoch: a keyed permutation that is evaluated at a place, so that no list of a million samples is made or kept.
//!
//! A Feistel network (Luby and Rackoff, 1988) permutes the numbers below the next power of four; what falls outside the samples is permuted again until
//! it falls inside (cycle walking; Black and Rogaway, 2002), which on average takes under four turns.

use crate::random::Stream;

/// Rounds of the network. Four are proven enough where the rounds are random; halves of a few bits need more to look so.
const ROUNDS: usize = 8;

/// A random order of `len` samples.
#[derive(Debug, Clone)]
pub struct Shuffle {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Shuffle {
    /// The order of `len` samples that follows from a key and the number of the epoch.
    pub fn new(key: &[u8; 32], epoch: u64, len: usize) -> Self {
        let mut stream = Stream::new(key, "epoch", epoch);
        let bits = (len as u64).saturating_sub(1).checked_ilog2().map_or(0, |log| log + 1);
        Self { len: len as u64, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| stream.bits()) }
    }

    /// The sample at `place`: every place below the number of samples has another one.
    ///
    /// # Panics
    /// If `place` is not below the number of samples.
    pub fn at(&self, place: usize) -> usize {
        let mut number = place as u64;
        assert!(number < self.len, "place {place} in an order of {}", self.len);
        loop {
            number = self.permute(number);
            if number < self.len {
                return number as usize;
            }
        }
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mixed(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input moves every bit of the output.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [5; 32];

    fn order(epoch: u64, len: usize) -> Vec<usize> {
        let shuffle = Shuffle::new(&KEY, epoch, len);
        (0..len).map(|place| shuffle.at(place)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_sample_comes_once(len in 1usize..3000, epoch: u64) {
            let mut order = order(epoch, len);
            order.sort_unstable();
            prop_assert_eq!(order, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn places_of_a_huge_set_stay_within_it_and_apart(len in 1usize << 40..1 << 60, place: prop::sample::Index, epoch: u64) {
            let shuffle = Shuffle::new(&KEY, epoch, len);
            let (one, other) = (place.index(len), place.index(len - 1) + 1);
            prop_assert!(shuffle.at(one) < len);
            prop_assert_eq!(shuffle.at(one) == shuffle.at(other), one == other);
        }
    }

    #[test]
    fn each_epoch_and_key_has_an_order_of_its_own() {
        assert_eq!(order(3, 50), order(3, 50));
        assert_ne!(order(3, 50), order(4, 50));
        let other_key: Vec<_> = (0..50).map(|place| Shuffle::new(&[6; 32], 3, 50).at(place)).collect();
        assert_ne!(order(3, 50), other_key);
    }

    /// Chi-squared over many epochs: any sample may stand at any place, and neighbours say nothing of each other. The bounds are five standard
    /// deviations.
    #[test]
    fn orders_look_random() {
        const EPOCHS: u64 = 4000;
        for len in [2usize, 3, 5, 8, 13] {
            let mut at_place = vec![0u32; len * len];
            let mut gaps = vec![0u32; len - 1];
            for epoch in 0..EPOCHS {
                let order = order(epoch, len);
                for (place, sample) in order.iter().enumerate() {
                    at_place[place * len + sample] += 1;
                }
                gaps[(order[1] + len - order[0]) % len - 1] += 1;
            }
            let excess = |counts: &[u32], freedom: usize| {
                let expected = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
                let chi: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
                (chi - freedom as f64) / (2.0 * freedom.max(1) as f64).sqrt()
            };
            let (places, gaps) = (excess(&at_place, (len - 1) * (len - 1)), excess(&gaps, len - 2));
            assert!(places < 5.0 && gaps < 5.0, "{len} samples: {places} and {gaps} standard deviations");
        }
    }
}
