//! The operations that sublayers are made of. Each says its mathematics in tensor operations, which run and differentiate on any device; on CUDA it is
//! kernels with a backward of their own ([`crate::cuda`]), and tests hold the two equal.
//!
//! Activations have the precision of the parameters, f32 or bf16. Modulations are f32 in both, since their gradients are long sums.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Module, ops::softmax};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{parameters::Parameters, sublayers::LAYER_NORM_EPSILON};

/// A linear layer: x Wᵀ + b.
pub(crate) struct Linear(candle_nn::Linear);

impl Linear {
    /// The layer `name.weight`, `name.bias`.
    pub(crate) fn named(parameters: &Parameters, name: &str) -> Result<Self> {
        Ok(Self::new(parameters.get(&format!("{name}.weight"))?, parameters.get(&format!("{name}.bias"))?))
    }

    /// A layer of `weight` `[O,I]` and `bias` `[O]`.
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self(candle_nn::Linear::new(weight, Some(bias)))
    }

    /// Its weight, `[O,I]`.
    pub(crate) fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// `x` `[..,I]`, taken to the layer's precision, to `[..,O]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(self.weight().dtype())?;
        #[cfg(feature = "cuda")]
        if let (true, Some(bias)) = (x.device().is_cuda(), self.0.bias()) {
            return cuda::linear(&x, self.weight(), bias);
        }
        self.0.forward(&x)
    }
}

/// LayerNorm over the last dimension, in f32, without scale and shift. candle's own has no backward.
pub(crate) fn layer_norm(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let precision = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?.to_dtype(precision)
}

/// LN(x) (1 + scale) + shift, of `x` `[B,T,W]`; shift and scale are the first two rows of `modulation` `[B,N,W]`.
pub(crate) fn modulate(x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::modulate(x, modulation);
    }
    let (shift, scale) = (modulation.narrow(1, 0, 1)?, modulation.narrow(1, 1, 1)?);
    layer_norm(x, LAYER_NORM_EPSILON)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(&shift)
}

/// x + y gate, of `x` and `y` `[B,T,W]`; the gate is the third row of `modulation` `[B,3,W]`.
pub(crate) fn gated(x: &Tensor, y: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::gated(x, y, modulation);
    }
    x + y.broadcast_mul(&modulation.narrow(1, 2, 1)?)?
}

/// GELU in its tanh form.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::gelu(x);
    }
    // candle's `gelu` is the tanh form.
    x.gelu()
}

/// softmax(q kᵀ / sqrt(W / heads)) v for each head, of `query` `[B,T,W]` and `key_value` `[B,S,2W]`, keys before values: `[B,T,W]`.
pub(crate) fn attend(query: &Tensor, key_value: &Tensor, heads: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::attends(query, heads)? {
        return cuda::attend(query, key_value, heads);
    }
    let (batch, tokens, width) = query.dims3()?;
    let head = width / heads;
    let split = |t: &Tensor| t.reshape((batch, (), heads, head))?.transpose(1, 2)?.contiguous();
    let query = split(&(query * (head as f64).powf(-0.5))?)?;
    let key = split(&key_value.narrow(D::Minus1, 0, width)?.contiguous()?)?;
    let value = split(&key_value.narrow(D::Minus1, width, width)?.contiguous()?)?;
    let weights = softmax(&query.matmul(&key.transpose(2, 3)?)?, D::Minus1)?;
    weights.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, width))
}

/// [`attend`] among the same tokens: `projected` `[B,T,3W]` holds queries, keys and values side by side.
pub(crate) fn attend_within(projected: &Tensor, heads: usize) -> Result<Tensor> {
    let width = projected.dim(D::Minus1)? / 3;
    let query = projected.narrow(D::Minus1, 0, width)?;
    #[cfg(feature = "cuda")]
    if cuda::attends(&query, heads)? {
        return cuda::attend_within(projected, heads);
    }
    attend(&query, &projected.narrow(D::Minus1, width, 2 * width)?, heads)
}
