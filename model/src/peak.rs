//! What this machine could do at most: the ceilings that a training step is measured against.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use pulp::{Arch, Simd, WithSimd};

use crate::fused::{Matrix, MatrixMut};

/// Multiply-adds in each accumulator between two looks at the clock.
const LINKS: usize = 200_000;
/// Rounds of which the fastest counts: other work on the machine only ever makes a round slower.
const ROUNDS: usize = 15;

/// The most fused multiply-adds that the threads of rayon's pool do at once, in f32 operations a second (two each), by the widest vectors
/// that the processor has and out of registers alone.
pub fn fused_multiply_add_flops() -> f64 {
    let arch = Arch::new();
    // Once on every thread: shared out as tasks, one thread would do them all before another is awake.
    fastest(|| rayon::broadcast(|_| arch.dispatch(Chains)).iter().sum())
}

/// The most operations a second of one thread's matrix products of these extents, `[rows, inner] x [inner, columns]`, by the kernel that the fused
/// operations use.
pub fn matrix_product_flops(rows: usize, inner: usize, columns: usize) -> f64 {
    let (a, b) = (vec![0.5; rows * inner], vec![0.25; inner * columns]);
    let mut c = vec![0.0; rows * columns];
    let once = 2 * rows * inner * columns;
    let repeats = (LINKS * 200).div_ceil(once);
    fastest(|| {
        for _ in 0..repeats {
            MatrixMut::new(&mut c, columns).set(Matrix::new(&a, inner), Matrix::new(&b, columns), 1.0);
            black_box(&mut c);
        }
        (once * repeats) as f64
    })
}

/// The greatest rate of several rounds of `work`, which says how many operations it did.
fn fastest(mut work: impl FnMut() -> f64) -> f64 {
    let round = |_| {
        let started = Instant::now();
        work() / started.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}

/// Chains of multiply-adds: enough of them, each in a register of its own, that none waits for another.
struct Chains;

impl WithSimd for Chains {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        match S::REGISTER_COUNT {
            32.. => chains::<S, 24>(simd),
            _ => chains::<S, 12>(simd),
        }
    }
}

#[inline(always)]
fn chains<S: Simd, const CHAINS: usize>(simd: S) -> f64 {
    let (factor, term) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(1.0)));
    let mut chains = [simd.splat_f32s(black_box(0.0)); CHAINS];
    for _ in 0..LINKS {
        for chain in &mut chains {
            *chain = simd.mul_add_e_f32s(*chain, factor, term);
        }
    }
    black_box(chains);
    (2 * LINKS * CHAINS * S::F32_LANES) as f64
}
