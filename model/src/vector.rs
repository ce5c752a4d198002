//! Loops over rows of numbers that the compiler can vectorise: no calls, no branches, no order of addition that forbids it.

use std::sync::LazyLock;

/// The vector instructions that this processor has: the crate itself is built for any processor of its kind.
pub(crate) static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Evaluates an expression compiled for [`ARCH`]. `FMA` stands in it for whether there a multiplication and an addition are one instruction: where they are not, a
/// fused one is a slow call. What it calls must be inlined into it.
///
/// A macro, since a closure that is called for each kind of processor is inlined into none, and then compiled for the oldest.
macro_rules! vectorised {
    ($work:expr) => {
        match *$crate::vector::ARCH {
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V4(simd) => {
                #[allow(dead_code)]
                const FMA: bool = true;
                pulp::Simd::vectorize(simd, || $work)
            }
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V3(simd) => {
                #[allow(dead_code)]
                const FMA: bool = true;
                pulp::Simd::vectorize(simd, || $work)
            }
            #[cfg(target_arch = "aarch64")]
            pulp::Arch::Neon(simd) => {
                #[allow(dead_code)]
                const FMA: bool = true;
                pulp::Simd::vectorize(simd, || $work)
            }
            _ => {
                #[allow(dead_code)]
                const FMA: bool = false;
                $work
            }
        }
    };
}
pub(crate) use vectorised;

/// a b + c, rounded once or twice.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
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

/// The least number that [`exp`] tells from those below it: f32 has no normal numbers further down.
const EXP_LEAST: f32 = -87.0;

/// e^x for x up to 88, relative error under 3e-7 (the polynomial of Cephes' `expf`); e^-87 below -87.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Written so that what is no number stays none.
    let x = if x < EXP_LEAST { EXP_LEAST } else { x };
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    let r = mul_add::<FMA>(power, 2.121_944_4e-4, mul_add::<FMA>(power, -0.693_359_4, x));
    let p = mul_add::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = mul_add::<FMA>(p, r, 8.333_452e-3);
    let p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    let p = mul_add::<FMA>(p, r, 0.166_666_66);
    let p = mul_add::<FMA>(p, r, 0.5);
    let mantissa = mul_add::<FMA>(p, r * r, r) + 1.0;
    // The integer stands in the low bits of `shifted`; moved into the exponent it is a power of two.
    mantissa * f32::from_bits(shifted.to_bits().wrapping_add(127).wrapping_shl(23))
}

/// 2 sqrt(2 / pi)
const GELU_SCALE: f32 = 2.0 * 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// The share of x that GELU lets through: (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as the sigmoid of twice the tanh's argument.
#[inline(always)]
fn gelu_share<const FMA: bool>(x: f32) -> f32 {
    let exponent = x * mul_add::<FMA>(x * x, -GELU_SCALE * GELU_CUBIC, -GELU_SCALE);
    1.0 / (1.0 + exp::<FMA>(if exponent > 88.0 { 88.0 } else { exponent }))
}

/// GELU in its tanh form.
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    x * gelu_share::<FMA>(x)
}

/// GELU and its derivative.
#[inline(always)]
pub(crate) fn gelu_with_derivative<const FMA: bool>(x: f32) -> (f32, f32) {
    let share = gelu_share::<FMA>(x);
    let slope = mul_add::<FMA>(x * x, 3.0 * GELU_SCALE * GELU_CUBIC, GELU_SCALE);
    let value = x * share;
    (value, mul_add::<FMA>(value * (1.0 - share), slope, share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        fn check<const FMA: bool>() {
            for step in -8700..8800 {
                let x = step as f32 / 100.0;
                let error = (f64::from(exp::<FMA>(x)) / f64::from(x).exp() - 1.0).abs();
                assert!(error < 3e-7, "exp({x}) is off by {error}");
            }
            assert!(exp::<FMA>(f32::NEG_INFINITY) < 2e-38);
            assert!(exp::<FMA>(f32::NAN).is_nan());
        }
        check::<true>();
        check::<false>();
    }

    #[test]
    fn gelu_and_its_derivative_are_accurate() {
        fn check<const FMA: bool>() {
            for step in -3000..3000 {
                let x = f64::from(step) / 100.0;
                let tanh = |x: f64| ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
                let expected = |x: f64| 0.5 * x * (1.0 + tanh(x));
                let slope = (expected(x + 1e-5) - expected(x - 1e-5)) / 2e-5;
                let (value, derivative) = gelu_with_derivative::<FMA>(x as f32);
                assert_eq!(value, gelu::<FMA>(x as f32));
                assert!((f64::from(value) - expected(x)).abs() < 1e-6 * x.abs().max(1.0), "gelu({x}) is {value}");
                assert!((f64::from(derivative) - slope).abs() < 2e-6, "gelu'({x}) is {derivative}, not {slope}");
            }
            assert!(gelu::<FMA>(f32::NAN).is_nan());
        }
        check::<true>();
        check::<false>();
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
