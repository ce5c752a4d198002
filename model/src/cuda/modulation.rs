//! LN(x) (1 + scale) + shift and x + y gate.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Gpu, MODULATION, Spread, suffix};
use crate::{graph::dense, sublayers::LAYER_NORM_EPSILON};

/// Threads of a block that sums over tokens, as in the kernels.
const COLUMNS: usize = 32;
const LINES: usize = 8;
/// Numbers that a thread takes at once.
const VECTOR: usize = 4;
/// Threads of a block at most.
const THREADS_MAX: usize = 256;

/// The sizes of `x` `[batch, tokens, width]` and a modulation `[batch, rows, width]`.
struct Sizes {
    batch: usize,
    tokens: usize,
    width: usize,
    rows: usize,
}

impl Sizes {
    fn of(x: &Tensor, modulation: &Tensor, rows_needed: usize) -> Result<Self> {
        let (batch, tokens, width) = x.dims3()?;
        let rows = modulation.dim(1)?;
        let fits = modulation.dims() == [batch, rows, width] && modulation.dtype() == DType::F32 && rows >= rows_needed;
        if !fits || x.elem_count() == 0 || !width.is_multiple_of(VECTOR) {
            bail!("cannot modulate x {:?} by {modulation:?}: the width must be a multiple of {VECTOR}", x.shape());
        }
        Ok(Self { batch, tokens, width, rows })
    }

    /// Threads that share a row.
    fn threads(&self) -> usize {
        (self.width / VECTOR).next_multiple_of(32).min(THREADS_MAX)
    }

    /// A block for each row.
    fn rows(&self) -> Spread {
        Spread::new((self.batch * self.tokens, 1, 1), (self.threads(), 1))
    }

    /// A block for some columns of each sample.
    fn columns(&self) -> Spread {
        Spread::new((self.width.div_ceil(COLUMNS), self.batch, 1), (COLUMNS, LINES))
    }
}

/// LN(x) (1 + scale) + shift.
pub(crate) fn modulate(x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    let (x, modulation) = (dense(x)?, dense(modulation)?);
    let (sizes, gpu) = (Sizes::of(&x, &modulation, 2)?, Gpu::of(&x)?);
    let out = gpu.output(x.shape(), x.dtype())?;
    gpu.kernel(&MODULATION, &format!("modulate_{}", suffix(x.dtype())?))?
        .tensor(&x)?
        .tensor(&modulation)?
        .output(&out)?
        .size(sizes.tokens)?
        .size(sizes.width)?
        .size(sizes.rows)?
        .real(LAYER_NORM_EPSILON as f32)
        .run(sizes.rows())?;
    out.of2("modulate", [&x, &modulation], move |[x, modulation], _, gradient| {
        let gpu = Gpu::of(x)?;
        let suffix = suffix(x.dtype())?;
        let (dx, statistics) =
            (gpu.output(x.shape(), x.dtype())?, gpu.output((sizes.batch * sizes.tokens, 2), DType::F32)?);
        gpu.kernel(&MODULATION, &format!("modulate_backward_{suffix}"))?
            .tensor(x)?
            .tensor(modulation)?
            .tensor(gradient)?
            .output(&dx)?
            .output(&statistics)?
            .size(sizes.tokens)?
            .size(sizes.width)?
            .size(sizes.rows)?
            .real(LAYER_NORM_EPSILON as f32)
            .run(sizes.rows())?;
        // The gate's row is not read here: its gradient stays zero.
        let dmodulation = modulation.zeros_like()?;
        gpu.kernel(&MODULATION, &format!("modulate_sums_{suffix}"))?
            .tensor(x)?
            .tensor(gradient)?
            .tensor(&statistics.into_tensor())?
            .tensor(&dmodulation)?
            .size(sizes.tokens)?
            .size(sizes.width)?
            .size(sizes.rows)?
            .run(sizes.columns())?;
        Ok([Some(dx.into_tensor()), Some(dmodulation)])
    })
}

/// x + y gate.
pub(crate) fn gated(x: &Tensor, y: &Tensor, modulation: &Tensor) -> Result<Tensor> {
    let (x, y, modulation) = (dense(x)?, dense(y)?, dense(modulation)?);
    let (sizes, gpu) = (Sizes::of(&x, &modulation, 3)?, Gpu::of(&x)?);
    if (x.shape(), x.dtype()) != (y.shape(), y.dtype()) {
        bail!("cannot add a gated {y:?} to {x:?}");
    }
    let threads = sizes.threads();
    let blocks = (sizes.batch * sizes.tokens, sizes.width.div_ceil(VECTOR * threads), 1);
    let out = gpu.output(x.shape(), x.dtype())?;
    gpu.kernel(&MODULATION, &format!("gated_{}", suffix(x.dtype())?))?
        .tensor(&x)?
        .tensor(&y)?
        .tensor(&modulation)?
        .output(&out)?
        .size(sizes.tokens)?
        .size(sizes.width)?
        .size(sizes.rows)?
        .run(Spread::new(blocks, (threads, 1)))?;
    out.of3("gated", [&x, &y, &modulation], move |[_, y, modulation], _, gradient| {
        let gpu = Gpu::of(y)?;
        let (dy, dmodulation) = (gpu.output(y.shape(), y.dtype())?, modulation.zeros_like()?);
        gpu.kernel(&MODULATION, &format!("gated_backward_{}", suffix(y.dtype())?))?
            .tensor(y)?
            .tensor(modulation)?
            .tensor(gradient)?
            .output(&dy)?
            .tensor(&dmodulation)?
            .size(sizes.tokens)?
            .size(sizes.width)?
            .size(sizes.rows)?
            .run(sizes.columns())?;
        Ok([Some(gradient.clone()), Some(dy.into_tensor()), Some(dmodulation)])
    })
}
