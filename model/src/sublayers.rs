//! What a block does: self-attention, cross-attention and an MLP, each with its residual; and the final layer.
//!
//! Here stands the mathematics, composed of [`crate::operations`] that run and differentiate on any device. On the CPU all of a model's sublayers are one
//! operation that says the same over slices ([`crate::fused`]); the tests of [`crate::trunk`] hold the two equal.

use candle_core::{Result, Tensor};

use crate::{
    operations::{Linear, attend, attend_within, gated, gelu, modulate},
    parameters::Parameters,
};

/// Added to the variance in every block's LayerNorm, as in DiT.
pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-6;

/// x + gate Attention(LN(x) (1 + scale) + shift)
pub(crate) struct SelfAttention {
    /// One joint projection to query, key and value, in this order.
    input: Linear,
    output: Linear,
    heads: usize,
}

impl SelfAttention {
    pub(crate) fn new(parameters: &Parameters, block: &str, heads: usize) -> Result<Self> {
        let name = format!("{block}.attn");
        let (weight, bias) = input_projection(parameters, &name)?;
        let output = Linear::named(parameters, &format!("{name}.out_proj"))?;
        Ok(Self { input: Linear::new(weight, bias), output, heads })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let h = modulate(x, modulation)?;
        let mixed = attend_within(&self.input.forward(&h)?, self.heads)?;
        gated(x, &self.output.forward(&mixed)?, modulation)
    }
}

/// Weight and bias of an attention's joint projection.
fn input_projection(parameters: &Parameters, name: &str) -> Result<(Tensor, Tensor)> {
    Ok((parameters.get(&format!("{name}.in_proj_weight"))?, parameters.get(&format!("{name}.in_proj_bias"))?))
}

/// x + Attention(x, text)
pub(crate) struct CrossAttention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    heads: usize,
}

impl CrossAttention {
    pub(crate) fn new(parameters: &Parameters, block: &str, heads: usize) -> Result<Self> {
        let name = format!("{block}.cross_attn");
        let (weight, bias) = input_projection(parameters, &name)?;
        let width = weight.dim(1)?;
        let rows = |start: usize, count: usize| -> Result<Linear> {
            Ok(Linear::new(weight.narrow(0, start, count)?, bias.narrow(0, start, count)?))
        };
        Ok(Self {
            query: rows(0, width)?,
            key_value: rows(width, 2 * width)?,
            output: Linear::named(parameters, &format!("{name}.out_proj"))?,
            heads,
        })
    }

    /// `x` `[B,T,W]`, `text` `[B,S,W]`.
    pub(crate) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let mixed = attend(&self.query.forward(x)?, &self.key_value.forward(text)?, self.heads)?;
        x + self.output.forward(&mixed)?
    }
}

/// x + gate Linear(GELU(Linear(LN(x) (1 + scale) + shift)))
pub(crate) struct Mlp {
    inner: Linear,
    outer: Linear,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, block: &str) -> Result<Self> {
        let name = format!("{block}.mlp");
        Ok(Self {
            inner: Linear::named(parameters, &format!("{name}.0"))?,
            outer: Linear::named(parameters, &format!("{name}.2"))?,
        })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let h = modulate(x, modulation)?;
        let y = self.outer.forward(&gelu(&self.inner.forward(&h)?)?)?;
        gated(x, &y, modulation)
    }
}

/// Linear(LN(x) (1 + scale) + shift)
pub(crate) struct Final {
    linear: Linear,
}

impl Final {
    /// Numbers of a token in the output.
    pub(crate) fn output_width(&self) -> Result<usize> {
        self.linear.weight().dim(0)
    }

    pub(crate) fn new(parameters: &Parameters) -> Result<Self> {
        let name = "final_layer.linear";
        Ok(Self { linear: Linear::named(parameters, name)? })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,2,W]`: shift, scale.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        self.linear.forward(&modulate(x, modulation)?)
    }
}
