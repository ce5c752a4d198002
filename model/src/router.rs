//! The router: classifies from a noisy picture which cluster it comes from (paper, section on the router).

use candle_core::{DType, Result, Tensor};

use crate::{
    config::RouterConfig,
    embeddings::{PatchEmbedding, TimeEmbedding},
    operations::{Linear, layer_norm},
    parameters::Parameters,
    trunk::{BLOCK_ROWS, Trunk},
};

/// Epsilon of the head's LayerNorm.
const HEAD_EPSILON: f64 = 1e-5;

/// A router with its parameters.
pub struct Router {
    config: RouterConfig,
    patches: PatchEmbedding,
    class_token: Tensor,
    time: TimeEmbedding,
    caption: Option<Linear>,
    /// adaLN-zero: each block's own projection of the time.
    modulations: Vec<Linear>,
    trunk: Trunk,
    head: Head,
}

/// Linear, GELU, LayerNorm, GELU, Linear.
struct Head {
    first: Linear,
    scale: Tensor,
    shift: Tensor,
    last: Linear,
}

impl Router {
    /// A router over `parameters`; gradients flow to those that are variables.
    pub fn new(config: &RouterConfig, parameters: &Parameters) -> Result<Self> {
        let modulation = |layer: usize| Linear::named(parameters, &format!("layers.{layer}.adaLN_modulation.1"));
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            class_token: parameters.get("cls_token")?,
            time: TimeEmbedding::new(parameters)?,
            caption: config.caption_width.map(|_| Linear::named(parameters, "caption_proj")).transpose()?,
            modulations: (0..config.depth).map(modulation).collect::<Result<_>>()?,
            trunk: Trunk::of_router(parameters, config.depth, config.heads)?,
            head: Head {
                first: Linear::named(parameters, "head.0")?,
                scale: parameters.get("head.2.weight")?,
                shift: parameters.get("head.2.bias")?,
                last: Linear::named(parameters, "head.4")?,
            },
        })
    }

    /// Whether to keep of a sublayer only what it read, for gradients, and to run it again for them.
    pub(crate) fn set_recompute(&mut self, recompute: bool) {
        self.trunk.set_recompute(recompute);
    }

    /// The shapes.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `caption` `[B,D]` to logits `[B,K]`. A router that was
    /// made to read captions needs one, another ignores it. All f32, whatever the parameters' precision.
    pub fn forward(&self, x: &Tensor, t: &Tensor, caption: Option<&Tensor>) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, self.config.width);
        let class = self.class_token.broadcast_as((batch, 1, width))?;
        let h = Tensor::cat(&[&class, &self.patches.forward(x)?], 1)?;
        let mut condition = self.time.forward(t)?;
        if let Some(projection) = &self.caption {
            let Some(caption) = caption else { candle_core::bail!("this router reads captions: it needs one") };
            condition = (condition + projection.forward(caption)?)?;
        }
        let condition = condition.silu()?;
        let mut modulations = Vec::with_capacity(self.modulations.len());
        for modulation in &self.modulations {
            let modulation = modulation.forward(&condition)?.reshape((batch, BLOCK_ROWS, width))?;
            modulations.push(modulation.to_dtype(DType::F32)?);
        }
        let h = self.trunk.forward(&h, &modulations, None)?;
        self.head.forward(&h.narrow(1, 0, 1)?.squeeze(1)?)?.to_dtype(DType::F32)
    }
}

impl Head {
    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        // The head's GELU is the exact one, by the error function.
        let h = layer_norm(&self.first.forward(h)?.gelu_erf()?, HEAD_EPSILON)?;
        let h = h.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?;
        self.last.forward(&h.gelu_erf()?)
    }
}
