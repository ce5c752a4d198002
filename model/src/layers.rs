//! What experts and routers are made of.

use candle_core::{D, Device, Result, Tensor};

use crate::{
    config::TIME_FREQUENCIES,
    ops::{LAYER_NORM_EPSILON, gelu, layer_norm, softmax},
    parameters::Parameters,
};

/// x W^T + b over the last dimension.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Result<Self> {
        Self::named(parameters, &format!("{name}.weight"), &format!("{name}.bias"))
    }

    fn named(parameters: &Parameters, weight: &str, bias: &str) -> Result<Self> {
        Ok(Self { weight: parameters.get(weight)?, bias: parameters.get(bias)? })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // One product of two matrices, whatever the rank of x.
        let input = x.dim(D::Minus1)?;
        let y = x.reshape(((), input))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(self.weight.dim(0)?);
        y.reshape(shape)
    }
}

/// Multi-head attention with one joint projection for query, key and value, in this order.
pub(crate) struct Attention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    heads: usize,
}

impl Attention {
    pub(crate) fn new(parameters: &Parameters, name: &str, heads: usize) -> Result<Self> {
        let weight = parameters.get(&format!("{name}.in_proj_weight"))?;
        let bias = parameters.get(&format!("{name}.in_proj_bias"))?;
        let width = weight.dim(1)?;
        let slice = |start: usize, len: usize| -> Result<Linear> {
            Ok(Linear { weight: weight.narrow(0, start, len)?, bias: bias.narrow(0, start, len)? })
        };
        let output = Linear::new(parameters, &format!("{name}.out_proj"))?;
        Ok(Self { query: slice(0, width)?, key_value: slice(width, 2 * width)?, output, heads })
    }

    /// `x` `[B,T,W]` attends to `context` `[B,S,W]`.
    pub(crate) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let head = width / self.heads;
        let split = |t: &Tensor| t.reshape((batch, (), self.heads, head))?.transpose(1, 2)?.contiguous();
        let key_value = self.key_value.forward(context)?;
        let query = split(&(self.query.forward(x)? * (head as f64).powf(-0.5))?)?;
        let key = split(&key_value.narrow(D::Minus1, 0, width)?.contiguous()?)?;
        let value = split(&key_value.narrow(D::Minus1, width, width)?.contiguous()?)?;
        let weights = softmax(&query.matmul(&key.transpose(2, 3)?)?)?;
        let mixed = weights.matmul(&value)?.transpose(1, 2)?.contiguous()?;
        self.output.forward(&mixed.reshape((batch, tokens, width))?)
    }
}

/// Linear, GELU (tanh), Linear.
pub(crate) struct Mlp {
    inner: Linear,
    outer: Linear,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Result<Self> {
        Ok(Self {
            inner: Linear::new(parameters, &format!("{name}.mlp.0"))?,
            outer: Linear::new(parameters, &format!("{name}.mlp.2"))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.outer.forward(&gelu(&self.inner.forward(x)?)?)
    }
}

/// The time, 0..1000, as a vector: Linear, SiLU, Linear of a sinusoid, cosines first.
pub(crate) struct TimeEmbedding {
    inner: Linear,
    outer: Linear,
}

impl TimeEmbedding {
    pub(crate) fn new(parameters: &Parameters) -> Result<Self> {
        let inner = Linear::new(parameters, "time_embed.mlp.0")?;
        Ok(Self { inner, outer: Linear::new(parameters, "time_embed.mlp.2")? })
    }

    /// `t` `[B]` to `[B,W]`.
    pub(crate) fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let frequencies = frequencies(t.device())?;
        let angle = t.unsqueeze(1)?.broadcast_mul(&frequencies)?;
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
        let linear = Linear { weight: weight.reshape((width, ()))?, bias: parameters.get("patch_embed.bias")? };
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

/// LN(x) (1 + scale) + shift; `shift` and `scale` are `[B,W]`.
pub(crate) fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scale = (scale.unsqueeze(1)? + 1.0)?;
    layer_norm(x, LAYER_NORM_EPSILON)?.broadcast_mul(&scale)?.broadcast_add(&shift.unsqueeze(1)?)
}

/// x + gate y; `gate` is `[B,W]`.
pub(crate) fn gated(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    x + y.broadcast_mul(&gate.unsqueeze(1)?)?
}

/// `[B,N,W]` cut into its N parts, each `[B,W]`.
pub(crate) fn chunks<const N: usize>(modulation: &Tensor) -> Result<[Tensor; N]> {
    let mut parts = Vec::with_capacity(N);
    for index in 0..N {
        parts.push(modulation.narrow(1, index, 1)?.squeeze(1)?);
    }
    match parts.try_into() {
        Ok(parts) => Ok(parts),
        Err(_) => candle_core::bail!("a modulation has {N} parts"),
    }
}
