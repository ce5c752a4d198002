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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Var};

    use super::*;
    use crate::{
        config::{ExpertConfig, PartConfig},
        random::Stream,
    };

    const BATCH: usize = 5;
    const TOKENS: usize = 6;
    const WIDTH: usize = 24;

    /// Parameters of one block, all random and none zero, so that no term is hidden.
    fn parameters() -> (Parameters, BTreeMap<String, Var>) {
        let config = PartConfig::Expert(ExpertConfig {
            channels: 3,
            size: 4,
            patch: 2,
            width: WIDTH,
            depth: 1,
            heads: 3,
            text_tokens: 4,
            text_width: 8,
        });
        let mut stream = Stream::seeded(1, "parameters");
        let mut random =
            |shape: &Vec<usize>| (stream.normal_tensor(shape.clone(), &Device::Cpu).unwrap() * 0.3).unwrap();
        let tensors = config.shapes().iter().map(|(name, shape)| (name.clone(), random(shape))).collect();
        Parameters::from_tensors(&config, &tensors).unwrap().into_variables().unwrap()
    }

    /// Output and gradients of both forms, on as many threads as there are and on one.
    fn agree(
        rows: usize,
        group: &Var,
        fused: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Sync,
        composed: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) {
        let mut stream = Stream::seeded(2, "inputs");
        let mut random = |rows: usize| {
            let tensor = stream.normal_tensor((BATCH, rows, WIDTH), &Device::Cpu).unwrap();
            Var::from_tensor(&tensor).unwrap()
        };
        let (x, condition) = (random(TOKENS), random(rows));
        let run = |f: &(dyn Fn(&Tensor, &Tensor) -> Result<Tensor> + '_)| {
            let out = f(x.as_tensor(), condition.as_tensor()).unwrap();
            // A loss whose gradient differs everywhere.
            let weight = Stream::seeded(3, "weight").normal_tensor(out.shape().clone(), &Device::Cpu).unwrap();
            let store = (&out * weight).unwrap().sum_all().unwrap().backward().unwrap();
            let gradient = |variable: &Var| store.get(variable).unwrap().clone();
            [gradient(&x), gradient(&condition), gradient(group), out]
        };
        let expected = run(&composed);
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let three_threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        // The third takes forward and backward to different threads.
        let apart = |x: &Tensor, condition: &Tensor| one_thread.install(|| fused(x, condition));
        let found = [one_thread.install(|| run(&fused)), three_threads.install(|| run(&fused)), run(&apart)];
        for found in found {
            for ((found, expected), name) in found.iter().zip(&expected).zip(["x", "condition", "group", "output"]) {
                let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let (difference, scale) = (largest((found - expected).unwrap()), largest(expected.clone()));
                assert!(difference <= 1e-5 * scale, "{name} differs by {difference} of {scale}");
            }
        }
    }

    #[test]
    fn the_fused_self_attention_is_the_composed_one() {
        let (parameters, variables) = parameters();
        let layer = SelfAttention::new(&parameters, "layers.0", 3).unwrap();
        let group = &variables["layers.0.attn"];
        agree(3, group, |x, m| layer.forward(x, m), |x, m| layer.composed(x, m));
    }

    #[test]
    fn the_fused_cross_attention_is_the_composed_one() {
        let (parameters, variables) = parameters();
        let layer = CrossAttention::new(&parameters, "layers.0", 3).unwrap();
        let group = &variables["layers.0.cross_attn"];
        agree(4, group, |x, text| layer.forward(x, text), |x, text| layer.composed(x, text));
    }

    #[test]
    fn the_fused_mlp_is_the_composed_one() {
        let (parameters, variables) = parameters();
        let layer = Mlp::new(&parameters, "layers.0").unwrap();
        agree(3, &variables["layers.0.mlp"], |x, m| layer.forward(x, m), |x, m| layer.composed(x, m));
    }

    #[test]
    fn the_fused_final_layer_is_the_composed_one() {
        let (parameters, variables) = parameters();
        let layer = Final::new(&parameters).unwrap();
        agree(2, &variables["final_layer.linear"], |x, m| layer.forward(x, m), |x, m| layer.composed(x, m));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (parameters, _) = parameters();
        let layer = Mlp::new(&parameters, "layers.0").unwrap();
        let tensor = |rows: usize, width: usize| Tensor::zeros((2, rows, width), candle_core::DType::F32, &Device::Cpu);
        let error = layer.forward(&tensor(6, 16).unwrap(), &tensor(3, 16).unwrap()).unwrap_err();
        assert!(error.to_string().contains("mlp of x [2, 6, 16]"), "{error}");
        assert!(layer.forward(&tensor(6, WIDTH).unwrap(), &tensor(2, WIDTH).unwrap()).is_err());
        assert!(layer.forward(&tensor(0, WIDTH).unwrap(), &tensor(3, WIDTH).unwrap()).is_err());
    }
}
