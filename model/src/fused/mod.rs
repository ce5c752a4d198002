//! The sublayers of a block on the CPU, each one operation of candle's graph with a backward of its own.
//!
//! Composed of candle's own operations, a block spends most of its time in fresh pages, scalar functions and passes over memory, and its threads
//! meet in every product. Here a thread takes a share of the batch through a whole sublayer, in tiles of samples that stay in its cache, and
//! the threads meet once a sublayer. Bits depend on the number of threads, since the shares' parameter gradients are summed at the end.

mod attention;
mod linear;
mod matrix;
mod modulation;
mod sublayers;
mod tile;
mod vector;

use std::{ops::Range, sync::OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape as TensorShape, Tensor, bail};
use rayon::prelude::*;

use crate::host::{numbers, with_numbers};
pub(crate) use sublayers::{CrossAttention, Final, Mlp, SelfAttention};
use tile::{Gradients, Shape, Tile};
pub(crate) use vector::{sum, vectorised};

/// Rows that go through a sublayer together: enough for a matrix product to run at its full speed, few enough for the cache.
const TILE_ROWS: usize = 512;

/// A sublayer over slices.
pub(crate) trait Sublayer: Send + Sync + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Send + Sync;
    /// Its name in errors.
    const NAME: &'static str;

    /// Rows that its condition must have; none where any number will do.
    fn condition_rows(&self) -> Option<usize>;

    /// Numbers of a token in the output.
    fn output_width(&self, width: usize) -> usize {
        width
    }

    /// Numbers in the group.
    fn group_size(&self, width: usize) -> usize;

    /// Writes the output, residual included, to `out`.
    fn forward(&self, tile: Tile, out: &mut [f32]) -> Self::Saved;

    /// From the gradient of the output: adds to those of what was read.
    fn backward(&self, tile: Tile, saved: &Self::Saved, gradient: &[f32], into: Gradients);
}

/// True where [`apply`] can be used.
pub(crate) fn fits(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Applies a sublayer to `x` `[B,T,W]` with `condition` `[B,R,W]`, over the flat `group` of its parameters.
pub(crate) fn apply<S: Sublayer>(sublayer: S, x: &Tensor, condition: &Tensor, group: &Tensor) -> Result<Tensor> {
    let differentiable = [x, condition, group].iter().any(|tensor| tensor.track_op() || tensor.is_variable());
    let saved = differentiable.then(OnceLock::new);
    x.contiguous()?.apply_op3(&condition.contiguous()?, group, Fused { sublayer, saved })
}

/// A sublayer as an operation of candle's graph.
struct Fused<S: Sublayer> {
    sublayer: S,
    /// What the forward pass leaves to the backward pass, a tile each; none where no gradient will be asked for.
    saved: Option<OnceLock<Saved<S>>>,
}

/// What a forward pass left behind.
struct Saved<S: Sublayer> {
    /// Samples of a tile, as the forward pass cut the batch.
    samples: usize,
    tiles: Vec<S::Saved>,
}

impl<S: Sublayer> Fused<S> {
    fn shape(&self, x: &[usize], condition: &[usize], group: usize) -> Result<Shape> {
        match (x, condition) {
            ([batch, tokens, width], [other_batch, rows, other_width])
                if (batch, width) == (other_batch, other_width)
                    && [batch, tokens, rows, width].into_iter().all(|dimension| *dimension > 0)
                    && self.sublayer.condition_rows().is_none_or(|needed| needed == *rows)
                    && group == self.sublayer.group_size(*width) =>
            {
                Ok(Shape { tokens: *tokens, condition: *rows, width: *width })
            }
            _ => bail!("{} of x {x:?}, condition {condition:?} and {group} parameters", S::NAME),
        }
    }

    /// The tiles of a batch, of so many samples each.
    fn tiles<'a>(samples: usize, shape: Shape, group: &'a [f32], x: &'a [f32], condition: &'a [f32]) -> Vec<Tile<'a>> {
        let xs = x.chunks(samples * shape.tokens * shape.width);
        let conditions = condition.chunks(samples * shape.condition * shape.width);
        xs.zip(conditions).map(|(x, condition)| Tile { shape, group, x, condition }).collect()
    }
}

/// Samples of a tile: no more than a thread's share of the batch.
fn tile_samples(shape: Shape, batch: usize) -> usize {
    let share = batch.div_ceil(rayon::current_num_threads()).max(1);
    let fitting = (TILE_ROWS / shape.tokens).max(1);
    // Tiles of nearly equal size, so that threads end together.
    share.div_ceil(share.div_ceil(fitting))
}

/// The ranges of `tiles` that the threads take.
fn shares(tiles: usize) -> Vec<Range<usize>> {
    let threads = rayon::current_num_threads().min(tiles).max(1);
    (0..threads).map(|thread| thread * tiles / threads..(thread + 1) * tiles / threads).collect()
}

impl<S: Sublayer> CustomOp3 for Fused<S> {
    fn name(&self) -> &'static str {
        S::NAME
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
        let (x, condition, group) =
            (numbers(x, x_layout)?, numbers(condition, condition_layout)?, numbers(group, group_layout)?);
        let shape = self.shape(x_layout.dims(), condition_layout.dims(), group.len())?;
        let samples = tile_samples(shape, x_layout.dims()[0]);
        let tiles = Self::tiles(samples, shape, group, x, condition);
        let output_width = self.sublayer.output_width(shape.width);
        let mut out = vec![0.0; x.len() / shape.width * output_width];
        let outs = split_mut(&mut out, tiles.iter().map(|tile| tile.x.len() / shape.width * output_width));
        let saved: Vec<Option<S::Saved>> = tiles
            .par_iter()
            .zip(outs)
            .with_min_len(tiles.len().div_ceil(rayon::current_num_threads()))
            .map(|(tile, out)| {
                let saved = self.sublayer.forward(*tile, out);
                self.saved.as_ref().map(|_| saved)
            })
            .collect();
        if let Some(place) = &self.saved {
            // Set once: an operation runs forward once.
            let _ = place.set(Saved { samples, tiles: saved.into_iter().flatten().collect() });
        }
        let mut dims = x_layout.dims().to_vec();
        dims[2] = output_width;
        Ok((CpuStorage::F32(out), dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        condition: &Tensor,
        group: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = self.saved.as_ref().and_then(OnceLock::get) else {
            bail!("{} ran forward without a variable in sight: it kept nothing to differentiate", S::NAME);
        };
        let shape = self.shape(x.dims(), condition.dims(), group.elem_count())?;
        let output_width = self.sublayer.output_width(shape.width);
        let mut dx = vec![0.0; x.elem_count()];
        let mut dcondition = vec![0.0; condition.elem_count()];
        let dgroup = with_numbers([x, condition, group, gradient], |[x, condition, group, gradient]| {
            let tiles = Self::tiles(saved.samples, shape, group, x, condition);
            let gradients = gradient.chunks(tiles[0].x.len() / shape.width * output_width);
            let dxs = split_mut(&mut dx, tiles.iter().map(|tile| tile.x.len()));
            let dconditions = split_mut(&mut dcondition, tiles.iter().map(|tile| tile.condition.len()));
            let mut work: Vec<_> = tiles.iter().zip(&saved.tiles).zip(gradients).zip(dxs).zip(dconditions).collect();
            let mut shares: Vec<_> =
                shares(work.len()).into_iter().rev().map(|share| work.split_off(share.start)).collect();
            shares.reverse();
            let dgroups = shares.into_par_iter().map(|share| {
                let mut dgroup = vec![0.0; group.len()];
                for ((((tile, saved), gradient), x), condition) in share {
                    self.sublayer.backward(*tile, saved, gradient, Gradients { x, condition, group: &mut dgroup });
                }
                dgroup
            });
            Ok(total(dgroups.collect()))
        })?;
        let tensor =
            |numbers: Vec<f32>, like: &Tensor| Tensor::from_vec(numbers, like.shape(), like.device()).map(Some);
        Ok((tensor(dx, x)?, tensor(dcondition, condition)?, tensor(dgroup, group)?))
    }
}

/// Cuts `numbers` into pieces of the given lengths.
fn split_mut(mut numbers: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = numbers.split_at_mut(length);
        pieces.push(piece);
        numbers = rest;
    }
    pieces
}

/// The sum of vectors of equal length, in their order.
fn total(vectors: Vec<Vec<f32>>) -> Vec<f32> {
    let mut vectors = vectors.into_iter();
    let mut total = vectors.next().unwrap_or_default();
    for vector in vectors {
        total.iter_mut().zip(vector).for_each(|(total, x)| *total += x);
    }
    total
}
