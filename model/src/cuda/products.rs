//! Linear layers, by cuBLAS and a kernel for the bias, and the GELU between two of them.

use candle_core::{D, DType, Result, Tensor, bail};

use super::launch::{Gpu, POINTWISE, Spread, suffix};
use crate::graph::dense;

/// Threads of a block that sums over rows, as in the kernels.
const COLUMNS: usize = 32;
const LINES: usize = 8;
/// Rows that a block sums at least, and shares that all rows are cut into at most.
const SHARE_MIN: usize = 64;
const SHARES_MAX: usize = 128;
/// Threads of a block.
const THREADS: usize = 256;
/// Numbers that a thread takes at once.
const VECTOR: usize = 4;

/// x Wᵀ + b, of `x` `[..,I]`, `weight` `[O,I]` and `bias` `[O]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    if x.dim(D::Minus1)? != inputs || bias.dims() != [outputs] || x.elem_count() == 0 {
        bail!("cannot take x {:?} through a layer of {weight:?} and {bias:?}", x.shape());
    }
    let x = dense(x)?;
    let product = as_rows(&x.detach(), inputs)?.matmul(&weight.detach().t()?)?;
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = outputs;
    let gpu = Gpu::of(&x)?;
    let out = gpu.output(shape, x.dtype())?;
    gpu.kernel(&POINTWISE, &format!("add_bias_{}", suffix(x.dtype())?))?
        .tensor(&product)?
        .tensor(bias)?
        .output(&out)?
        .size(outputs)?
        .run(Spread::new((product.dim(0)?, 1, 1), (outputs.div_ceil(VECTOR).next_multiple_of(32).min(THREADS), 1)))?;
    out.of3("linear", [&x, weight, bias], move |[x, weight, _], _, gradient| {
        let gradient = as_rows(gradient, outputs)?;
        // A picture or a caption asks for no gradient.
        let dx = match x.track_op() {
            true => Some(gradient.matmul(&weight.detach())?.reshape(x.shape())?),
            false => None,
        };
        let dweight = gradient.t()?.matmul(&as_rows(&x.detach(), inputs)?)?;
        Ok([dx, Some(dweight), Some(row_sum(&gradient)?)])
    })
}

/// `[..,width]` to `[rows,width]`.
fn as_rows(x: &Tensor, width: usize) -> Result<Tensor> {
    x.reshape(((), width))
}

/// The sum of the rows of `x` `[rows, columns]`, in two passes of fixed order.
fn row_sum(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let share = rows.div_ceil(SHARES_MAX).max(SHARE_MIN);
    let shares = rows.div_ceil(share);
    let (gpu, suffix) = (Gpu::of(x)?, suffix(x.dtype())?);
    let spread = |shares: usize| Spread::new((columns.div_ceil(COLUMNS), shares, 1), (COLUMNS, LINES));
    let parts = gpu.output((shares, columns), DType::F32)?;
    gpu.kernel(&POINTWISE, &format!("sum_rows_{suffix}"))?
        .tensor(x)?
        .output(&parts)?
        .size(rows)?
        .size(columns)?
        .size(share)?
        .run(spread(shares))?;
    let sum = gpu.output(columns, x.dtype())?;
    gpu.kernel(&POINTWISE, &format!("sum_shares_{suffix}"))?
        .tensor(&parts.into_tensor())?
        .output(&sum)?
        .size(shares)?
        .size(columns)?
        .size(shares)?
        .run(spread(1))?;
    Ok(sum.into_tensor())
}

/// GELU in its tanh form.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let x = dense(x)?;
    let count = x.elem_count();
    if count == 0 || !count.is_multiple_of(VECTOR) {
        bail!("the CUDA GELU takes numbers by {VECTOR}, not {:?}", x.shape());
    }
    let spread = move || Spread::new((count.div_ceil(VECTOR * THREADS), 1, 1), (THREADS, 1));
    let gpu = Gpu::of(&x)?;
    let out = gpu.output(x.shape(), x.dtype())?;
    gpu.kernel(&POINTWISE, &format!("gelu_{}", suffix(x.dtype())?))?
        .tensor(&x)?
        .output(&out)?
        .count(count)
        .run(spread())?;
    out.of1("gelu", [&x], move |[x], _, gradient| {
        let gpu = Gpu::of(x)?;
        let dx = gpu.output(x.shape(), x.dtype())?;
        gpu.kernel(&POINTWISE, &format!("gelu_backward_{}", suffix(x.dtype())?))?
            .tensor(x)?
            .tensor(gradient)?
            .output(&dx)?
            .count(count)
            .run(spread())?;
        Ok([Some(dx.into_tensor())])
    })
}
