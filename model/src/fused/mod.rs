//! A model's trunk on the CPU: all its sublayers as one operation of candle's graph, with a backward of its own.
//!
//! Composed of candle's own operations, a block spends most of its time in fresh pages, scalar functions, zeroed gradients and passes over memory, and
//! its threads meet in every product. Here each thread takes its share of the batch through all sublayers, forward and then backward, in
//! tiles of samples that stay in its cache, and the threads meet twice a step. Bits depend on the number of threads, since the shares' parameter
//! gradients are summed at the end.

mod attention;
mod linear;
mod matrix;
mod modulation;
mod operation;
mod sublayers;
mod tile;

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Result, Tensor};

pub(crate) use matrix::{Matrix, MatrixMut};
use operation::Operation;
pub(crate) use operation::{samples_at_once, share_count};
pub(crate) use sublayers::{CrossAttention, Final, Mlp, SelfAttention};
use tile::{Tile, TileGradients};

use crate::gradients::TrunkGradients;

/// A sublayer over slices.
pub(crate) trait Sublayer: Send + Sync {
    /// Its name in errors.
    fn name(&self) -> &'static str;

    /// Rows that its condition must have; none where any number will do.
    fn condition_rows(&self) -> Option<usize>;

    /// True where what is read is part of the output, and so the output's gradient part of its gradient: who calls has that added.
    fn is_residual(&self) -> bool {
        true
    }

    /// Numbers of a token in the output.
    fn output_width(&self, width: usize) -> usize {
        width
    }

    /// Numbers in its parameters.
    fn parameter_count(&self, width: usize) -> usize;

    /// Appends the output, residual included, to `out`. What it returns knows the way back.
    fn forward(&self, tile: Tile, out: &mut Vec<f32>) -> Box<dyn Backward>;
}

/// What the forward pass of a sublayer leaves behind for the backward pass over the same tile.
pub(crate) trait Backward: Send {
    /// From the gradient of the output: adds to those of what was read, but for the residual's part.
    fn backward(self: Box<Self>, tile: Tile, gradient: &[f32], into: TileGradients);
}

/// A sublayer in its place.
pub(crate) struct Stage {
    pub(crate) sublayer: Box<dyn Sublayer>,
    /// Where its parameters lie in the group of the trunk's, biases before weights.
    pub(crate) parameters: Range<usize>,
    /// The rows of the condition that it reads.
    pub(crate) condition: Rows,
}

/// Rows of a condition.
#[derive(Clone, Debug)]
pub(crate) enum Rows {
    /// These.
    At(Range<usize>),
    /// This and all that follow.
    From(usize),
}

/// What the forward pass leaves to the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: no gradient will be asked for.
    Nothing,
    /// What each stage read; the backward pass runs it again.
    Inputs,
    /// All that the backward pass reads.
    All,
}

/// True where [`apply`] can be used.
pub(crate) fn fits(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Applies `stages` one after the other to `x` `[B,T,W]`, with `condition` `[B,R,W]` and the flat `group` of all parameters. Only the last stage may
/// change the width. The group's gradient goes to `gradients`, where there is such a place, and else through candle.
pub(crate) fn apply(
    stages: &Arc<[Stage]>,
    x: &Tensor,
    condition: &Tensor,
    group: &Tensor,
    keep: Keep,
    gradients: Option<&TrunkGradients>,
) -> Result<Tensor> {
    let differentiable = [x, condition, group].iter().any(|tensor| tensor.track_op());
    let keep = if differentiable { keep } else { Keep::Nothing };
    x.contiguous()?.apply_op3(&condition.contiguous()?, group, Operation::new(stages.clone(), keep, gradients.cloned()))
}
