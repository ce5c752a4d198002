//! A convolution with its batch norm, as networks that are no longer trained can have them: one.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use crate::host::with_numbers;

/// What a kernel sees of a picture and how it moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Height and width.
    pub(super) kernel: (usize, usize),
    /// Step, along both sides.
    pub(super) stride: usize,
    /// Zeros around, so that with a stride of 1 the extent stays; else none.
    pub(super) padded: bool,
    /// Channels are convolved each on its own.
    pub(super) depthwise: bool,
}

impl Window {
    /// One position.
    pub(super) const POINT: Self = Self::of((1, 1));

    /// A padded kernel that moves by one.
    pub(super) const fn of(kernel: (usize, usize)) -> Self {
        Self { kernel, stride: 1, padded: true, depthwise: false }
    }
}

/// A convolution whose weights hold the batch norm after it.
pub(super) struct Convolution {
    weight: Tensor,
    bias: Tensor,
    window: Window,
}

impl Convolution {
    /// The convolution `vs.weight`, followed by a norm of `mean`, `variance`, `scale` (if there is one) and `shift`.
    pub(super) fn new(vs: VarBuilder, norm: Norm, (inputs, outputs): (usize, usize), window: Window) -> Result<Self> {
        let (height, width) = window.kernel;
        let inputs = if window.depthwise { 1 } else { inputs };
        let weight = vs.get((outputs, inputs, height, width), "weight")?;
        let scale = (norm.variance + norm.epsilon)?.sqrt()?.recip()?;
        let scale = match norm.scale {
            Some(learnt) => (scale * learnt)?,
            None => scale,
        };
        let bias = (norm.shift - (norm.mean * &scale)?)?.reshape((1, outputs, 1, 1))?;
        Ok(Self { weight: weight.broadcast_mul(&scale.reshape((outputs, 1, 1, 1))?)?, bias, window })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Window { kernel: (height, width), stride, padded, depthwise } = self.window;
        let (rows, columns) = if padded { (height / 2, width / 2) } else { (0, 0) };
        let x = match (depthwise, rows == columns) {
            (true, _) => each_channel(x, &self.weight, (rows, columns), stride)?,
            (false, true) => x.conv2d(&self.weight, rows, stride, 1, 1)?,
            (false, false) => {
                let x = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
                x.conv2d(&self.weight, 0, stride, 1, 1)?
            }
        };
        x.broadcast_add(&self.bias)
    }
}

/// Convolves each channel of `[batch, channels, height, width]` with its own kernel of `[channels, 1, rows, columns]`. candle makes a convolution of its
/// own of each channel, which takes a hundred times as long.
fn each_channel(x: &Tensor, kernels: &Tensor, padding: (usize, usize), stride: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (_, _, rows, columns) = kernels.dims4()?;
    let extent =
        |side: usize, padding: usize, kernel: usize| (side + 2 * padding + 1).saturating_sub(kernel).div_ceil(stride);
    let (to_height, to_width) = (extent(height, padding.0, rows), extent(width, padding.1, columns));
    let mut out = vec![0f32; batch * channels * to_height * to_width];
    let on_cpu = |tensor: &Tensor| tensor.to_device(&Device::Cpu);
    with_numbers([&on_cpu(x)?, &on_cpu(kernels)?], |[numbers, kernels]| {
        out.par_chunks_mut((to_height * to_width).max(1)).enumerate().for_each(|(plane, out)| {
            let from = &numbers[plane * height * width..][..height * width];
            let kernel = &kernels[plane % channels * rows * columns..][..rows * columns];
            for (y, out) in out.chunks_exact_mut(to_width).enumerate() {
                for (place, weight) in kernel.iter().enumerate() {
                    // Where a kernel's element lies in the source for the result's first column; what lies outside adds nothing.
                    let (row, column) = (y * stride + place / columns, place % columns);
                    if row < padding.0 || row - padding.0 >= height {
                        continue;
                    }
                    let from = &from[(row - padding.0) * width..][..width];
                    let first = padding.1.saturating_sub(column).div_ceil(stride);
                    let end = (width + padding.1 - column).div_ceil(stride).min(to_width);
                    let from = from[first * stride + column - padding.1..].iter().step_by(stride);
                    out[first..end].iter_mut().zip(from).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        });
        Ok(())
    })?;
    Tensor::from_vec(out, (batch, channels, to_height, to_width), x.device())
}

/// A batch norm as it was left by training.
pub(super) struct Norm {
    pub(super) mean: Tensor,
    pub(super) variance: Tensor,
    pub(super) scale: Option<Tensor>,
    pub(super) shift: Tensor,
    pub(super) epsilon: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn each_channel_is_convolved_as_candle_does() {
        let mut numbers = Stream::seeded(0, "convolution");
        for (height, width) in [(7, 5), (6, 8), (1, 3), (2, 1)] {
            let x = numbers.normal_tensor((2, 3, height, width), &Device::Cpu).unwrap();
            let kernels = numbers.normal_tensor((3, 1, 3, 3), &Device::Cpu).unwrap();
            for stride in [1, 2] {
                let found = each_channel(&x, &kernels, (1, 1), stride).unwrap();
                let expected = x.conv2d(&kernels, 1, stride, 1, 3).unwrap();
                assert_eq!(found.dims(), expected.dims());
                let apart = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
                assert!(apart.to_scalar::<f32>().unwrap() < 1e-5, "{height} x {width} by {stride}");
            }
        }
    }
}
