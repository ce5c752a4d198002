//! What a block does: self-attention, cross-attention and an MLP, each with its residual; and the final layer.
//!
//! Here stands the mathematics, composed of [`crate::operations`] that run and differentiate on any device. On the CPU the same is done by one fused
//! operation each ([`crate::fused`]), over the flat group of the sublayer's parameters; tests hold the two equal.

use candle_core::{Result, Tensor};

use crate::{
    fused,
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
    group: Option<Tensor>,
}

impl SelfAttention {
    pub(crate) fn new(parameters: &Parameters, block: &str, heads: usize) -> Result<Self> {
        let name = format!("{block}.attn");
        let (weight, bias) = input_projection(parameters, &name)?;
        let output = Linear::named(parameters, &format!("{name}.out_proj"))?;
        Ok(Self { input: Linear::new(weight, bias), output, heads, group: parameters.group(&name) })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match &self.group {
            Some(group) if fused::fits(x) => {
                fused::apply(fused::SelfAttention { heads: self.heads }, x, modulation, group)
            }
            _ => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
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
    group: Option<Tensor>,
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
            group: parameters.group(&name),
        })
    }

    /// `x` `[B,T,W]`, `text` `[B,S,W]`.
    pub(crate) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        match &self.group {
            Some(group) if fused::fits(x) => fused::apply(fused::CrossAttention { heads: self.heads }, x, text, group),
            _ => self.composed(x, text),
        }
    }

    fn composed(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let mixed = attend(&self.query.forward(x)?, &self.key_value.forward(text)?, self.heads)?;
        x + self.output.forward(&mixed)?
    }
}

/// x + gate Linear(GELU(Linear(LN(x) (1 + scale) + shift)))
pub(crate) struct Mlp {
    inner: Linear,
    outer: Linear,
    group: Option<Tensor>,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, block: &str) -> Result<Self> {
        let name = format!("{block}.mlp");
        Ok(Self {
            inner: Linear::named(parameters, &format!("{name}.0"))?,
            outer: Linear::named(parameters, &format!("{name}.2"))?,
            group: parameters.group(&name),
        })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,3,W]`: shift, scale, gate.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match &self.group {
            Some(group) if fused::fits(x) => fused::apply(fused::Mlp, x, modulation, group),
            _ => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let h = modulate(x, modulation)?;
        let y = self.outer.forward(&gelu(&self.inner.forward(&h)?)?)?;
        gated(x, &y, modulation)
    }
}

/// Linear(LN(x) (1 + scale) + shift)
pub(crate) struct Final {
    linear: Linear,
    group: Option<Tensor>,
}

impl Final {
    pub(crate) fn new(parameters: &Parameters) -> Result<Self> {
        let name = "final_layer.linear";
        Ok(Self { linear: Linear::named(parameters, name)?, group: parameters.group(name) })
    }

    /// `x` `[B,T,W]`, `modulation` `[B,2,W]`: shift, scale.
    pub(crate) fn forward(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        match &self.group {
            Some(group) if fused::fits(x) => {
                fused::apply(fused::Final { output: self.linear.weight().dim(0)? }, x, modulation, group)
            }
            _ => self.composed(x, modulation),
        }
    }

    fn composed(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        self.linear.forward(&modulate(x, modulation)?)
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
