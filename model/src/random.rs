//! The randomness of training and drawing: a counter-based generator.
//!
//! A [`Stream`] follows from a key, a purpose and a counter (usually the step), so any draw can be made again by anyone, in any order, without
//! the draws before it. candle's own generator cannot be seeded and is not used.
//! Only the [clustering](crate::data::kmeans) has a generator of its own, which follows from its seed.

use candle_core::{Device, Result, Shape, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A stream of numbers.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `purpose` at `counter` under `key`.
    pub fn new(key: &[u8; 32], purpose: &str, counter: u64) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(purpose.as_bytes());
        let mut generator = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        generator.set_stream(counter);
        Self(generator)
    }

    /// The stream of a plain number, for whoever samples or tests.
    pub fn seeded(seed: u64, purpose: &str) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self::new(&key, purpose, 0)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in 0..1, with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0..`bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The bias of a 64-bit product is under bound / 2^64: not measurable.
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Two standard normal numbers (Box and Muller, 1958).
    fn normal_pair(&mut self) -> (f32, f32) {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - f64::from(self.uniform())).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(self.uniform())).sin_cos();
        ((radius * cos) as f32, (radius * sin) as f32)
    }

    /// `count` standard normal numbers.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(count + 1);
        while numbers.len() < count {
            let (first, second) = self.normal_pair();
            numbers.extend([first, second]);
        }
        numbers.truncate(count);
        numbers
    }

    /// A tensor of standard normal numbers.
    pub fn normal_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        Tensor::from_vec(self.normals(shape.elem_count()), shape, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_follow_from_key_purpose_and_counter() {
        let draw = |key, purpose, counter| Stream::new(&[key; 32], purpose, counter).normals(4);
        assert_eq!(draw(1, "noise", 5), draw(1, "noise", 5));
        assert_ne!(draw(1, "noise", 5), draw(2, "noise", 5));
        assert_ne!(draw(1, "noise", 5), draw(1, "time", 5));
        assert_ne!(draw(1, "noise", 5), draw(1, "noise", 6));
    }

    #[test]
    fn normals_have_the_normal_moments() {
        let numbers = Stream::seeded(0, "moments").normals(100_000);
        let moment = |power: i32| numbers.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / numbers.len() as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.15);
    }
}
