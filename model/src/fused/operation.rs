//! The trunk as an operation of candle's graph: the batch shared among threads, and each share taken through the stages and back.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape as TensorShape, Tensor, bail};
use rayon::prelude::*;

use super::{
    Backward, Keep, Rows, Stage,
    tile::{Shape, Tile, TileGradients},
};
use crate::{
    gradients::{TrunkGradients, add, total},
    host::{numbers, with_numbers},
};

/// Rows that go through a sublayer together: enough for a matrix product to run at its full speed, few enough for the cache.
const TILE_ROWS: usize = 512;

/// Multiplications after which what is done once a pass costs a thread little beside them.
const PASS_MULTIPLICATIONS: u64 = 7_500_000_000;
/// Tiles that a thread takes at once at most to reach them. One is enough for a wide model.
const TILES_AT_ONCE_MAX: u64 = 4;

/// Stages applied to a batch.
pub(super) struct Operation {
    stages: Arc<[Stage]>,
    keep: Keep,
    /// What the forward pass leaves to the backward pass.
    kept: Mutex<Option<Vec<Share>>>,
    /// Where the group's gradient goes, if not through candle.
    gradients: Option<TrunkGradients>,
}

/// A thread's share of the batch, after the forward pass.
struct Share {
    samples: Range<usize>,
    stages: Vec<Kept>,
}

/// What a stage left behind.
struct Kept {
    input: Vec<f32>,
    /// Of each tile; none where they run again.
    tiles: Vec<Box<dyn Backward>>,
}

/// What a share's backward pass gives.
struct ShareGradients {
    x: Vec<f32>,
    condition: Vec<f32>,
    group: Vec<f32>,
}

/// What the stages read, for the samples of a share or of the batch.
#[derive(Clone, Copy)]
struct Input<'a> {
    tokens: usize,
    rows: usize,
    width: usize,
    /// `[samples, tokens, width]`
    x: &'a [f32],
    /// `[samples, rows, width]`
    condition: &'a [f32],
    group: &'a [f32],
}

impl<'a> Input<'a> {
    /// Those of some samples.
    fn of(self, samples: &Range<usize>) -> Self {
        let (sample, condition) = (self.tokens * self.width, self.rows * self.width);
        Self {
            x: &self.x[samples.start * sample..samples.end * sample],
            condition: &self.condition[samples.start * condition..samples.end * condition],
            ..self
        }
    }

    fn samples(&self) -> usize {
        self.x.len() / (self.tokens * self.width)
    }

    /// Samples of a tile: tiles of nearly equal size, so that the last is not small.
    fn tile_samples(&self) -> usize {
        self.samples().div_ceil(self.samples().div_ceil(samples_of_tile(self.tokens)))
    }

    /// The numbers of `rows` in the condition of the samples from `first` on that make up a tile.
    fn condition_of(&self, rows: &Range<usize>, first: usize, samples: usize) -> Vec<f32> {
        let mut gathered = Vec::with_capacity(samples * rows.len() * self.width);
        for condition in self.condition.chunks_exact(self.rows * self.width).skip(first).take(samples) {
            gathered.extend_from_slice(&condition[rows.start * self.width..rows.end * self.width]);
        }
        gathered
    }
}

impl Rows {
    /// The rows of a condition that has so many.
    fn of(&self, rows: usize) -> Range<usize> {
        match self {
            Rows::At(range) => range.clone(),
            Rows::From(start) => *start..rows,
        }
    }
}

impl Operation {
    pub(super) fn new(stages: Arc<[Stage]>, keep: Keep, gradients: Option<TrunkGradients>) -> Self {
        Self { stages, keep, kept: Mutex::default(), gradients }
    }

    /// Checks that the shapes fit the stages.
    fn input<'a>(
        &self,
        (x, x_shape): (&'a [f32], &[usize]),
        (condition, condition_shape): (&'a [f32], &[usize]),
        group: &'a [f32],
    ) -> Result<Input<'a>> {
        let (&[batch, tokens, width], &[other_batch, rows, other_width]) = (x_shape, condition_shape) else {
            bail!("a trunk of x {x_shape:?} and condition {condition_shape:?}: both have three dimensions");
        };
        if (batch, width) != (other_batch, other_width) || [batch, tokens, rows, width].contains(&0) {
            bail!(
                "a trunk of x {x_shape:?} and condition {condition_shape:?}: batch and width are the same, and nothing is empty"
            );
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let (sublayer, read) = (&stage.sublayer, stage.condition.of(rows));
            let fits = stage.parameters.len() == sublayer.parameter_count(width)
                && stage.parameters.end <= group.len()
                && !read.is_empty()
                && read.end <= rows
                && sublayer.condition_rows().is_none_or(|needed| needed == read.len())
                && (index + 1 == self.stages.len() || sublayer.is_residual());
            if !fits {
                bail!(
                    "{} of x {x_shape:?} with rows {read:?} of a condition {condition_shape:?} and the parameters {:?} of {}",
                    sublayer.name(),
                    stage.parameters,
                    group.len()
                );
            }
        }
        Ok(Input { tokens, rows, width, x, condition, group })
    }

    fn output_width(&self, width: usize) -> usize {
        self.stages.last().map_or(width, |stage| stage.sublayer.output_width(width))
    }

    /// Takes a share through the stages; writes the last one's output.
    fn forward(&self, input: Input, samples: Range<usize>, out: &mut [f32]) -> Share {
        let input = input.of(&samples);
        let (tile_samples, width) = (input.tile_samples(), input.width);
        let tile_rows = tile_samples * input.tokens;
        let mut h = input.x.to_vec();
        let mut kept = Vec::with_capacity(self.stages.len());
        for stage in self.stages.iter() {
            let rows = stage.condition.of(input.rows);
            let output_width = stage.sublayer.output_width(width);
            let mut next = Vec::with_capacity(h.len() / width * output_width);
            let forward = |(number, x): (usize, &[f32])| {
                let condition = &input.condition_of(&rows, number * tile_samples, tile_samples);
                let shape = Shape { tokens: input.tokens, condition: rows.len(), width };
                let tile = Tile { shape, group: &input.group[stage.parameters.clone()], x, condition };
                stage.sublayer.forward(tile, &mut next)
            };
            let tiles = h.chunks(tile_rows * width).enumerate().map(forward);
            let tiles = match self.keep {
                Keep::All => tiles.collect(),
                Keep::Nothing | Keep::Inputs => {
                    tiles.for_each(drop);
                    Vec::new()
                }
            };
            if self.keep != Keep::Nothing {
                kept.push(Kept { tiles, input: h });
            }
            h = next;
        }
        out.copy_from_slice(&h);
        Share { samples, stages: kept }
    }

    /// Takes the gradient of a share's output back through the stages; the group's is added to `dgroup`.
    fn backward(&self, input: Input, share: Share, gradient: &[f32], mut dgroup: Vec<f32>) -> ShareGradients {
        let input = input.of(&share.samples);
        let (tile_samples, width) = (input.tile_samples(), input.width);
        let tile_rows = tile_samples * input.tokens;
        let mut gradient = gradient.to_vec();
        let mut dcondition = vec![0.0; input.condition.len()];
        for (stage, kept) in self.stages.iter().zip(share.stages).rev() {
            let rows = stage.condition.of(input.rows);
            let output_width = stage.sublayer.output_width(width);
            let mut dx = match stage.sublayer.is_residual() {
                true => gradient.clone(),
                false => vec![0.0; kept.input.len()],
            };
            let (mut tiles, mut again) = (kept.tiles.into_iter(), Vec::new());
            let gradients = gradient.chunks(tile_rows * output_width).zip(dx.chunks_mut(tile_rows * width));
            for (number, (x, (gradient, dx))) in kept.input.chunks(tile_rows * width).zip(gradients).enumerate() {
                let condition = &input.condition_of(&rows, number * tile_samples, tile_samples);
                let mut dcondition_of_tile = vec![0.0; condition.len()];
                let (group, dgroup) = (&input.group[stage.parameters.clone()], &mut dgroup[stage.parameters.clone()]);
                let shape = Shape { tokens: input.tokens, condition: rows.len(), width };
                let into = TileGradients { x: dx, condition: &mut dcondition_of_tile, group: dgroup };
                let tile = Tile { shape, group, x, condition };
                let backward = tiles.next().unwrap_or_else(|| {
                    again.clear();
                    stage.sublayer.forward(tile, &mut again)
                });
                backward.backward(tile, gradient, into);
                let samples = dcondition.chunks_exact_mut(input.rows * width).skip(number * tile_samples);
                for (sum, dcondition) in samples.zip(dcondition_of_tile.chunks_exact(rows.len() * width)) {
                    add(&mut sum[rows.start * width..rows.end * width], dcondition);
                }
            }
            gradient = dx;
        }
        ShareGradients { x: gradient, condition: dcondition, group: dgroup }
    }
}

/// Samples of so many tokens that go through a model of so many parameters at once to any profit. More take more memory, and hardly less time.
pub(crate) fn samples_at_once(tokens: usize, parameters: usize) -> usize {
    let samples = samples_of_tile(tokens);
    let of_tile = (samples * tokens) as u64 * parameters as u64;
    let tiles = PASS_MULTIPLICATIONS.div_ceil(of_tile).min(TILES_AT_ONCE_MAX);
    rayon::current_num_threads() * tiles as usize * samples
}

/// Samples of so many tokens that make up a tile.
fn samples_of_tile(tokens: usize) -> usize {
    (TILE_ROWS / tokens).max(1)
}

/// Into how many shares the samples of a batch are divided: one a thread, if there are as many.
pub(crate) fn share_count(batch: usize) -> usize {
    rayon::current_num_threads().min(batch)
}

/// The samples of a batch that each thread takes.
fn shares(batch: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let threads = share_count(batch);
    (0..threads)
        .into_par_iter()
        .with_max_len(1)
        .map(move |thread| thread * batch / threads..(thread + 1) * batch / threads)
}

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "trunk"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        condition: &CpuStorage,
        condition_layout: &Layout,
        group: &CpuStorage,
        group_layout: &Layout,
    ) -> Result<(CpuStorage, TensorShape)> {
        let x = (numbers(x, x_layout)?, x_layout.dims());
        let condition = (numbers(condition, condition_layout)?, condition_layout.dims());
        let input = self.input(x, condition, numbers(group, group_layout)?)?;
        let (batch, output_width) = (input.samples(), self.output_width(input.width));
        let sample = input.tokens * output_width;
        let mut out = vec![0.0; batch * sample];
        let outs = split_mut(&mut out, shares(batch).map(|samples| samples.len() * sample).collect());
        let kept = shares(batch).zip(outs).map(|(samples, out)| self.forward(input, samples, out)).collect();
        if self.keep != Keep::Nothing {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(out), (batch, input.tokens, output_width).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        condition: &Tensor,
        group: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(shares) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!(
                "the trunk kept nothing to differentiate: it ran forward without a variable in sight, or went back before"
            );
        };
        // Each share adds to what that of an earlier pass gave.
        let mut sums = self.gradients.as_ref().map(TrunkGradients::take_group).unwrap_or_default().into_iter();
        let work: Vec<(Share, Option<Vec<f32>>)> = shares.into_iter().map(|share| (share, sums.next())).collect();
        let read = |[x_numbers, condition_numbers, group, gradient]: [&[f32]; 4]| {
            let input = self.input((x_numbers, x.dims()), (condition_numbers, condition.dims()), group)?;
            let sample = gradient.len() / input.samples();
            let back = |(share, sum): (Share, Option<Vec<f32>>)| {
                let gradient = &gradient[share.samples.start * sample..share.samples.end * sample];
                self.backward(input, share, gradient, sum.unwrap_or_else(|| vec![0.0; group.len()]))
            };
            Ok(work.into_par_iter().with_max_len(1).map(back).collect())
        };
        let gradients: Vec<ShareGradients> = with_numbers([x, condition, group, gradient], read)?;
        let (mut dx, mut dcondition, mut dgroups) = (Vec::new(), Vec::new(), Vec::new());
        for share in gradients {
            dx.push(share.x);
            dcondition.push(share.condition);
            dgroups.push(share.group);
        }
        let tensor = |numbers: Vec<f32>, like: &Tensor| Tensor::from_vec(numbers, like.shape(), like.device());
        let dgroup = match &self.gradients {
            Some(gradients) => {
                // A smaller pass has fewer shares.
                gradients.put_group(dgroups.into_iter().chain(sums).collect());
                None
            }
            None => total(dgroups).map(|dgroup| tensor(dgroup, group)).transpose()?,
        };
        Ok((Some(tensor(dx.concat(), x)?), Some(tensor(dcondition.concat(), condition)?), dgroup))
    }
}

/// Cuts `numbers` into pieces of the given lengths.
fn split_mut(mut numbers: &mut [f32], lengths: Vec<usize>) -> Vec<&mut [f32]> {
    let mut pieces = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (piece, rest) = numbers.split_at_mut(length);
        pieces.push(piece);
        numbers = rest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_models_take_fewer_samples_at_once() {
        let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
        let at_once = |count: usize, tokens, parameters| threads(count).install(|| samples_at_once(tokens, parameters));
        // 192x6, 256x8, 384x12 and DiT-XL/2, then a picture of 64 tokens and one that is more than a tile.
        assert_eq!([4, 8, 30, 606].map(|millions| at_once(1, 256, millions * 1_000_000)), [8, 4, 2, 2]);
        assert_eq!(at_once(2, 256, 30_000_000), 4);
        assert_eq!(at_once(1, 64, 4_000_000), 32);
        assert_eq!(at_once(1, 1024, 606_000_000), 1);
    }
}
