//! What training reads: batches of pictures with captions and cluster labels.

use candle_core::{Device, Result, Tensor};

/// Encoded captions: the tokens that experts attend to, and one pooled vector that a text-aware router reads.
#[derive(Debug, Clone)]
pub struct Text {
    /// Token vectors, `[batch, tokens, width]`, f32.
    pub tokens: Tensor,
    /// One vector a caption, `[batch, width]`, f32.
    pub pooled: Tensor,
}

impl Text {
    /// The same captions on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self { tokens: self.tokens.to_device(device)?, pooled: self.pooled.to_device(device)? })
    }
}

/// A batch of samples on one device.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Clean pictures or latents x_0, `[batch, channels, size, size]`, f32; pictures lie in -1..1. Where a spread is given, the means of latents.
    pub images: Tensor,
    /// Standard deviations of latents around `images`, of the same shape; nothing where `images` are x_0 themselves.
    pub spread: Option<Tensor>,
    /// Their captions.
    pub text: Text,
    /// The cluster of each, `[batch]`, u32.
    pub labels: Tensor,
}

impl Batch {
    /// The same samples with latents drawn from their distribution: x_0 = mean + deviation * eps. `normals` gives the eps of a sample, as many
    /// numbers as it is asked for; it is not asked where x_0 is known.
    pub fn drawn(self, normals: impl FnMut(usize, usize) -> Vec<f32>) -> Result<Self> {
        let Some(spread) = &self.spread else { return Ok(self) };
        let images = (&self.images + (spread * noise_like(&self.images, normals)?)?)?;
        Ok(Self { images, spread: None, ..self })
    }

    /// The same samples on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            images: self.images.to_device(device)?,
            spread: self.spread.as_ref().map(|spread| spread.to_device(device)).transpose()?,
            text: self.text.to_device(device)?,
            labels: self.labels.to_device(device)?,
        })
    }
}

/// Noise of the shape of `images`; `normals` gives the numbers of a sample, as many as it is asked for.
pub(crate) fn noise_like(images: &Tensor, mut normals: impl FnMut(usize, usize) -> Vec<f32>) -> Result<Tensor> {
    let samples = images.dim(0)?;
    let numbers = images.elem_count() / samples.max(1);
    let noise = (0..samples).flat_map(|sample| normals(sample, numbers)).collect();
    Tensor::from_vec(noise, images.shape(), images.device())
}

/// Samples that can be drawn by index; the trainer decides which, so that every draw follows from (run, part, step).
pub trait BatchSource {
    /// Number of samples.
    fn len(&self) -> usize;

    /// True where there is nothing to draw.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of `indices` (each below [`len`](Self::len)), in that order.
    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch>;
}
