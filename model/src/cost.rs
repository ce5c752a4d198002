//! What a model costs to run.

use crate::config::ExpertConfig;

/// Floating-point operations of one training step or forward pass of a transformer: its matrix products, a multiplication and an addition
/// each. The backward pass has two products for each of the forward pass.
pub fn transformer_flops(config: &ExpertConfig, batch: usize, forward_only: bool) -> f64 {
    let ExpertConfig { channels, patch, width, depth, text_tokens, text_width, .. } = *config;
    let (tokens, patch_numbers) = (config.tokens(), patch * patch * channels);
    let projections = tokens * width * (4 + 2 + 8) * width + text_tokens * width * 2 * width;
    let mixing = 2 * tokens * (tokens + text_tokens) * width;
    let ends = 2 * tokens * patch_numbers * width + text_tokens * text_width * width + 8 * width * width;
    let products = depth * (projections + mixing) + ends;
    (2 * products * batch * if forward_only { 1 } else { 3 }) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
