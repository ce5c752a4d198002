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
