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
    /// Clean pictures or latents x_0, `[batch, channels, size, size]`, f32; pictures lie in -1..1.
    pub images: Tensor,
    /// Their captions.
    pub text: Text,
    /// The cluster of each, `[batch]`, u32.
    pub labels: Tensor,
}

impl Batch {
    /// The same samples on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            images: self.images.to_device(device)?,
            text: self.text.to_device(device)?,
            labels: self.labels.to_device(device)?,
        })
    }
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
