//! What surrounds a modulated sublayer: LN(x) (1 + scale) + shift before it, x + gate y after it.

use crate::sublayers::LAYER_NORM_EPSILON;
use crate::vector::{sum, sum2, vectorised};

/// Shift, scale and, where a residual is gated, gate of one sample.
#[derive(Clone, Copy)]
pub(crate) struct Modulation<'a> {
    shift: &'a [f32],
    scale: &'a [f32],
    gate: &'a [f32],
}

impl<'a> Modulation<'a> {
    /// Over the sample's condition, `[2 or 3, width]`.
    pub(crate) fn new(condition: &'a [f32], width: usize) -> Self {
        let (shift, rest) = condition.split_at(width);
        let (scale, gate) = rest.split_at(width);
        Self { shift, scale, gate }
    }

    /// LN(x) (1 + scale) + shift of `x` `[tokens, width]`, appended to `h`.
    pub(crate) fn enter(&self, x: &[f32], h: &mut Vec<f32>) {
        let Self { shift, scale, .. } = *self;
        h.reserve(x.len());
        vectorised!({
            for x in x.chunks_exact(shift.len()) {
                let (mean, deviation) = statistics(x);
                let numbers = x.iter().zip(scale).zip(shift);
                h.extend(numbers.map(|((x, scale), shift)| (x - mean) * deviation * (1.0 + scale) + shift));
            }
        });
    }

    /// x + gate y, appended to `out`.
    pub(crate) fn leave(&self, x: &[f32], y: &[f32], out: &mut Vec<f32>) {
        let gate = self.gate;
        out.reserve(x.len());
        vectorised!({
            for (x, y) in x.chunks_exact(gate.len()).zip(y.chunks_exact(gate.len())) {
                out.extend(x.iter().zip(y).zip(gate).map(|((x, y), gate)| x + gate * y));
            }
        });
    }

    /// From the gradient of [`leave`](Self::leave)'s result: that of `y`, appended to `dy`; the gate's is added to the third row of `dm`.
    pub(crate) fn leave_backward(&self, y: &[f32], gradient: &[f32], dy: &mut Vec<f32>, dm: &mut [f32]) {
        let gate = self.gate;
        let width = gate.len();
        let dgate = &mut dm[2 * width..];
        dy.reserve(y.len());
        vectorised!({
            for (y, gradient) in y.chunks_exact(width).zip(gradient.chunks_exact(width)) {
                dy.extend(gradient.iter().zip(gate).map(|(gradient, gate)| gradient * gate));
                for ((dgate, gradient), y) in dgate.iter_mut().zip(gradient).zip(y) {
                    *dgate += gradient * y;
                }
            }
        });
    }

    /// From the gradient `dh` of [`enter`](Self::enter)'s result: that of `x`, added to `dx`; shift's and scale's are added
    /// to the first rows of `dm`.
    pub(crate) fn enter_backward(&self, x: &[f32], dh: &[f32], dx: &mut [f32], dm: &mut [f32]) {
        let scale = self.scale;
        let width = scale.len();
        let (dshift, rest) = dm.split_at_mut(width);
        let dscale = &mut rest[..width];
        vectorised!({
            let rows = x.chunks_exact(width).zip(dh.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
            let mut dn = vec![0.0; width];
            for ((x, dh), dx) in rows {
                let (mean, deviation) = statistics(x);
                for index in 0..width {
                    dshift[index] += dh[index];
                    dscale[index] += dh[index] * (x[index] - mean) * deviation;
                    dn[index] = dh[index] * (1.0 + scale[index]);
                }
                let gradient_mean = sum(&dn, |g| g) / width as f32;
                let along = sum2(x, &dn, |x, g| (x - mean) * g) * deviation * deviation / width as f32;
                for index in 0..width {
                    dx[index] += deviation * (dn[index] - gradient_mean - (x[index] - mean) * along);
                }
            }
        });
    }
}

/// Mean and reciprocal standard deviation of a row.
#[inline(always)]
fn statistics(row: &[f32]) -> (f32, f32) {
    let mean = sum(row, |x| x) / row.len() as f32;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    (mean, 1.0 / (variance + LAYER_NORM_EPSILON as f32).sqrt())
}
