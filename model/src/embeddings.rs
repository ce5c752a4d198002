//! How a picture and a time enter a model.

use candle_core::{Device, Result, Tensor};

use crate::{config::TIME_FREQUENCIES, operations::Linear, parameters::Parameters};

/// The time, 0..1000, as a vector: Linear, SiLU, Linear of a sinusoid, cosines first.
pub(crate) struct TimeEmbedding {
    inner: Linear,
    outer: Linear,
    frequencies: Tensor,
}

impl TimeEmbedding {
    pub(crate) fn new(parameters: &Parameters) -> Result<Self> {
        let inner = Linear::named(parameters, "time_embed.mlp.0")?;
        let frequencies = frequencies(inner.weight().device())?;
        Ok(Self { inner, outer: Linear::named(parameters, "time_embed.mlp.2")?, frequencies })
    }

    /// `t` `[B]` to `[B,W]`.
    pub(crate) fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let angle = t.unsqueeze(1)?.broadcast_mul(&self.frequencies)?;
        let sinusoid = Tensor::cat(&[angle.cos()?, angle.sin()?], 1)?;
        self.outer.forward(&self.inner.forward(&sinusoid)?.silu()?)
    }
}

/// exp(-ln(10000) i / 128), `[1,128]`.
fn frequencies(device: &Device) -> Result<Tensor> {
    let half = TIME_FREQUENCIES / 2;
    let frequency = |index: usize| (-(10_000f32.ln()) * index as f32 / half as f32).exp();
    Tensor::from_vec((0..half).map(frequency).collect::<Vec<_>>(), (1, half), device)
}

/// A picture cut into patches, each a token: a convolution whose stride is its size, done as one matrix product.
pub(crate) struct PatchEmbedding {
    linear: Linear,
    position: Tensor,
    patch: usize,
}

impl PatchEmbedding {
    pub(crate) fn new(parameters: &Parameters, patch: usize) -> Result<Self> {
        let weight = parameters.get("patch_embed.weight")?;
        let width = weight.dim(0)?;
        let linear = Linear::new(weight.reshape((width, ()))?, parameters.get("patch_embed.bias")?);
        Ok(Self { linear, position: parameters.get("pos_embed")?, patch })
    }

    /// `x` `[B,C,S,S]` to `[B,(S/P)^2,W]`, rows of patches one after the other.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, size, _) = x.dims4()?;
        let (side, patch) = (size / self.patch, self.patch);
        let patches = x.reshape(vec![batch, channels, side, patch, side, patch])?;
        let patches = patches.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        let tokens = patches.reshape((batch, side * side, channels * patch * patch))?;
        self.linear.forward(&tokens)?.broadcast_add(&self.position)
    }
}
