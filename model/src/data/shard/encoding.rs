//! What a shard keeps of a picture: its pixels, or the distribution of its latent.

use std::io::Read;

use candle_core::{DType, Device, Tensor};
use half::f16;
use safetensors::tensor::Dtype;

use super::ShardError;

/// Largest log-variance of a latent; larger ones are clamped by `diffusers` too, and would not stay finite.
pub const LOG_VARIANCE_MAX: f32 = 20.0;
/// Most channels of a latent.
pub const CHANNELS_MAX: usize = 64;

pub(super) const PIXELS: &str = "pixels";
pub(super) const MOMENTS: &str = "moments";

/// What a shard keeps of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// u8 RGB `[height, width, 3]`, row by row.
    Pixels,
    /// The distribution of its latent at the scale that experts learn: little-endian f16 `[2 * channels, height, width]`, the means and then
    /// the log-variances. Each time it is drawn, training takes another latent from it.
    Moments {
        /// Channels of the latent.
        channels: usize,
    },
}

impl Encoding {
    /// Bytes that a picture takes.
    pub fn bytes(self, height: usize, width: usize) -> usize {
        match self {
            Self::Pixels => height * width * 3,
            Self::Moments { channels } => height * width * 2 * channels * size_of::<f16>(),
        }
    }

    /// Channels of what experts learn.
    pub fn channels(self) -> usize {
        match self {
            Self::Pixels => 3,
            Self::Moments { channels } => channels,
        }
    }

    /// The tensor of a shard's file that holds the pictures.
    pub(super) fn tensor(self) -> &'static str {
        match self {
            Self::Pixels => PIXELS,
            Self::Moments { .. } => MOMENTS,
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Pixels => Dtype::U8,
            Self::Moments { .. } => Dtype::F16,
        }
    }

    pub(super) fn shape(self, samples: usize, height: usize, width: usize) -> Vec<usize> {
        match self {
            Self::Pixels => vec![samples, height, width, 3],
            Self::Moments { channels } => vec![samples, 2 * channels, height, width],
        }
    }

    /// Refuses moments from which no finite latent could be drawn; every value of a pixel is one.
    pub(super) fn check(
        self,
        pictures: &mut impl Read,
        samples: usize,
        height: usize,
        width: usize,
    ) -> Result<(), ShardError> {
        let Self::Moments { .. } = self else { return Ok(()) };
        let mut picture = vec![0; self.bytes(height, width)];
        for sample in 0..samples {
            pictures.read_exact(&mut picture)?;
            let (means, log_variances) = picture.split_at(picture.len() / 2);
            let fine = numbers(means).all(f32::is_finite)
                && numbers(log_variances).all(|it| it <= LOG_VARIANCE_MAX && it.is_finite());
            if !fine {
                return Err(ShardError::Latent(sample));
            }
        }
        Ok(())
    }

    /// Adds a picture's bytes to `images` as an expert learns them, channel by channel: pixels in -1..1, or the means of its latent, with the
    /// standard deviations in `spread`.
    pub(in crate::data) fn decode(self, picture: &[u8], images: &mut Vec<f32>, spread: &mut Vec<f32>) {
        match self {
            Self::Pixels => {
                for channel in 0..3 {
                    images.extend(picture[channel..].iter().step_by(3).map(|value| f32::from(*value) / 127.5 - 1.0));
                }
            }
            Self::Moments { .. } => {
                let (means, log_variances) = picture.split_at(picture.len() / 2);
                images.extend(numbers(means));
                spread.extend(numbers(log_variances).map(|log_variance| (0.5 * log_variance).exp()));
            }
        }
    }
}

/// Moments `[n, 2 * channels, height, width]` as a shard keeps them; log-variances are clamped to what it may hold.
pub fn moment_bytes(moments: &Tensor) -> candle_core::Result<Vec<u8>> {
    let (_, numbers, _, _) = moments.dims4()?;
    let moments = moments.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let means = moments.narrow(1, 0, numbers / 2)?;
    let log_variances = moments.narrow(1, numbers / 2, numbers - numbers / 2)?.clamp(-30f32, LOG_VARIANCE_MAX)?;
    let joined = Tensor::cat(&[means, log_variances], 1)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(joined.into_iter().flat_map(|number| f16::from_f32(number).to_le_bytes()).collect())
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|two| f16::from_le_bytes(*two).to_f32())
}
