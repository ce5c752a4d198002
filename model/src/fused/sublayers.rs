//! The sublayers over slices: a block's three, each with its residual, and the final layer. [`crate::sublayers`] says the same in tensors.

use super::{
    Sublayer,
    attention::{self, Attention},
    linear::{self, Linear, LinearGradient},
    tile::{Gradients, Shape, Tile},
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

impl SelfAttention {
    fn attention(&self, shape: Shape) -> Attention {
        Attention { heads: self.heads, width: shape.width, tokens: shape.tokens, context: shape.tokens }
    }
}

impl Sublayer for SelfAttention {
    /// The attention's output before the gate, and what it saved.
    type Saved = (Vec<f32>, attention::Saved);
    const NAME: &'static str = "self-attention";

    fn condition_rows(&self) -> Option<usize> {
        Some(3)
    }

    fn group_size(&self, width: usize) -> usize {
        attention::group_size(width)
    }

    fn forward(&self, tile: Tile, out: &mut [f32]) -> Self::Saved {
        let h = tile.enter();
        let (y, saved) = self.attention(tile.shape).forward(tile.group, &h, &h);
        tile.leave(&y, out);
        (y, saved)
    }

    fn backward(&self, tile: Tile, (y, saved): &Self::Saved, gradient: &[f32], into: Gradients) {
        let h = tile.enter();
        let dy = tile.leave_backward(y, gradient, into.condition);
        let (mut dh, dcontext) = self.attention(tile.shape).backward(tile.group, &h, &h, saved, &dy, into.group);
        add(&mut dh, &dcontext);
        add(into.x, gradient);
        tile.enter_backward(&dh, into.x, into.condition);
    }
}

impl CrossAttention {
    fn attention(&self, shape: Shape) -> Attention {
        Attention { heads: self.heads, width: shape.width, tokens: shape.tokens, context: shape.condition }
    }
}

impl Sublayer for CrossAttention {
    type Saved = attention::Saved;
    const NAME: &'static str = "cross-attention";

    fn condition_rows(&self) -> Option<usize> {
        None
    }

    fn group_size(&self, width: usize) -> usize {
        attention::group_size(width)
    }

    fn forward(&self, tile: Tile, out: &mut [f32]) -> Self::Saved {
        let (y, saved) = self.attention(tile.shape).forward(tile.group, tile.x, tile.condition);
        out.copy_from_slice(tile.x);
        add(out, &y);
        saved
    }

    fn backward(&self, tile: Tile, saved: &Self::Saved, gradient: &[f32], into: Gradients) {
        let (through, dcontext) =
            self.attention(tile.shape).backward(tile.group, tile.x, tile.condition, saved, gradient, into.group);
        add(into.x, gradient);
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

impl Sublayer for Mlp {
    /// What the GELU reads, and the output before the gate.
    type Saved = (Vec<f32>, Vec<f32>);
    const NAME: &'static str = "mlp";

    fn condition_rows(&self) -> Option<usize> {
        Some(3)
    }

    fn group_size(&self, width: usize) -> usize {
        linear::size(width, 4 * width) + linear::size(4 * width, width)
    }

    fn forward(&self, tile: Tile, out: &mut [f32]) -> Self::Saved {
        let (inner, outer) = Self::layers(tile.group, tile.shape.width);
        let before = inner.forward(&tile.enter());
        let mut after = before.clone();
        vectorised(|| after.iter_mut().for_each(|u| *u = gelu(*u)));
        let y = outer.forward(&after);
        tile.leave(&y, out);
        (before, y)
    }

    fn backward(&self, tile: Tile, (before, y): &Self::Saved, gradient: &[f32], into: Gradients) {
        let (inner, outer) = Self::layers(tile.group, tile.shape.width);
        let (mut dinner, rest) = LinearGradient::split(into.group, tile.shape.width, 4 * tile.shape.width);
        let (mut douter, _) = LinearGradient::split(rest, 4 * tile.shape.width, tile.shape.width);
        let dy = tile.leave_backward(y, gradient, into.condition);
        let mut dbefore = outer.backward(&dy);
        let mut after = before.clone();
        vectorised(|| {
            for (after, dbefore) in after.iter_mut().zip(dbefore.iter_mut()) {
                let (value, derivative) = gelu_with_derivative(*after);
                *after = value;
                *dbefore *= derivative;
            }
        });
        douter.add(&after, &dy);
        dinner.add(&tile.enter(), &dbefore);
        add(into.x, gradient);
        tile.enter_backward(&inner.backward(&dbefore), into.x, into.condition);
    }
}

impl Sublayer for Final {
    type Saved = ();
    const NAME: &'static str = "final layer";

    fn condition_rows(&self) -> Option<usize> {
        Some(2)
    }

    fn output_width(&self, _width: usize) -> usize {
        self.output
    }

    fn group_size(&self, width: usize) -> usize {
        linear::size(width, self.output)
    }

    fn forward(&self, tile: Tile, out: &mut [f32]) {
        let (layer, _) = Linear::split(tile.group, tile.shape.width, self.output);
        out.copy_from_slice(&layer.forward(&tile.enter()));
    }

    fn backward(&self, tile: Tile, _saved: &(), gradient: &[f32], into: Gradients) {
        let (layer, _) = Linear::split(tile.group, tile.shape.width, self.output);
        let (mut dlayer, _) = LinearGradient::split(into.group, tile.shape.width, self.output);
        dlayer.add(&tile.enter(), gradient);
        tile.enter_backward(&layer.backward(gradient), into.x, into.condition);
    }
}

/// a += b
fn add(a: &mut [f32], b: &[f32]) {
    vectorised(|| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
}
