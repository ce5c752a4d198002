//! Multi-head attention with its projections, forward and backward, over slices.

use super::{
    linear::{self, Linear, LinearGradient},
    matrix::{Matrix, MatrixMut},
};
use crate::vector::{exp, greatest, replace_and_sum, sum2, vectorised};

/// The shapes of an attention.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) width: usize,
    /// Tokens of a sample that ask.
    pub(crate) tokens: usize,
    /// Tokens of a sample that are asked.
    pub(crate) context: usize,
}

/// What the backward pass needs of the forward pass, for several samples. The softmax is made again: kept, it would take most of the memory.
pub(crate) struct Saved {
    /// `[samples, tokens, width]`
    query: Vec<f32>,
    /// `[samples, context, 2 width]`: keys, then values.
    key_value: Vec<f32>,
    /// The mixed values before the output projection, `[samples, tokens, width]`.
    mixed: Vec<f32>,
    /// The logarithm of each softmax's denominator, `[samples, heads, tokens]`.
    log_sums: Vec<f32>,
}

/// Numbers in an attention's parameters.
pub(crate) fn parameter_count(width: usize) -> usize {
    linear::size(width, 3 * width) + linear::size(width, width)
}

impl Attention {
    /// `x` `[samples, tokens, width]` attends to `context` `[samples, context, width]`.
    pub(crate) fn forward(&self, group: &[f32], x: &[f32], context: &[f32]) -> (Vec<f32>, Saved) {
        let (query_layer, key_value_layer, output_layer) = self.layers(group);
        let (query, key_value) = (query_layer.forward(x), key_value_layer.forward(context));
        let samples = x.len() / (self.tokens * self.width);
        let mut saved = Saved {
            query,
            key_value,
            mixed: vec![0.0; x.len()],
            log_sums: vec![0.0; samples * self.heads * self.tokens],
        };
        let (mut scores, mut factors) = (vec![0.0; self.tokens * self.context], vec![0.0; self.tokens]);
        for sample in 0..samples {
            self.mix_sample(&mut saved, sample, &mut scores, &mut factors);
        }
        (output_layer.forward(&saved.mixed), saved)
    }

    /// From the gradient of the output, `[samples, tokens, width]`: those of `x` and of the context; the parameters' is added to `dgroup`.
    pub(crate) fn backward(
        &self,
        group: &[f32],
        x: &[f32],
        context: &[f32],
        saved: &Saved,
        dy: &[f32],
        dgroup: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let (query_layer, key_value_layer, output_layer) = self.layers(group);
        let (projection, rest) = LinearGradient::split(dgroup, self.width, 3 * self.width);
        let (mut dquery_layer, mut dkey_value_layer) = projection.split_outputs(self.width);
        let (mut doutput_layer, _) = LinearGradient::split(rest, self.width, self.width);

        doutput_layer.add(&saved.mixed, dy);
        let dmixed = output_layer.backward(dy);
        let (mut dquery, mut dkey_value) = (vec![0.0; saved.query.len()], vec![0.0; saved.key_value.len()]);
        let mut scratch = [vec![0.0; self.tokens * self.context], vec![0.0; self.tokens * self.context]];
        for sample in 0..x.len() / (self.tokens * self.width) {
            self.mix_sample_backward(saved, sample, &dmixed, &mut dquery, &mut dkey_value, &mut scratch);
        }
        dquery_layer.add(x, &dquery);
        dkey_value_layer.add(context, &dkey_value);
        (query_layer.backward(&dquery), key_value_layer.backward(&dkey_value))
    }

    /// The layers to query, to key and value, and to the output.
    fn layers<'a>(&self, group: &'a [f32]) -> (Linear<'a>, Linear<'a>, Linear<'a>) {
        let (projection, rest) = Linear::split(group, self.width, 3 * self.width);
        let (query, key_value) = projection.split_outputs(self.width);
        let (output, _) = Linear::split(rest, self.width, self.width);
        (query, key_value, output)
    }

    /// Columns of a head.
    fn head(&self) -> usize {
        self.width / self.heads
    }

    /// 1 / sqrt(columns of a head)
    fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    /// softmax(q k^T) v of each head of a sample.
    fn mix_sample(&self, saved: &mut Saved, sample: usize, scores: &mut [f32], factors: &mut [f32]) {
        let Saved { query, key_value, mixed, log_sums } = saved;
        let (own, own_context) = (sample * self.tokens * self.width, sample * self.context * 2 * self.width);
        for head in 0..self.heads {
            let (column, size) = (head * self.head(), self.head());
            let query = Matrix::strided(&query[own + column..], self.tokens, size, self.width);
            let key = Matrix::strided(&key_value[own_context + column..], self.context, size, 2 * self.width);
            let value =
                Matrix::strided(&key_value[own_context + self.width + column..], self.context, size, 2 * self.width);
            MatrixMut::new(scores, self.context).set(query, key.t(), self.scale());
            let start = (sample * self.heads + head) * self.tokens;
            let log_sums = &mut log_sums[start..start + self.tokens];
            vectorised!(exponentials::<FMA>(scores, self.context, factors, log_sums));
            let mixed = &mut mixed[own + column..];
            MatrixMut::strided(mixed, self.tokens, size, self.width).set(Matrix::new(scores, self.context), value, 1.0);
            // A head has fewer columns than the softmax: its denominators are paid here.
            vectorised!({
                for (mixed, factor) in mixed.chunks_mut(self.width).zip(&*factors) {
                    mixed[..size].iter_mut().for_each(|it| *it *= factor);
                }
            });
        }
    }

    fn mix_sample_backward(
        &self,
        saved: &Saved,
        sample: usize,
        dmixed: &[f32],
        dquery: &mut [f32],
        dkey_value: &mut [f32],
        [weights, dscores]: &mut [Vec<f32>; 2],
    ) {
        let (tokens, context, width) = (self.tokens, self.context, self.width);
        let (own, own_context) = (sample * tokens * width, sample * context * 2 * width);
        for head in 0..self.heads {
            let (size, own) = (self.head(), own + head * self.head());
            let (own_key, own_value) = (own_context + head * size, own_context + width + head * size);
            let query = Matrix::strided(&saved.query[own..], tokens, size, width);
            let key = Matrix::strided(&saved.key_value[own_key..], context, size, 2 * width);
            let value = Matrix::strided(&saved.key_value[own_value..], context, size, 2 * width);
            let dmixed_of_head = Matrix::strided(&dmixed[own..], tokens, size, width);
            let start = (sample * self.heads + head) * tokens;
            let log_sums = &saved.log_sums[start..start + tokens];

            MatrixMut::new(weights, context).set(query, key.t(), self.scale());
            MatrixMut::new(dscores, context).set(dmixed_of_head, value.t(), 1.0);
            vectorised!(weights_and_gradients::<FMA>(weights, dscores, context, |token| {
                let place = own + token * width..own + token * width + size;
                // sum_j w_j dw_j, by the mixed values instead of over the context.
                (log_sums[token], sum2(&saved.mixed[place.clone()], &dmixed[place], |o, g| o * g))
            }));
            let (weights, dscores) = (Matrix::new(weights, context), Matrix::new(dscores, context));
            MatrixMut::strided(&mut dquery[own..], tokens, size, width).set(dscores, key, self.scale());
            MatrixMut::strided(&mut dkey_value[own_key..], context, size, 2 * width).set(
                dscores.t(),
                query,
                self.scale(),
            );
            MatrixMut::strided(&mut dkey_value[own_value..], context, size, 2 * width).set(
                weights.t(),
                dmixed_of_head,
                1.0,
            );
        }
    }
}

/// The softmax of each row of `scores`, in place, without its denominator; and of that the reciprocal and the logarithm.
#[inline(always)]
fn exponentials<const FMA: bool>(scores: &mut [f32], row_len: usize, factors: &mut [f32], log_sums: &mut [f32]) {
    for ((row, factor), log_sum) in scores.chunks_exact_mut(row_len).zip(factors).zip(log_sums) {
        let shift = greatest(row);
        let denominator = replace_and_sum(row, |score| exp::<FMA>(score - shift));
        *factor = 1.0 / denominator;
        *log_sum = shift + denominator.ln();
    }
}

/// From rows of scores and of the weights' gradients to the weights, exp(score - log_sum), and the scores' gradients, weight (gradient - along); `of_row`
/// gives the two numbers of a row.
#[inline(always)]
fn weights_and_gradients<const FMA: bool>(
    scores: &mut [f32],
    gradients: &mut [f32],
    row_len: usize,
    of_row: impl Fn(usize) -> (f32, f32),
) {
    let rows = scores.chunks_exact_mut(row_len).zip(gradients.chunks_exact_mut(row_len));
    for (row, (scores, gradients)) in rows.enumerate() {
        let (log_sum, along) = of_row(row);
        for (score, gradient) in scores.iter_mut().zip(gradients) {
            *score = exp::<FMA>(*score - log_sum);
            *gradient = *score * (*gradient - along);
        }
    }
}
