//! The sublayers over slices: a block's three, each with its residual, and the final layer. [`crate::sublayers`] says the same in tensors.

use super::{
    Sublayer,
    attention::{self, Attention},
    linear::{self, Linear, LinearGradient},
    modulation::Modulation,
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

/// Shapes of one sample.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Tokens of the picture.
    pub(crate) tokens: usize,
    /// Rows of the condition.
    pub(crate) condition: usize,
    /// Numbers of a token and of a row of the condition.
    pub(crate) width: usize,
}

impl Shape {
    fn rows(&self) -> usize {
        self.tokens * self.width
    }

    /// The samples' rows of `x` with their modulations.
    fn modulated<'a>(
        &self,
        x: &'a [f32],
        condition: &'a [f32],
    ) -> impl Iterator<Item = (&'a [f32], Modulation<'a>)> + use<'a> {
        let width = self.width;
        let conditions = condition.chunks_exact(self.condition * width);
        x.chunks_exact(self.rows()).zip(conditions.map(move |condition| Modulation::new(condition, width)))
    }

    /// LN(x) (1 + scale) + shift of every sample.
    fn enter(&self, x: &[f32], condition: &[f32]) -> Vec<f32> {
        let mut h = Vec::with_capacity(x.len());
        for (x, modulation) in self.modulated(x, condition) {
            modulation.enter(x, &mut h);
        }
        h
    }

    /// x + gate y of every sample.
    fn leave(&self, x: &[f32], condition: &[f32], y: &[f32], out: &mut [f32]) {
        let rows = y.chunks_exact(self.rows()).zip(out.chunks_exact_mut(self.rows()));
        for ((x, modulation), (y, out)) in self.modulated(x, condition).zip(rows) {
            modulation.leave(x, y, out);
        }
    }

    fn leave_backward(&self, x: &[f32], condition: &[f32], y: &[f32], gradient: &[f32], dm: &mut [f32]) -> Vec<f32> {
        let mut dy = Vec::with_capacity(y.len());
        let rows = y.chunks_exact(self.rows()).zip(gradient.chunks_exact(self.rows()));
        let rows = rows.zip(dm.chunks_exact_mut(self.condition * self.width));
        for ((_, modulation), ((y, gradient), dm)) in self.modulated(x, condition).zip(rows) {
            modulation.leave_backward(y, gradient, &mut dy, dm);
        }
        dy
    }

    fn enter_backward(&self, x: &[f32], condition: &[f32], dh: &[f32], dx: &mut [f32], dm: &mut [f32]) {
        let rows = dh.chunks_exact(self.rows()).zip(dx.chunks_exact_mut(self.rows()));
        let rows = rows.zip(dm.chunks_exact_mut(self.condition * self.width));
        for ((x, modulation), ((dh, dx), dm)) in self.modulated(x, condition).zip(rows) {
            modulation.enter_backward(x, dh, dx, dm);
        }
    }
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

    fn forward(&self, shape: Shape, group: &[f32], x: &[f32], condition: &[f32], out: &mut [f32]) -> Self::Saved {
        let h = shape.enter(x, condition);
        let (y, saved) = self.attention(shape).forward(group, &h, &h);
        shape.leave(x, condition, &y, out);
        (y, saved)
    }

    fn backward(
        &self,
        shape: Shape,
        group: &[f32],
        x: &[f32],
        condition: &[f32],
        (y, saved): &Self::Saved,
        gradient: &[f32],
        dx: &mut [f32],
        dcondition: &mut [f32],
        dgroup: &mut [f32],
    ) {
        let h = shape.enter(x, condition);
        let dy = shape.leave_backward(x, condition, y, gradient, dcondition);
        let (mut dh, dcontext) = self.attention(shape).backward(group, &h, &h, saved, &dy, dgroup);
        add(&mut dh, &dcontext);
        dx.copy_from_slice(gradient);
        shape.enter_backward(x, condition, &dh, dx, dcondition);
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

    fn forward(&self, shape: Shape, group: &[f32], x: &[f32], condition: &[f32], out: &mut [f32]) -> Self::Saved {
        let (y, saved) = self.attention(shape).forward(group, x, condition);
        out.copy_from_slice(x);
        add(out, &y);
        saved
    }

    fn backward(
        &self,
        shape: Shape,
        group: &[f32],
        x: &[f32],
        condition: &[f32],
        saved: &Self::Saved,
        gradient: &[f32],
        dx: &mut [f32],
        dcondition: &mut [f32],
        dgroup: &mut [f32],
    ) {
        let (through, dcontext) = self.attention(shape).backward(group, x, condition, saved, gradient, dgroup);
        dx.copy_from_slice(gradient);
        add(dx, &through);
        add(dcondition, &dcontext);
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

    fn forward(&self, shape: Shape, group: &[f32], x: &[f32], condition: &[f32], out: &mut [f32]) -> Self::Saved {
        let (inner, outer) = Self::layers(group, shape.width);
        let before = inner.forward(&shape.enter(x, condition));
        let mut after = before.clone();
        vectorised(|| after.iter_mut().for_each(|u| *u = gelu(*u)));
        let y = outer.forward(&after);
        shape.leave(x, condition, &y, out);
        (before, y)
    }

    fn backward(
        &self,
        shape: Shape,
        group: &[f32],
        x: &[f32],
        condition: &[f32],
        (before, y): &Self::Saved,
        gradient: &[f32],
        dx: &mut [f32],
        dcondition: &mut [f32],
        dgroup: &mut [f32],
    ) {
        let (inner, outer) = Self::layers(group, shape.width);
        let (mut dinner, rest) = LinearGradient::split(dgroup, shape.width, 4 * shape.width);
        let (mut douter, _) = LinearGradient::split(rest, 4 * shape.width, shape.width);
        let dy = shape.leave_backward(x, condition, y, gradient, dcondition);
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
        dinner.add(&shape.enter(x, condition), &dbefore);
        dx.copy_from_slice(gradient);
        shape.enter_backward(x, condition, &inner.backward(&dbefore), dx, dcondition);
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

    fn forward(&self, shape: Shape, group: &[f32], x: &[f32], condition: &[f32], out: &mut [f32]) {
        let (layer, _) = Linear::split(group, shape.width, self.output);
        out.copy_from_slice(&layer.forward(&shape.enter(x, condition)));
    }

    fn backward(
        &self,
        shape: Shape,
        group: &[f32],
        x: &[f32],
        condition: &[f32],
        _saved: &(),
        gradient: &[f32],
        dx: &mut [f32],
        dcondition: &mut [f32],
        dgroup: &mut [f32],
    ) {
        let (layer, _) = Linear::split(group, shape.width, self.output);
        let (mut dlayer, _) = LinearGradient::split(dgroup, shape.width, self.output);
        dlayer.add(&shape.enter(x, condition), gradient);
        shape.enter_backward(x, condition, &layer.backward(gradient), dx, dcondition);
    }
}

/// a += b
fn add(a: &mut [f32], b: &[f32]) {
    vectorised(|| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
}
