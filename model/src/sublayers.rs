//! What a block does: self-attention, cross-attention and an MLP, each with its residual; and the final layer.
//!
//! Here stands the mathematics, composed of tensor operations that run and differentiate on any device. On the CPU the same is done by one fused
//! operation each ([`crate::fused`]), over the flat group of the sublayer's parameters; tests hold the two equal.

use candle_core::{D, Result, Tensor};
use candle_nn::{Linear, Module, ops::softmax};

use crate::{fused, parameters::Parameters};

/// Added to the variance, as in DiT.
pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-6;

/// The linear layer `name.weight`, `name.bias`.
pub(crate) fn linear(parameters: &Parameters, name: &str) -> Result<Linear> {
    let (weight, bias) = (parameters.get(&format!("{name}.weight"))?, parameters.get(&format!("{name}.bias"))?);
    Ok(Linear::new(weight, Some(bias)))
}

/// LayerNorm over the last dimension, without scale and shift. candle's own has no backward.
pub(crate) fn layer_norm(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + epsilon)?.sqrt()?)
}

/// LN(x) (1 + scale) + shift; `shift` and `scale` are `[B,1,W]`.
fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    layer_norm(x, LAYER_NORM_EPSILON)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

/// Row `index` of a modulation `[B,N,W]`, `[B,1,W]`.
fn row(modulation: &Tensor, index: usize) -> Result<Tensor> {
    modulation.narrow(1, index, 1)
}

/// Multi-head attention with one joint projection for query, key and value, in this order.
struct Attention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    heads: usize,
}

impl Attention {
    fn new(parameters: &Parameters, name: &str, heads: usize) -> Result<Self> {
        let weight = parameters.get(&format!("{name}.in_proj_weight"))?;
        let bias = parameters.get(&format!("{name}.in_proj_bias"))?;
        let width = weight.dim(1)?;
        let part = |start: usize, len: usize| -> Result<Linear> {
            Ok(Linear::new(weight.narrow(0, start, len)?, Some(bias.narrow(0, start, len)?)))
        };
        let output = linear(parameters, &format!("{name}.out_proj"))?;
        Ok(Self { query: part(0, width)?, key_value: part(width, 2 * width)?, output, heads })
    }

    /// `x` `[B,T,W]` attends to `context` `[B,S,W]`.
    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let head = width / self.heads;
        let split = |t: &Tensor| t.reshape((batch, (), self.heads, head))?.transpose(1, 2)?.contiguous();
        let key_value = self.key_value.forward(context)?;
        let query = split(&(self.query.forward(x)? * (head as f64).powf(-0.5))?)?;
        let key = split(&key_value.narrow(D::Minus1, 0, width)?.contiguous()?)?;
        let value = split(&key_value.narrow(D::Minus1, width, width)?.contiguous()?)?;
        let weights = softmax(&query.matmul(&key.transpose(2, 3)?)?, D::Minus1)?;
        let mixed = weights.matmul(&value)?.transpose(1, 2)?.contiguous()?;
        self.output.forward(&mixed.reshape((batch, tokens, width))?)
    }
}

/// x + gate Attention(LN(x) (1 + scale) + shift)
pub(crate) struct SelfAttention {
    attention: Attention,
    group: Tensor,
}

impl SelfAttention {
    pub(crate) fn new(parameters: &Parameters, block: &str, heads: usize) -> Result<Self> {
        let name = format!("{block}.attn");
        Ok(Self { attention: Attention::new(parameters, &name, heads)?, group: parameters.group(&name)? })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match fused::fits(x) {
            true => fused::apply(fused::SelfAttention { heads: self.attention.heads }, x, modulation, &self.group),
            false => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let h = modulate(x, &row(modulation, 0)?, &row(modulation, 1)?)?;
        x + self.attention.forward(&h, &h)?.broadcast_mul(&row(modulation, 2)?)?
    }
}

/// x + Attention(x, text)
pub(crate) struct CrossAttention {
    attention: Attention,
    group: Tensor,
}

impl CrossAttention {
    pub(crate) fn new(parameters: &Parameters, block: &str, heads: usize) -> Result<Self> {
        let name = format!("{block}.cross_attn");
        Ok(Self { attention: Attention::new(parameters, &name, heads)?, group: parameters.group(&name)? })
    }

    /// `x` `[B,T,W]`, `text` `[B,S,W]`.
    pub(crate) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        match fused::fits(x) {
            true => fused::apply(fused::CrossAttention { heads: self.attention.heads }, x, text, &self.group),
            false => self.composed(x, text),
        }
    }

    fn composed(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        x + self.attention.forward(x, text)?
    }
}

/// x + gate Linear(GELU(Linear(LN(x) (1 + scale) + shift)))
pub(crate) struct Mlp {
    inner: Linear,
    outer: Linear,
    group: Tensor,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, block: &str) -> Result<Self> {
        let name = format!("{block}.mlp");
        Ok(Self {
            inner: linear(parameters, &format!("{name}.0"))?,
            outer: linear(parameters, &format!("{name}.2"))?,
            group: parameters.group(&name)?,
        })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match fused::fits(x) {
            true => fused::apply(fused::Mlp, x, modulation, &self.group),
            false => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let h = modulate(x, &row(modulation, 0)?, &row(modulation, 1)?)?;
        // candle's `gelu` is the tanh form.
        let y = self.outer.forward(&self.inner.forward(&h)?.gelu()?)?;
        x + y.broadcast_mul(&row(modulation, 2)?)?
    }
}

/// Linear(LN(x) (1 + scale) + shift)
pub(crate) struct Final {
    linear: Linear,
    group: Tensor,
}

impl Final {
    pub(crate) fn new(parameters: &Parameters) -> Result<Self> {
        let name = "final_layer.linear";
        Ok(Self { linear: linear(parameters, name)?, group: parameters.group(name)? })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,2,W]`: shift, scale.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match fused::fits(x) {
            true => fused::apply(fused::Final { output: self.linear.weight().dim(0)? }, x, modulation, &self.group),
            false => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        self.linear.forward(&modulate(x, &row(modulation, 0)?, &row(modulation, 1)?)?)
    }
}
