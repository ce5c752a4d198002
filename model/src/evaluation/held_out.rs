//! The questions that every model of a part is asked: held-out samples at fixed times with fixed noise, so that answers compare.

use candle_core::{Device, Result};
use serde::{Deserialize, Serialize};

use crate::{
    batch::{Batch, BatchSource, noise_like},
    flow::{Noised, noised},
    random::Stream,
    report::LossByTime,
};

/// Samples that go through a model at once.
const BATCH: usize = 64;

/// Held-out samples, and how often each is asked about.
#[derive(Clone, Copy)]
pub struct HeldOut<'a> {
    /// The samples.
    pub data: &'a dyn BatchSource,
    /// At most so many of them are asked about, evenly over all.
    pub samples: usize,
    /// Times at which each is asked about: one in each of so many equal parts of 0..1.
    pub draws: usize,
    /// What times, noise and draws of latents follow from.
    pub seed: u64,
}

/// A batch of questions.
pub(super) struct Question {
    /// The samples, their latents drawn.
    pub(super) batch: Batch,
    /// Where they are on the path to noise.
    pub(super) point: Noised,
    /// When, 0..1.
    pub(super) times: Vec<f32>,
    /// Their places among those that are asked about.
    pub(super) samples: Vec<usize>,
}

impl HeldOut<'_> {
    /// Questions that will be asked.
    pub fn questions(&self) -> usize {
        self.data.len().min(self.samples) * self.draws
    }

    /// Asks all of them, in an order that does not depend on who is asked.
    pub(super) fn ask(&self, device: &Device, mut asked: impl FnMut(Question) -> Result<()>) -> Result<()> {
        if self.questions() == 0 {
            candle_core::bail!(
                "there are no held-out samples to measure on: prepare the data with a held-out share above 0"
            );
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let count = self.data.len().min(self.samples);
        let all: Vec<usize> = (0..count).collect();
        for samples in all.chunks(BATCH) {
            let indices: Vec<usize> = samples.iter().map(|place| place * self.data.len() / count).collect();
            let undrawn = self.data.batch(&indices, &Device::Cpu)?.to_device(device)?;
            for draw in 0..self.draws {
                let stream =
                    |purpose, place: usize| Stream::new(&key, purpose, (samples[place] * self.draws + draw) as u64);
                let time = |place| (draw as f32 + stream("question time", place).uniform()) / self.draws as f32;
                let times: Vec<f32> = (0..samples.len()).map(time).collect();
                let normals = |purpose| move |place, numbers| stream(purpose, place).normals(numbers);
                let batch = undrawn.clone().drawn(normals("question latent"))?;
                let noise = noise_like(&batch.images, normals("question noise"))?;
                let point = noised(&batch.images, &noise, &times)?;
                asked(Question { batch, point, times, samples: samples.to_vec() })?;
            }
        }
        Ok(())
    }
}

/// A mean, and the same by the time t: as many equal parts of 0..1 as [`TIME_BINS`](crate::report::TIME_BINS).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByTime {
    /// Over all times.
    pub mean: f32,
    /// In each part, t = 0 (picture) first; none where nothing was asked.
    pub bins: Vec<Option<f32>>,
}

impl From<&LossByTime> for ByTime {
    fn from(losses: &LossByTime) -> Self {
        Self { mean: losses.mean().unwrap_or(f32::NAN), bins: losses.means().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::*;
    use crate::batch::Text;

    /// Latents of one number, N(5, 2^2).
    struct Latents;

    impl BatchSource for Latents {
        fn len(&self) -> usize {
            300
        }

        fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
            let of_all = |number: f32| Tensor::full(number, (indices.len(), 1, 1, 1), device);
            let text = Tensor::zeros((indices.len(), 1, 1), DType::F32, device)?;
            Ok(Batch {
                images: of_all(5.0)?,
                spread: Some(of_all(2.0)?),
                text: Text { pooled: text.squeeze(1)?, tokens: text },
                labels: Tensor::zeros(indices.len(), DType::U32, device)?,
            })
        }
    }

    #[test]
    fn latents_are_drawn_anew_for_each_question_and_alike_for_all_who_are_asked() {
        let held_out = HeldOut { data: &Latents, samples: usize::MAX, draws: 4, seed: 3 };
        let ask = || {
            let mut latents = Vec::new();
            let asked = held_out.ask(&Device::Cpu, |question| {
                latents.extend(question.batch.images.flatten_all()?.to_vec1::<f32>()?);
                Ok(())
            });
            asked.unwrap();
            latents
        };
        let latents = ask();
        assert_eq!(latents, ask());
        let mean = latents.iter().sum::<f32>() / latents.len() as f32;
        let variance = latents.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / latents.len() as f32;
        assert!((mean - 5.0).abs() < 0.3 && (variance.sqrt() - 2.0).abs() < 0.2, "N({mean}, {variance})");
    }
}
