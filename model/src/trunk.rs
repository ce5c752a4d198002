//! The trunk of a model: its blocks one after the other, and an expert's final layer.
//!
//! Composed of [`crate::sublayers`] it runs and differentiates on any device. On the CPU it is one operation ([`crate::fused`]) over the flat group of its
//! parameters; tests hold the two equal. In both it may keep less and recompute ([`crate::recomputation`]).

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::{
    fused::{self, Keep, Rows, Stage, Sublayer},
    gradients::TrunkGradients,
    parameters::{Parameters, TRUNK},
    recomputation::recomputed,
    sublayers::{CrossAttention, Final, Mlp, SelfAttention},
};

/// Rows of a block's modulation: shift, scale, gate of the attention, then of the MLP.
pub(crate) const BLOCK_ROWS: usize = 6;
/// Rows of the final layer's: shift, scale.
pub(crate) const FINAL_ROWS: usize = 2;

/// Blocks, and what follows them.
pub(crate) struct Trunk {
    blocks: Vec<Block>,
    last: Option<Final>,
    fused: Option<Fused>,
    /// Where gradients are found that do not come with candle's.
    gradients: Option<TrunkGradients>,
    recompute: bool,
}

struct Block {
    attention: Arc<SelfAttention>,
    /// An expert's: the router reads no text here.
    cross_attention: Option<Arc<CrossAttention>>,
    mlp: Arc<Mlp>,
}

/// The same for the CPU.
struct Fused {
    stages: Arc<[Stage]>,
    group: Tensor,
}

impl Trunk {
    /// An expert's trunk: blocks with cross-attention, and the final layer.
    pub(crate) fn of_expert(parameters: &Parameters, depth: usize, heads: usize) -> Result<Self> {
        let cross_attention = |block: &str| CrossAttention::new(parameters, block, heads).map(Arc::new).map(Some);
        Self::new(parameters, depth, heads, cross_attention, Some(Final::new(parameters)?))
    }

    /// A router's trunk: blocks alone.
    pub(crate) fn of_router(parameters: &Parameters, depth: usize, heads: usize) -> Result<Self> {
        Self::new(parameters, depth, heads, |_| Ok(None), None)
    }

    fn new(
        parameters: &Parameters,
        depth: usize,
        heads: usize,
        cross_attention: impl Fn(&str) -> Result<Option<Arc<CrossAttention>>>,
        last: Option<Final>,
    ) -> Result<Self> {
        let block = |layer: usize| {
            let name = format!("layers.{layer}");
            Ok(Block {
                attention: Arc::new(SelfAttention::new(parameters, &name, heads)?),
                cross_attention: cross_attention(&name)?,
                mlp: Arc::new(Mlp::new(parameters, &name)?),
            })
        };
        let blocks = (0..depth).map(block).collect::<Result<Vec<_>>>()?;
        let gradients = parameters.trunk_gradients().cloned();
        let mut trunk = Self { blocks, last, fused: None, gradients, recompute: false };
        if let Some(group) = parameters.group(TRUNK) {
            trunk.fused = Some(Fused { stages: trunk.stages(parameters, heads)?, group });
        }
        Ok(trunk)
    }

    /// Whether to keep no more of a sublayer than what it read, and to run it again on the way back.
    pub(crate) fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// The sublayers in their order, over the trunk's group; the text follows the modulations in the condition.
    fn stages(&self, parameters: &Parameters, heads: usize) -> Result<Arc<[Stage]>> {
        let stage = |name: &str, sublayer: Box<dyn Sublayer>, condition: Rows| {
            Ok::<_, candle_core::Error>(Stage { sublayer, parameters: parameters.range(name)?, condition })
        };
        let final_rows = BLOCK_ROWS * self.blocks.len();
        let text_rows = final_rows + self.last.as_ref().map_or(0, |_| FINAL_ROWS);
        let mut stages = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (start, name) = (layer * BLOCK_ROWS, |part: &str| format!("layers.{layer}.{part}"));
            let (middle, end) = (start + BLOCK_ROWS / 2, start + BLOCK_ROWS);
            stages.push(stage(&name("attn"), Box::new(fused::SelfAttention { heads }), Rows::At(start..middle))?);
            if block.cross_attention.is_some() {
                let attention = Box::new(fused::CrossAttention { heads });
                stages.push(stage(&name("cross_attn"), attention, Rows::From(text_rows))?);
            }
            stages.push(stage(&name("mlp"), Box::new(fused::Mlp), Rows::At(middle..end))?);
        }
        if let Some(last) = &self.last {
            let last = Box::new(fused::Final { output: last.output_width()? });
            stages.push(stage("final_layer.linear", last, Rows::At(final_rows..text_rows))?);
        }
        Ok(stages.into())
    }

    /// `x` `[B,T,W]` through the trunk; `modulations` are one `[B,6,W]` a block, then the final layer's `[B,2,W]`; `text` `[B,S,W]`, where there
    /// is cross-attention.
    pub(crate) fn forward(&self, x: &Tensor, modulations: &[Tensor], text: Option<&Tensor>) -> Result<Tensor> {
        match &self.fused {
            Some(Fused { stages, group }) if fused::fits(x) => {
                let condition: Vec<&Tensor> = modulations.iter().chain(text).collect();
                let keep = if self.recompute { Keep::Inputs } else { Keep::All };
                fused::apply(stages, x, &Tensor::cat(&condition, 1)?, group, keep, self.gradients.as_ref())
            }
            _ => self.composed(x, modulations, text),
        }
    }

    fn composed(&self, x: &Tensor, modulations: &[Tensor], text: Option<&Tensor>) -> Result<Tensor> {
        let mut h = x.clone();
        for (block, modulation) in self.blocks.iter().zip(modulations) {
            let rows = |start| modulation.narrow(1, start, BLOCK_ROWS / 2);
            h = self.through(&block.attention, SelfAttention::forward, &h, &rows(0)?)?;
            if let (Some(cross_attention), Some(text)) = (&block.cross_attention, text) {
                h = self.through(cross_attention, CrossAttention::forward, &h, text)?;
            }
            h = self.through(&block.mlp, Mlp::forward, &h, &rows(BLOCK_ROWS / 2)?)?;
        }
        match (&self.last, modulations.last()) {
            (Some(last), Some(modulation)) => last.forward(&h, modulation),
            _ => Ok(h),
        }
    }

    /// `x` through a sublayer.
    fn through<S: Send + Sync + 'static>(
        &self,
        sublayer: &Arc<S>,
        forward: fn(&S, &Tensor, &Tensor) -> Result<Tensor>,
        x: &Tensor,
        condition: &Tensor,
    ) -> Result<Tensor> {
        match &self.gradients {
            Some(gradients) if self.recompute => recomputed(gradients, sublayer, forward, [x, condition]),
            _ => forward(sublayer, x, condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::{
        config::{ExpertConfig, PartConfig, RouterConfig},
        gradients::Gradients,
        random::Stream,
    };

    const BATCH: usize = 5;
    const TOKENS: usize = 6;
    const TEXT_TOKENS: usize = 4;
    const WIDTH: usize = 24;
    const HEADS: usize = 3;
    const DEPTH: usize = 11;

    fn expert() -> PartConfig {
        PartConfig::Expert(ExpertConfig {
            channels: 3,
            size: 4,
            patch: 2,
            width: WIDTH,
            depth: DEPTH,
            heads: HEADS,
            text_tokens: TEXT_TOKENS,
            text_width: 8,
        })
    }

    fn router() -> PartConfig {
        PartConfig::Router(RouterConfig {
            channels: 3,
            size: 4,
            patch: 2,
            width: WIDTH,
            depth: DEPTH,
            heads: HEADS,
            clusters: 2,
            caption_width: None,
        })
    }

    /// Variables that are all random and none zero, so that no term is hidden.
    fn parameters(config: &PartConfig) -> Parameters {
        let mut stream = Stream::seeded(1, "parameters");
        let mut random =
            |shape: &Vec<usize>| (stream.normal_tensor(shape.clone(), &Device::Cpu).unwrap() * 0.2).unwrap();
        let tensors = config.shapes().iter().map(|(name, shape)| (name.clone(), random(shape))).collect();
        Parameters::from_tensors(config, &tensors).unwrap().into_variables().unwrap().0
    }

    fn trunk(config: &PartConfig, parameters: &Parameters) -> Trunk {
        let trunk = match config {
            PartConfig::Expert(_) => Trunk::of_expert(parameters, DEPTH, HEADS),
            PartConfig::Router(_) => Trunk::of_router(parameters, DEPTH, HEADS),
        };
        trunk.unwrap()
    }

    fn inputs(config: &PartConfig) -> (Var, Vec<Var>, Option<Var>) {
        let mut stream = Stream::seeded(2, "inputs");
        let mut random = |rows: usize| {
            let tensor = stream.normal_tensor((BATCH, rows, WIDTH), &Device::Cpu).unwrap();
            Var::from_tensor(&tensor).unwrap()
        };
        let x = random(TOKENS);
        let mut modulations: Vec<_> = (0..DEPTH).map(|_| random(BLOCK_ROWS)).collect();
        match config {
            PartConfig::Expert(_) => {
                modulations.push(random(FINAL_ROWS));
                (x, modulations, Some(random(TEXT_TOKENS)))
            }
            PartConfig::Router(_) => (x, modulations, None),
        }
    }

    /// A loss whose gradient differs everywhere.
    fn loss(out: &Tensor) -> Tensor {
        let weight = Stream::seeded(3, "weight").normal_tensor(out.shape().clone(), &Device::Cpu).unwrap();
        (out * weight).unwrap().sum_all().unwrap()
    }

    #[test]
    fn the_fused_trunk_is_the_composed_one() {
        for config in [expert(), router()] {
            let parameters = parameters(&config);
            let (trunk, group) = (trunk(&config, &parameters), parameters.group(TRUNK).unwrap());
            let (x, modulations, text) = inputs(&config);
            let plain: Vec<Tensor> = modulations.iter().map(|it| it.as_tensor().clone()).collect();
            let text = text.as_ref();
            let fused = || trunk.forward(&x, &plain, text.map(Var::as_tensor)).unwrap();
            let composed = || trunk.composed(&x, &plain, text.map(Var::as_tensor)).unwrap();
            let back = |out: Tensor| {
                let store = loss(&out).backward().unwrap();
                let read = [&x, &group].into_iter().chain(modulations.iter().chain(text).map(Var::as_tensor));
                let mut found: Vec<_> = read.map(|variable| store.get(variable).unwrap().clone()).collect();
                found.push(out);
                found
            };
            let expected = back(composed());
            let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            let found = [
                threads(1).install(|| back(fused())),
                threads(3).install(|| back(fused())),
                // Forward and backward on different numbers of threads.
                back(threads(1).install(fused)),
            ];
            for found in found {
                for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    let (difference, scale) = (largest((found - expected).unwrap()), largest(expected.clone()));
                    assert!(difference <= 2e-5 * scale, "tensor {number} differs by {difference} of {scale}");
                }
            }
        }
    }

    /// Both trunks, over two micro-batches.
    #[test]
    fn recomputing_gives_the_same_bits() {
        for config in [expert(), router()] {
            let parameters = parameters(&config).with_trunk_gradients();
            let mut trunk = trunk(&config, &parameters);
            let (x, modulations, text) = inputs(&config);
            let plain: Vec<Tensor> = modulations.iter().map(|it| it.as_tensor().clone()).collect();
            let read: Vec<&Tensor> = [&x].into_iter().chain(&modulations).chain(&text).map(Var::as_tensor).collect();
            let mut back = |forward: fn(&Trunk, &Tensor, &[Tensor], Option<&Tensor>) -> Result<Tensor>, recompute| {
                trunk.set_recompute(recompute);
                let (mut found, mut gradients) = (Vec::new(), Gradients::none(&parameters, 1));
                for _ in 0..2 {
                    let out = forward(&trunk, &x, &plain, text.as_ref().map(Var::as_tensor)).unwrap();
                    let store = loss(&out).backward().unwrap();
                    found.extend(read.iter().map(|tensor| store.get(tensor).unwrap().clone()));
                    found.push(out);
                    gradients.add(store).unwrap();
                }
                let gradients = gradients.finish().unwrap().unwrap();
                found.push(gradients.get(&parameters.group(TRUNK).unwrap()).unwrap().clone());
                let bits = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let found: Vec<_> = found.into_iter().map(bits).collect();
                assert!(found.iter().all(|numbers| numbers.iter().any(|it| *it != 0.0)), "something is compared");
                found
            };
            for forward in [Trunk::forward, Trunk::composed] {
                assert!(back(forward, true) == back(forward, false));
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let trunk = trunk(&router(), &parameters(&router()));
        let tensor = |rows: usize, width: usize| Tensor::zeros((2, rows, width), DType::F32, &Device::Cpu).unwrap();
        let modulations = |width: usize| vec![tensor(BLOCK_ROWS, width); DEPTH];
        trunk.forward(&tensor(6, WIDTH), &modulations(WIDTH), None).unwrap();
        let error = trunk.forward(&tensor(6, 16), &modulations(16), None).unwrap_err();
        assert!(error.to_string().contains("self-attention of x [2, 6, 16]"), "{error}");
        assert!(trunk.forward(&tensor(6, WIDTH), &modulations(WIDTH)[1..], None).is_err());
        assert!(trunk.forward(&tensor(0, WIDTH), &modulations(WIDTH), None).is_err());
    }
}
