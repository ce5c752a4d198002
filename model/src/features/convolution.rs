//! A convolution with its batch norm, as networks that are no longer trained can have them: one.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

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
        let groups = if depthwise { x.dim(1)? } else { 1 };
        let x = match rows == columns {
            true => x.conv2d(&self.weight, rows, stride, 1, groups)?,
            false => {
                let x = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
                x.conv2d(&self.weight, 0, stride, 1, groups)?
            }
        };
        x.broadcast_add(&self.bias)
    }
}

/// A batch norm as it was left by training.
pub(super) struct Norm {
    pub(super) mean: Tensor,
    pub(super) variance: Tensor,
    pub(super) scale: Option<Tensor>,
    pub(super) shift: Tensor,
    pub(super) epsilon: f64,
}
