//! The router: classifies from a noisy picture which cluster it comes from (paper, section on the router).

use candle_core::{Result, Tensor};

use crate::{
    config::RouterConfig,
    layers::{Attention, Linear, Mlp, PatchEmbedding, TimeEmbedding, chunks, gated, modulate},
    ops::layer_norm,
    parameters::Parameters,
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
    attention: Attention,
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
                modulation: Linear::new(parameters, &format!("{name}.adaLN_modulation.1"))?,
                attention: Attention::new(parameters, &format!("{name}.attn"), config.heads)?,
                mlp: Mlp::new(parameters, &name)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            class_token: parameters.get("cls_token")?,
            time: TimeEmbedding::new(parameters)?,
            caption: config.caption_width.map(|_| Linear::new(parameters, "caption_proj")).transpose()?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            head: Head {
                first: Linear::new(parameters, "head.0")?,
                scale: parameters.get("head.2.weight")?,
                shift: parameters.get("head.2.bias")?,
                last: Linear::new(parameters, "head.4")?,
            },
        })
    }

    /// The shapes.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `caption` `[B,D]` (read only by a router that was made to) to logits `[B,K]`.
    pub fn forward(&self, x: &Tensor, t: &Tensor, caption: &Tensor) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, self.config.width);
        let class = self.class_token.broadcast_as((batch, 1, width))?;
        let mut h = Tensor::cat(&[&class, &self.patches.forward(x)?], 1)?;
        let mut condition = self.time.forward(t)?;
        if let Some(projection) = &self.caption {
            condition = (condition + projection.forward(caption)?)?;
        }
        let condition = condition.silu()?;
        for block in &self.blocks {
            h = block.forward(&h, &condition)?;
        }
        self.head.forward(&h.narrow(1, 0, 1)?.squeeze(1)?)
    }
}

impl Block {
    fn forward(&self, x: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let (batch, _, width) = x.dims3()?;
        let modulation = self.modulation.forward(condition)?.reshape((batch, 6, width))?;
        let [shift_a, scale_a, gate_a, shift_m, scale_m, gate_m] = chunks(&modulation)?;
        let h = modulate(x, &shift_a, &scale_a)?;
        let x = gated(x, &gate_a, &self.attention.forward(&h, &h)?)?;
        gated(&x, &gate_m, &self.mlp.forward(&modulate(&x, &shift_m, &scale_m)?)?)
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
