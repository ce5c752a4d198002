//! What the machine itself could do: the ceiling that speeds are compared with.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::fused::vectorised;

/// Chains of fused multiply-adds that run beside each other: enough to hide their latency on any processor of today.
const CHAINS: usize = 12;
/// Numbers of a chain, a multiple of the widest vector register's.
const WIDTH: usize = 16;
/// Steps of every chain between two looks at the clock.
const STEPS: usize = 200_000;

/// Fused multiply-adds of f32 that all threads together do in a second, times two: the floating-point operations of numbers that never leave
/// the registers.
pub fn peak_flops(duration: Duration) -> f64 {
    let threads = rayon::current_num_threads();
    let per_thread = (0..threads).into_par_iter().with_max_len(1).map(|_| {
        let (started, mut rounds) = (Instant::now(), 0u64);
        let mut chains = [[1.0f32; WIDTH]; CHAINS];
        while started.elapsed() < duration {
            multiply_add(&mut chains);
            rounds += 1;
        }
        // The result is used, or the compiler would leave the loop out.
        std::hint::black_box(&chains);
        (rounds as usize * STEPS * CHAINS * WIDTH * 2) as f64 / started.elapsed().as_secs_f64()
    });
    per_thread.sum()
}

fn multiply_add(chains: &mut [[f32; WIDTH]; CHAINS]) {
    let (factor, summand) = (std::hint::black_box(0.999_999), std::hint::black_box(1e-6));
    vectorised(|| {
        let mut own = *chains;
        for _ in 0..STEPS {
            for chain in &mut own {
                for number in chain {
                    *number = number.mul_add(factor, summand);
                }
            }
        }
        *chains = own;
    });
}

/// Floating-point operations of one training step or forward pass of a transformer: its matrix products, a multiplication and an addition
/// each. The backward pass has two products for each of the forward pass.
pub fn transformer_flops(config: &crate::config::ExpertConfig, batch: usize, forward_only: bool) -> f64 {
    let crate::config::ExpertConfig { channels, size, patch, width, depth, text_tokens, text_width, .. } = *config;
    let (tokens, patch_numbers) = ((size / patch).pow(2), patch * patch * channels);
    let projections = tokens * width * (4 + 2 + 8) * width + text_tokens * width * 2 * width;
    let mixing = 2 * tokens * (tokens + text_tokens) * width;
    let ends = 2 * tokens * patch_numbers * width + text_tokens * text_width * width + 8 * width * width;
    let products = depth * (projections + mixing) + ends;
    (2 * products * batch * if forward_only { 1 } else { 3 }) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExpertConfig;

    #[test]
    fn a_step_of_the_bench_shape_is_the_known_number_of_operations() {
        let config = ExpertConfig {
            channels: 4,
            size: 32,
            patch: 2,
            width: 192,
            depth: 6,
            heads: 3,
            text_tokens: 77,
            text_width: 768,
        };
        let flops = transformer_flops(&config, 8, false);
        assert!((flops / 49.6e9 - 1.0).abs() < 0.02, "{flops:e}");
        assert_eq!(transformer_flops(&config, 8, true) * 3.0, flops);
    }

    #[test]
    fn the_peak_is_a_speed() {
        assert!(peak_flops(Duration::from_millis(1)) > 1e6);
    }
}
