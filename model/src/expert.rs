//! The expert: a diffusion transformer of one cluster that predicts the velocity of its flow (paper, section on experts), or the noise
//! ([`objective`](crate::objective)).

use candle_core::{DType, Result, Tensor};

use crate::{
    config::ExpertConfig,
    embeddings::{PatchEmbedding, TimeEmbedding},
    operations::Linear,
    parameters::Parameters,
    trunk::{BLOCK_ROWS, Trunk},
};

/// An expert with its parameters.
pub struct Expert {
    config: ExpertConfig,
    patches: PatchEmbedding,
    time: TimeEmbedding,
    text: Linear,
    /// adaLN-single: one projection of the time for all blocks.
    shared_modulation: Linear,
    /// What each block adds to it, `[6,W]`.
    tables: Vec<Tensor>,
    /// What the final layer adds to the time, `[2,W]`.
    final_table: Tensor,
    trunk: Trunk,
}

impl Expert {
    /// An expert over `parameters`; gradients flow to those that are variables.
    pub fn new(config: &ExpertConfig, parameters: &Parameters) -> Result<Self> {
        let table = |layer: usize| parameters.get(&format!("layers.{layer}.scale_shift_table"));
        Ok(Self {
            config: config.clone(),
            patches: PatchEmbedding::new(parameters, config.patch)?,
            time: TimeEmbedding::new(parameters)?,
            text: Linear::named(parameters, "text_proj")?,
            shared_modulation: Linear::named(parameters, "t_block.1")?,
            tables: (0..config.depth).map(table).collect::<Result<_>>()?,
            final_table: parameters.get("final_layer.scale_shift_table")?,
            trunk: Trunk::of_expert(parameters, config.depth, config.heads)?,
        })
    }

    /// Whether to keep of a sublayer only what it read, for gradients, and to run it again for them.
    pub(crate) fn set_recompute(&mut self, recompute: bool) {
        self.trunk.set_recompute(recompute);
    }

    /// The shapes.
    pub fn config(&self) -> &ExpertConfig {
        &self.config
    }

    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `text` `[B,T,D]` to what it predicts `[B,C,S,S]`; all f32, whatever the parameters' precision.
    pub fn forward(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let h = self.patches.forward(x)?;
        let time = self.time.forward(t)?;
        let shared =
            self.shared_modulation.forward(&time.silu()?)?.reshape((x.dim(0)?, BLOCK_ROWS, self.config.width))?;
        // Modulations are f32 (see `operations`).
        let (time, shared) = (time.to_dtype(DType::F32)?.unsqueeze(1)?, shared.to_dtype(DType::F32)?);
        let mut modulations = Vec::with_capacity(self.tables.len() + 1);
        for table in &self.tables {
            modulations.push(shared.broadcast_add(&table.to_dtype(DType::F32)?)?);
        }
        modulations.push(time.broadcast_add(&self.final_table.to_dtype(DType::F32)?)?);
        let h = self.trunk.forward(&h, &modulations, Some(&self.text.forward(text)?))?;
        self.unpatchify(&h.to_dtype(DType::F32)?)
    }

    /// `[B,(S/P)^2,P P C]` to `[B,C,S,S]`: "nhwpqc -> nchpwq".
    fn unpatchify(&self, h: &Tensor) -> Result<Tensor> {
        let ExpertConfig { channels, size, patch, .. } = self.config;
        let (batch, side) = (h.dim(0)?, size / patch);
        let h = h.reshape(vec![batch, side, side, patch, patch, channels])?;
        h.permute(vec![0, 5, 1, 3, 2, 4])?.contiguous()?.reshape((batch, channels, size, size))
    }
}
