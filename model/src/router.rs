//! The router: classifies from a noisy picture which cluster it comes from (paper, section on the router).

use candle_core::{DType, Result, Tensor};

use crate::{
    config::RouterConfig,
    embeddings::{PatchEmbedding, TimeEmbedding},
    operations::{Linear, layer_norm},
    parameters::Parameters,
    sublayers::{Mlp, SelfAttention},
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
    blocks: Vec<Block>,
    head: Head,
}

struct Block {
    /// adaLN-zero: this block's own projection of the time.
    modulation: Linear,
    attention: SelfAttention,
    mlp: Mlp,
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
        let block = |layer: usize| {
            let name = format!("layers.{layer}");
            Ok(Block {
                modulation: Linear::named(parameters, &format!("{name}.adaLN_modulation.1"))?,
                attention: SelfAttention::new(parameters, &name, config.heads)?,
                mlp: Mlp::new(parameters, &name)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            class_token: parameters.get("cls_token")?,
            time: TimeEmbedding::new(parameters)?,
            caption: config.caption_width.map(|_| Linear::named(parameters, "caption_proj")).transpose()?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            head: Head {
                first: Linear::named(parameters, "head.0")?,
                scale: parameters.get("head.2.weight")?,
                shift: parameters.get("head.2.bias")?,
                last: Linear::named(parameters, "head.4")?,
            },
        })
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
        let mut h = Tensor::cat(&[&class, &self.patches.forward(x)?], 1)?;
        let mut condition = self.time.forward(t)?;
        if let Some(projection) = &self.caption {
            let Some(caption) = caption else { candle_core::bail!("this router reads captions: it needs one") };
            condition = (condition + projection.forward(caption)?)?;
        }
        let condition = condition.silu()?;
        for block in &self.blocks {
            h = block.forward(&h, &condition)?;
        }
        self.head.forward(&h.narrow(1, 0, 1)?.squeeze(1)?)?.to_dtype(DType::F32)
    }
}

impl Block {
    fn forward(&self, x: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let (batch, _, width) = x.dims3()?;
        let modulation = self.modulation.forward(condition)?.reshape((batch, 6, width))?.to_dtype(DType::F32)?;
        let x = self.attention.forward(x, &modulation.narrow(1, 0, 3)?)?;
        self.mlp.forward(&x, &modulation.narrow(1, 3, 3)?)
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
