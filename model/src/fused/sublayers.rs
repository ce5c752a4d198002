//! The sublayers over slices: a block's three, each with its residual, and the final layer. [`crate::sublayers`] says the same in tensors.

use super::{
    Backward, Sublayer,
    attention::{self, Attention},
    linear::{self, Linear, LinearGradient},
    tile::{Shape, Tile, TileGradients},
};
use crate::{
    gradients::add,
    vector::{gelu, gelu_with_derivative, vectorised},
};

/// x + gate Attention(LN(x) (1 + scale) + shift); the condition is shift, scale and gate.
pub(crate) struct SelfAttention {
    pub(crate) heads: usize,
}

/// x + Attention(x, condition); the condition is the caption's tokens.
pub(crate) struct CrossAttention {
    pub(crate) heads: usize,
}

/// x + gate Linear(GELU(Linear(LN(x) (1 + scale) + shift))); the condition is shift, scale and gate.
pub(crate) struct Mlp;

/// Linear(LN(x) (1 + scale) + shift), to `output` numbers a token; the condition is shift and scale.
pub(crate) struct Final {
    pub(crate) output: usize,
}

/// The attention, what it saved, and its output before the gate.
struct SelfAttentionBackward(Attention, attention::Saved, Vec<f32>);

impl Sublayer for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn condition_rows(&self) -> Option<usize> {
        Some(3)
    }

    fn parameter_count(&self, width: usize) -> usize {
        attention::parameter_count(width)
    }

    fn forward(&self, tile: Tile, out: &mut Vec<f32>) -> Box<dyn Backward> {
        let Shape { width, tokens, .. } = tile.shape;
        let attention = Attention { heads: self.heads, width, tokens, context: tokens };
        let h = tile.enter();
        let (y, saved) = attention.forward(tile.group, &h, &h);
        tile.leave(&y, out);
        Box::new(SelfAttentionBackward(attention, saved, y))
    }
}

impl Backward for SelfAttentionBackward {
    fn backward(self: Box<Self>, tile: Tile, gradient: &[f32], into: TileGradients) {
        let Self(attention, saved, y) = *self;
        let h = tile.enter();
        let dy = tile.leave_backward(&y, gradient, into.condition);
        let (mut dh, dcontext) = attention.backward(tile.group, &h, &h, &saved, &dy, into.group);
        add(&mut dh, &dcontext);
        tile.enter_backward(&dh, into.x, into.condition);
    }
}

/// The attention, and what it saved.
struct CrossAttentionBackward(Attention, attention::Saved);

impl Sublayer for CrossAttention {
    fn name(&self) -> &'static str {
        "cross-attention"
    }

    fn condition_rows(&self) -> Option<usize> {
        None
    }

    fn parameter_count(&self, width: usize) -> usize {
        attention::parameter_count(width)
    }

    fn forward(&self, tile: Tile, out: &mut Vec<f32>) -> Box<dyn Backward> {
        let Shape { width, tokens, condition } = tile.shape;
        let attention = Attention { heads: self.heads, width, tokens, context: condition };
        let (y, saved) = attention.forward(tile.group, tile.x, tile.condition);
        vectorised!(out.extend(tile.x.iter().zip(&y).map(|(x, y)| x + y)));
        Box::new(CrossAttentionBackward(attention, saved))
    }
}

impl Backward for CrossAttentionBackward {
    fn backward(self: Box<Self>, tile: Tile, gradient: &[f32], into: TileGradients) {
        let Self(attention, saved) = *self;
        let (through, dcontext) = attention.backward(tile.group, tile.x, tile.condition, &saved, gradient, into.group);
        add(into.x, &through);
        add(into.condition, &dcontext);
    }
}

impl Mlp {
    fn layers(group: &[f32], width: usize) -> (Linear<'_>, Linear<'_>) {
        let (inner, rest) = Linear::split(group, width, 4 * width);
        (inner, Linear::split(rest, 4 * width, width).0)
    }
}

/// What the GELU reads, and the output before the gate.
struct MlpBackward(Vec<f32>, Vec<f32>);

impl Sublayer for Mlp {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn condition_rows(&self) -> Option<usize> {
        Some(3)
    }

    fn parameter_count(&self, width: usize) -> usize {
        linear::size(width, 4 * width) + linear::size(4 * width, width)
    }

    fn forward(&self, tile: Tile, out: &mut Vec<f32>) -> Box<dyn Backward> {
        let (inner, outer) = Self::layers(tile.group, tile.shape.width);
        let before = inner.forward(&tile.enter());
        let mut after = Vec::with_capacity(before.len());
        vectorised!(after.extend(before.iter().map(|u| gelu::<FMA>(*u))));
        let y = outer.forward(&after);
        tile.leave(&y, out);
        Box::new(MlpBackward(before, y))
    }
}

impl Backward for MlpBackward {
    fn backward(self: Box<Self>, tile: Tile, gradient: &[f32], into: TileGradients) {
        let Self(mut before, y) = *self;
        let width = tile.shape.width;
        let (inner, outer) = Mlp::layers(tile.group, width);
        let (mut dinner, rest) = LinearGradient::split(into.group, width, 4 * width);
        let (mut douter, _) = LinearGradient::split(rest, 4 * width, width);
        let dy = tile.leave_backward(&y, gradient, into.condition);
        let mut dbefore = outer.backward(&dy);
        vectorised!(gelus_backward::<FMA>(&mut before, &mut dbefore));
        let after = before;
        douter.add(&after, &dy);
        dinner.add(&tile.enter(), &dbefore);
        tile.enter_backward(&inner.backward(&dbefore), into.x, into.condition);
    }
}

/// Replaces each number by its GELU, and scales its gradient by the derivative.
#[inline(always)]
fn gelus_backward<const FMA: bool>(numbers: &mut [f32], gradients: &mut [f32]) {
    for (number, gradient) in numbers.iter_mut().zip(gradients) {
        let (value, derivative) = gelu_with_derivative::<FMA>(*number);
        *number = value;
        *gradient *= derivative;
    }
}

/// Nothing but what the tile has.
struct FinalBackward {
    output: usize,
}

impl Sublayer for Final {
    fn name(&self) -> &'static str {
        "final layer"
    }

    fn condition_rows(&self) -> Option<usize> {
        Some(2)
    }

    fn is_residual(&self) -> bool {
        false
    }

    fn output_width(&self, _width: usize) -> usize {
        self.output
    }

    fn parameter_count(&self, width: usize) -> usize {
        linear::size(width, self.output)
    }

    fn forward(&self, tile: Tile, out: &mut Vec<f32>) -> Box<dyn Backward> {
        let (layer, _) = Linear::split(tile.group, tile.shape.width, self.output);
        out.extend(layer.forward(&tile.enter()));
        Box::new(FinalBackward { output: self.output })
    }
}

impl Backward for FinalBackward {
    fn backward(self: Box<Self>, tile: Tile, gradient: &[f32], into: TileGradients) {
        let (layer, _) = Linear::split(tile.group, tile.shape.width, self.output);
        let (mut dlayer, _) = LinearGradient::split(into.group, tile.shape.width, self.output);
        dlayer.add(&tile.enter(), gradient);
        tile.enter_backward(&layer.backward(gradient), into.x, into.condition);
    }
}
