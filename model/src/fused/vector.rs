//! Loops over rows of numbers that the compiler can vectorise: no calls, no branches, no order of addition that forbids it.

use std::sync::LazyLock;

/// Runs `work` compiled for the vector instructions that this processor has: the crate itself is built for any processor of its kind. What
/// `work` calls must be inlined into it.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);
    ARCH.dispatch(work)
}

/// Partial sums of a reduction: floating-point addition may not be reordered by the compiler.
const LANES: usize = 16;

/// The sum of `term` over two rows of equal length.
#[inline(always)]
pub(crate) fn sum2(first: &[f32], second: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (firsts, first_rest) = first.as_chunks::<LANES>();
    let (seconds, second_rest) = second.as_chunks::<LANES>();
    for (first, second) in firsts.iter().zip(seconds) {
        for lane in 0..LANES {
            lanes[lane] += term(first[lane], second[lane]);
        }
    }
    let mut rest = 0.0;
    for (x, y) in first_rest.iter().zip(second_rest) {
        rest += term(*x, *y);
    }
    rest + total(lanes)
}

/// The sum of `term` over a row.
#[inline(always)]
pub(crate) fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    sum2(row, row, |x, _| term(x))
}

/// Replaces each number of a row, and sums what comes.
#[inline(always)]
pub(crate) fn replace_and_sum(row: &mut [f32], by: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = by(chunk[lane]);
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum_of_rest = 0.0;
    for number in rest {
        *number = by(*number);
        sum_of_rest += *number;
    }
    sum_of_rest + total(lanes)
}

/// The greatest number of a row.
#[inline(always)]
pub(crate) fn greatest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            // `f32::max` keeps the order of NaNs, which costs; a plain comparison is one instruction.
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// e^x, relative error under 3e-7 (the polynomial of Cephes' `expf`); 0 below -87, where f32 has no normal numbers left.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let inside = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = inside - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    // The integer stands in the low bits of `shifted`; moved into the exponent it is a power of two.
    let exponent = shifted.to_bits().wrapping_add(127).wrapping_shl(23);
    let value = mantissa * f32::from_bits(exponent);
    if x < -87.0 { 0.0 } else { value }
}

/// tanh by [`exp`], absolute error under 2e-7.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x.clamp(-20.0, 20.0)) + 1.0)
}

/// sqrt(2 / pi)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// GELU in its tanh form.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)))
}

/// GELU and its derivative.
#[inline(always)]
pub(crate) fn gelu_with_derivative(x: f32) -> (f32, f32) {
    let t = tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_tanh_are_accurate_over_their_range() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let error = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error}");
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 2e-7, "tanh({x}) is off by {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn reductions_reach_the_rest_of_a_row() {
        let row: Vec<f32> = (1..=37).map(|x| x as f32).collect();
        assert_eq!(sum(&row, |x| x), 703.0);
        assert_eq!(sum2(&row, &row, |x, y| x - y), 0.0);
        assert_eq!(greatest(&row), 37.0);
        let mut doubled = row.clone();
        assert_eq!(replace_and_sum(&mut doubled, |x| 2.0 * x), 1406.0);
        assert_eq!((doubled[0], doubled[36]), (2.0, 74.0));
        assert_eq!(greatest(&[-3.0, -2.0]), -2.0);
    }
}
