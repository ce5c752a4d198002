//! The expert: a diffusion transformer that predicts the velocity of one cluster's flow (paper, section on experts).

use candle_core::{DType, Result, Tensor};

use crate::{
    config::ExpertConfig,
    embeddings::{PatchEmbedding, TimeEmbedding},
    operations::Linear,
    parameters::Parameters,
    sublayers::{CrossAttention, Final, Mlp, SelfAttention},
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
    /// What the final layer adds to the time, `[2,W]`.
    final_table: Tensor,
    last: Final,
}

struct Block {
    /// What this block adds to the shared modulation, `[6,W]`.
    table: Tensor,
    attention: SelfAttention,
    cross_attention: CrossAttention,
    mlp: Mlp,
}

impl Expert {
    /// An expert over `parameters`; gradients flow to those that are variables.
    pub fn new(config: &ExpertConfig, parameters: &Parameters) -> Result<Self> {
        let block = |layer: usize| {
            let name = format!("layers.{layer}");
            Ok(Block {
                table: parameters.get(&format!("{name}.scale_shift_table"))?,
                attention: SelfAttention::new(parameters, &name, config.heads)?,
                cross_attention: CrossAttention::new(parameters, &name, config.heads)?,
                mlp: Mlp::new(parameters, &name)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            time: TimeEmbedding::new(parameters)?,
            text: Linear::named(parameters, "text_proj")?,
            shared_modulation: Linear::named(parameters, "t_block.1")?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            final_table: parameters.get("final_layer.scale_shift_table")?,
            last: Final::new(parameters)?,
        })
    }

    /// The shapes.
    pub fn config(&self) -> &ExpertConfig {
        &self.config
    }

    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `text` `[B,T,D]` to the velocity `[B,C,S,S]`; all f32, whatever the parameters' precision.
    pub fn forward(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let mut h = self.patches.forward(x)?;
        let time = self.time.forward(t)?;
        let shared = self.shared_modulation.forward(&time.silu()?)?.reshape((x.dim(0)?, 6, self.config.width))?;
        // Modulations are f32 (see `operations`).
        let shared = shared.to_dtype(DType::F32)?;
        let text = self.text.forward(text)?;
        for block in &self.blocks {
            h = block.forward(&h, &shared, &text)?;
        }
        let modulation =
            time.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_add(&self.final_table.to_dtype(DType::F32)?)?;
        self.unpatchify(&self.last.forward(&h, &modulation)?.to_dtype(DType::F32)?)
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
    /// `shared` `[B,6,W]`: shift, scale, gate of the attention, then of the MLP.
    fn forward(&self, x: &Tensor, shared: &Tensor, text: &Tensor) -> Result<Tensor> {
        let modulation = shared.broadcast_add(&self.table.to_dtype(DType::F32)?)?;
        let x = self.attention.forward(x, &modulation.narrow(1, 0, 3)?)?;
        let x = self.cross_attention.forward(&x, text)?;
        self.mlp.forward(&x, &modulation.narrow(1, 3, 3)?)
    }
}
