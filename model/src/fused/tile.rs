//! A few samples that go through a sublayer together, and what surrounds a modulated sublayer in each of them.

use super::modulation::Modulation;

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

/// What a sublayer reads.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) shape: Shape,
    /// The sublayer's parameters, biases before weights.
    pub(crate) group: &'a [f32],
    /// `[samples, tokens, width]`
    pub(crate) x: &'a [f32],
    /// `[samples, rows, width]`
    pub(crate) condition: &'a [f32],
}

/// The gradients of what a sublayer reads, to add to. Those of `x` and the condition are the tile's own; the group's is shared with other tiles.
pub(crate) struct TileGradients<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) condition: &'a mut [f32],
    pub(crate) group: &'a mut [f32],
}

impl<'a> Tile<'a> {
    /// Numbers of a sample in `x`.
    fn rows(&self) -> usize {
        self.shape.tokens * self.shape.width
    }

    /// Numbers of a sample in the condition.
    fn condition_rows(&self) -> usize {
        self.shape.condition * self.shape.width
    }

    /// Each sample's rows of `x`, with its modulation.
    fn modulated(&self) -> impl Iterator<Item = (&'a [f32], Modulation<'a>)> + use<'a> {
        let width = self.shape.width;
        let conditions = self.condition.chunks_exact(self.condition_rows());
        self.x.chunks_exact(self.rows()).zip(conditions.map(move |condition| Modulation::new(condition, width)))
    }

    /// LN(x) (1 + scale) + shift.
    pub(crate) fn enter(&self) -> Vec<f32> {
        let mut h = Vec::with_capacity(self.x.len());
        for (x, modulation) in self.modulated() {
            modulation.enter(x, &mut h);
        }
        h
    }

    /// x + gate y, appended to `out`.
    pub(crate) fn leave(&self, y: &[f32], out: &mut Vec<f32>) {
        for ((x, modulation), y) in self.modulated().zip(y.chunks_exact(self.rows())) {
            modulation.leave(x, y, out);
        }
    }

    /// The gradient of `y` from that of [`leave`](Self::leave)'s result; adds to the condition's.
    pub(crate) fn leave_backward(&self, y: &[f32], gradient: &[f32], dcondition: &mut [f32]) -> Vec<f32> {
        let mut dy = Vec::with_capacity(y.len());
        let rows = y.chunks_exact(self.rows()).zip(gradient.chunks_exact(self.rows()));
        let rows = rows.zip(dcondition.chunks_exact_mut(self.condition_rows()));
        for ((_, modulation), ((y, gradient), dcondition)) in self.modulated().zip(rows) {
            modulation.leave_backward(y, gradient, &mut dy, dcondition);
        }
        dy
    }

    /// Adds to the gradients of `x` and of the condition what that of [`enter`](Self::enter)'s result gives.
    pub(crate) fn enter_backward(&self, dh: &[f32], dx: &mut [f32], dcondition: &mut [f32]) {
        let rows = dh.chunks_exact(self.rows()).zip(dx.chunks_exact_mut(self.rows()));
        let rows = rows.zip(dcondition.chunks_exact_mut(self.condition_rows()));
        for ((x, modulation), ((dh, dx), dcondition)) in self.modulated().zip(rows) {
            modulation.enter_backward(x, dh, dx, dcondition);
        }
    }
}
