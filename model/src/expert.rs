//! The expert: a diffusion transformer that predicts the velocity of one cluster's flow (paper, section on experts).

use candle_core::{Result, Tensor};

use crate::{
    config::ExpertConfig,
    layers::{Attention, Linear, Mlp, PatchEmbedding, TimeEmbedding, chunks, gated, modulate},
    parameters::Parameters,
};

/// An expert with its parameters.
pub struct Expert {
    config: ExpertConfig,
    patches: PatchEmbedding,
    time: TimeEmbedding,
    text: Linear,
    /// adaLN-single: one projection of the time for all blocks.
    shared_modulation: Linear,
    blocks: Vec<Block>,
    last: FinalLayer,
}

struct Block {
    /// What this block adds to the shared modulation, `[6,W]`.
    table: Tensor,
    attention: Attention,
    cross_attention: Attention,
    mlp: Mlp,
}

struct FinalLayer {
    table: Tensor,
    linear: Linear,
}

impl Expert {
    /// An expert over `parameters`; gradients flow to those that are variables.
    pub fn new(config: &ExpertConfig, parameters: &Parameters) -> Result<Self> {
        let block = |layer: usize| {
            let name = format!("layers.{layer}");
            Ok(Block {
                table: parameters.get(&format!("{name}.scale_shift_table"))?,
                attention: Attention::new(parameters, &format!("{name}.attn"), config.heads)?,
                cross_attention: Attention::new(parameters, &format!("{name}.cross_attn"), config.heads)?,
                mlp: Mlp::new(parameters, &name)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            time: TimeEmbedding::new(parameters)?,
            text: Linear::new(parameters, "text_proj")?,
            shared_modulation: Linear::new(parameters, "t_block.1")?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            last: FinalLayer {
                table: parameters.get("final_layer.scale_shift_table")?,
                linear: Linear::new(parameters, "final_layer.linear")?,
            },
        })
    }

    /// The shapes.
    pub fn config(&self) -> &ExpertConfig {
        &self.config
    }

    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `text` `[B,T,D]` to the velocity `[B,C,S,S]`.
    pub fn forward(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let mut h = self.patches.forward(x)?;
        let time = self.time.forward(t)?;
        let shared = self.shared_modulation.forward(&time.silu()?)?.reshape((x.dim(0)?, 6, self.config.width))?;
        let text = self.text.forward(text)?;
        for block in &self.blocks {
            h = block.forward(&h, &shared, &text)?;
        }
        self.unpatchify(&self.last.forward(&h, &time)?)
    }

    /// `[B,(S/P)^2,P P C]` to `[B,C,S,S]`: "nhwpqc -> nchpwq".
    fn unpatchify(&self, h: &Tensor) -> Result<Tensor> {
        let ExpertConfig { channels, size, patch, .. } = self.config;
        let (batch, side) = (h.dim(0)?, size / patch);
        let h = h.reshape(vec![batch, side, side, patch, patch, channels])?;
        h.permute(vec![0, 5, 1, 3, 2, 4])?.contiguous()?.reshape((batch, channels, size, size))
    }
}

impl Block {
    fn forward(&self, x: &Tensor, shared: &Tensor, text: &Tensor) -> Result<Tensor> {
        let modulation = shared.broadcast_add(&self.table)?;
        let [shift_a, scale_a, gate_a, shift_m, scale_m, gate_m] = chunks(&modulation)?;
        let h = modulate(x, &shift_a, &scale_a)?;
        let x = gated(x, &gate_a, &self.attention.forward(&h, &h)?)?;
        let x = (&x + self.cross_attention.forward(&x, text)?)?;
        gated(&x, &gate_m, &self.mlp.forward(&modulate(&x, &shift_m, &scale_m)?)?)
    }
}

impl FinalLayer {
    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let modulation = time.unsqueeze(1)?.broadcast_add(&self.table)?;
        let [shift, scale] = chunks(&modulation)?;
        self.linear.forward(&modulate(x, &shift, &scale)?)
    }
}
