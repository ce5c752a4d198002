//! Operations with a backward of their own.
//!
//! candle's fast LayerNorm and softmax have none: `backward()` silently gives no gradient. Built from basic operations both cost many passes and
//! temporaries, and so does GELU, whose `tanh` is scalar libm. On the CPU each is one pass here, forward and backward; on other devices they are
//! composed of basic operations, with the same gradients.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};

/// Added to the variance, as in DiT.
pub const LAYER_NORM_EPSILON: f64 = 1e-6;

/// LayerNorm over the last dimension, without scale and shift.
pub fn layer_norm(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(LayerNorm { epsilon: epsilon as f32 });
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + epsilon)?.sqrt()?)
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Softmax);
    }
    let exponentials = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// GELU in its tanh form.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Gelu) } else { x.gelu() }
}

/// The values of a contiguous f32 tensor on the CPU.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("expected a contiguous f32 tensor, got {:?} {:?}", storage_type(storage), layout.shape()),
    }
}

fn storage_type(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// The length of the last dimension, at least 1 so that it can divide.
fn row_len(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1).max(1)
}

struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    /// Mean and reciprocal standard deviation of a row.
    fn statistics(&self, row: &[f32]) -> (f32, f32) {
        let mean = sum(row, |x| x) / row.len() as f32;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(row_len(layout)) {
            let (mean, scale) = self.statistics(row);
            y.extend(row.iter().map(|x| (x - mean) * scale));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let backward = LayerNormBackward(LayerNorm { epsilon: self.epsilon });
        x.apply_op2_no_bwd(&gradient.contiguous()?, &backward).map(Some)
    }
}

struct LayerNormBackward(LayerNorm);

impl CustomOp2 for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer-norm-backward"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gradient) = (values(s1, l1)?, values(s2, l2)?);
        let len = row_len(l1);
        let mut dx = Vec::with_capacity(x.len());
        for (row, gradient) in x.chunks_exact(len).zip(gradient.chunks_exact(len)) {
            let (mean, scale) = self.0.statistics(row);
            let gradient_mean = sum(gradient, |g| g) / len as f32;
            let along = sum2(row, gradient, |x, g| (x - mean) * g) * scale * scale / len as f32;
            dx.extend(row.iter().zip(gradient).map(|(x, g)| scale * (g - gradient_mean - (x - mean) * along)));
        }
        Ok((CpuStorage::F32(dx), l1.shape().clone()))
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let len = row_len(layout);
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(len) {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let start = y.len();
            y.extend(row.iter().map(|x| exp(x - greatest)));
            let scale = 1.0 / sum(&y[start..], |y| y);
            y[start..].iter_mut().for_each(|y| *y *= scale);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        y.apply_op2_no_bwd(&gradient.contiguous()?, &SoftmaxBackward).map(Some)
    }
}

struct SoftmaxBackward;

impl CustomOp2 for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "softmax-backward"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, gradient) = (values(s1, l1)?, values(s2, l2)?);
        let len = row_len(l1);
        let mut dx = Vec::with_capacity(y.len());
        for (y, gradient) in y.chunks_exact(len).zip(gradient.chunks_exact(len)) {
            let along = sum2(y, gradient, |y, g| y * g);
            dx.extend(y.iter().zip(gradient).map(|(y, g)| y * (g - along)));
        }
        Ok((CpuStorage::F32(dx), l1.shape().clone()))
    }
}

/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let gelu = |x: &f32| 0.5 * x * (1.0 + tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
        Ok((CpuStorage::F32(x.iter().map(gelu).collect()), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        x.apply_op2_no_bwd(&gradient.contiguous()?, &GeluBackward).map(Some)
    }
}

struct GeluBackward;

impl CustomOp2 for GeluBackward {
    fn name(&self) -> &'static str {
        "gelu-backward"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let derivative = |(x, g): (&f32, &f32)| {
            let t = tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
            let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
            g * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        };
        let dx = values(s1, l1)?.iter().zip(values(s2, l2)?).map(derivative).collect();
        Ok((CpuStorage::F32(dx), l1.shape().clone()))
    }
}

/// Partial sums of a reduction, so that it vectorises: floating-point addition may not be reordered by the compiler.
const LANES: usize = 16;

fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|x| term(*x)).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    rest + lanes.iter().sum::<f32>()
}

fn sum2(first: &[f32], second: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (firsts, seconds) = (first.chunks_exact(LANES), second.chunks_exact(LANES));
    let rests = firsts.remainder().iter().zip(seconds.remainder());
    let rest: f32 = rests.map(|(x, y)| term(*x, *y)).sum();
    for (first, second) in firsts.zip(seconds) {
        for ((lane, x), y) in lanes.iter_mut().zip(first).zip(second) {
            *lane += term(*x, *y);
        }
    }
    rest + lanes.iter().sum::<f32>()
}

/// e^x without a call and without a branch, so that loops over it vectorise; relative error under 2e-7 (polynomial of Cephes' `expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    // The integer stands in the low bits of `shifted`; moved into the exponent it is a power of two.
    let exponent = shifted.to_bits().wrapping_add(127).wrapping_shl(23);
    mantissa * f32::from_bits(exponent)
}

/// tanh by [`exp`].
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x.clamp(-20.0, 20.0)) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    use crate::random::Stream;

    #[test]
    fn exp_and_tanh_are_accurate_over_their_range() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let error = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error}");
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 2e-7, "tanh({x}) is off by {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
    }

    /// Output and gradient of the fused operation, against the same mathematics in basic operations.
    fn agrees(fused: impl Fn(&Tensor) -> Result<Tensor>, plain: impl Fn(&Tensor) -> Result<Tensor>) {
        let device = Device::Cpu;
        let x = Var::from_tensor(&Stream::seeded(1, "x").normal_tensor((3, 5, 37), &device).unwrap()).unwrap();
        let weight = Stream::seeded(1, "weight").normal_tensor((3, 5, 37), &device).unwrap();
        let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let y = f(x.as_tensor()).unwrap();
            let gradients = (&y * &weight).unwrap().sum_all().unwrap().backward().unwrap();
            [y, gradients.get(&x).unwrap().clone()]
        };
        for (ours, theirs) in run(&fused).iter().zip(run(&plain)) {
            let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference < 5e-6, "differs by {difference}");
        }
    }

    #[test]
    fn fused_operations_agree_with_their_definitions() {
        agrees(
            |x| layer_norm(x, 1e-6),
            |x| {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                centred.broadcast_div(&(centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?)
            },
        );
        agrees(softmax, |x| x.exp()?.broadcast_div(&x.exp()?.sum_keepdim(D::Minus1)?));
        agrees(gelu, |x| x.gelu());
    }
}
