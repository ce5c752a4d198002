//! A linear layer over slices: x W^T + b and its backward.

use super::matrix::{Matrix, MatrixMut};
use crate::vector::vectorised;

/// A linear layer inside a group of parameters: the bias, then the weight.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a> {
    bias: &'a [f32],
    weight: &'a [f32],
    input: usize,
}

/// Its gradient, at the same place in the group's gradient.
pub(crate) struct LinearGradient<'a> {
    bias: &'a mut [f32],
    weight: &'a mut [f32],
    input: usize,
}

/// Numbers that a linear layer takes in a group.
pub(crate) fn size(input: usize, output: usize) -> usize {
    output * (input + 1)
}

impl<'a> Linear<'a> {
    /// The layer from `input` to `output` at the head of `group`, and what follows it.
    pub(crate) fn split(group: &'a [f32], input: usize, output: usize) -> (Self, &'a [f32]) {
        let (own, rest) = group.split_at(size(input, output));
        let (bias, weight) = own.split_at(output);
        (Self { bias, weight, input }, rest)
    }

    /// The layer's first `outputs`, and the others: a joint projection taken apart.
    pub(crate) fn split_outputs(self, outputs: usize) -> (Self, Self) {
        let (bias, bias_rest) = self.bias.split_at(outputs);
        let (weight, weight_rest) = self.weight.split_at(outputs * self.input);
        (Self { bias, weight, ..self }, Self { bias: bias_rest, weight: weight_rest, ..self })
    }

    /// `x` `[rows, input]` to `[rows, output]`.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        Matrix::new(x, self.input).times_plus(Matrix::new(self.weight, self.input).t(), self.bias)
    }

    /// The gradient of the input from that of the output, `[rows, output]` to `[rows, input]`.
    pub(crate) fn backward(&self, dy: &[f32]) -> Vec<f32> {
        Matrix::new(dy, self.bias.len()).times(Matrix::new(self.weight, self.input))
    }
}

impl<'a> LinearGradient<'a> {
    /// See [`Linear::split`].
    pub(crate) fn split(group: &'a mut [f32], input: usize, output: usize) -> (Self, &'a mut [f32]) {
        let (own, rest) = group.split_at_mut(size(input, output));
        let (bias, weight) = own.split_at_mut(output);
        (Self { bias, weight, input }, rest)
    }

    /// See [`Linear::split_outputs`].
    pub(crate) fn split_outputs(self, outputs: usize) -> (Self, Self) {
        let input = self.input;
        let (bias, bias_rest) = self.bias.split_at_mut(outputs);
        let (weight, weight_rest) = self.weight.split_at_mut(outputs * input);
        (Self { bias, weight, input }, Self { bias: bias_rest, weight: weight_rest, input })
    }

    /// Adds what `x` `[rows, input]` and the output's gradient `[rows, output]` give.
    pub(crate) fn add(&mut self, x: &[f32], dy: &[f32]) {
        let output = self.bias.len();
        vectorised!({
            for row in dy.chunks_exact(output) {
                for (sum, dy) in self.bias.iter_mut().zip(row) {
                    *sum += dy;
                }
            }
        });
        MatrixMut::new(self.weight, self.input).add(Matrix::new(dy, output).t(), Matrix::new(x, self.input));
    }
}
