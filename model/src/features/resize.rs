//! Scaling of pictures and of tables of positions, as a product with a matrix along each side.

use candle_core::{Device, Result, Tensor};

/// How a value between others is found. Half pixels are counted as PyTorch's `interpolate(align_corners=False)` and PIL do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Linear between the nearest two; where it shrinks it averages an area (PyTorch's `antialias`, PIL).
    Linear,
    /// Linear between the nearest two, whatever is passed over.
    LinearOfTwo,
    /// Cubic over an area where it shrinks, with a = -0.5 (PyTorch's `antialias`, PIL).
    Cubic,
    /// Cubic between the nearest four, with a = -0.75 (PyTorch's `bicubic`).
    CubicOfFour,
}

impl Filter {
    /// The weight of a value at this distance, in units of the filter.
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        let cubic = |a: f64| match x {
            x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
            _ => 0.0,
        };
        match self {
            Self::Linear | Self::LinearOfTwo => (1.0 - x).max(0.0),
            Self::Cubic => cubic(-0.5),
            Self::CubicOfFour => cubic(-0.75),
        }
    }

    /// What each of `to` values takes of each of `from`, `[to, from]`; `stride` values of the source stand for one step of the result.
    fn matrix(self, from: usize, to: usize, device: &Device) -> Result<Tensor> {
        let stride = from as f64 / to as f64;
        let averages = matches!(self, Self::Linear | Self::Cubic);
        let widening = if averages { stride.max(1.0) } else { 1.0 };
        let reach = if matches!(self, Self::Linear | Self::LinearOfTwo) { 1.0 } else { 2.0 } * widening;
        let mut matrix = vec![0f32; from * to];
        for (place, row) in matrix.chunks_exact_mut(from).enumerate() {
            let centre = (place as f64 + 0.5) * stride - 0.5;
            let near = (centre - reach).ceil() as i64..=(centre + reach).floor() as i64;
            let weights = near.map(|at| (at, self.weight((at as f64 - centre) / widening)));
            if averages {
                // What lies outside does not count.
                let inside: Vec<_> = weights.filter(|(at, _)| (0..from as i64).contains(at)).collect();
                let sum: f64 = inside.iter().map(|(_, weight)| weight).sum();
                inside.iter().for_each(|(at, weight)| row[*at as usize] = (weight / sum) as f32);
            } else {
                // Outside the border goes on.
                weights.for_each(|(at, weight)| row[at.clamp(0, from as i64 - 1) as usize] += weight as f32);
            }
        }
        Tensor::from_vec(matrix, (to, from), device)
    }

    /// Scales `[batch, channels, height, width]` to `height` x `width`.
    pub(super) fn resize(self, pictures: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let (batch, channels, from_height, from_width) = pictures.dims4()?;
        if from_height == 0 || from_width == 0 {
            candle_core::bail!("pictures of {from_height} x {from_width} can't be scaled");
        }
        if (from_height, from_width) == (height, width) {
            return Ok(pictures.clone());
        }
        let rows = self.matrix(from_height, height, pictures.device())?;
        let columns = self.matrix(from_width, width, pictures.device())?.t()?.contiguous()?;
        let pictures = pictures.contiguous()?.reshape((batch * channels, from_height, from_width))?;
        let narrowed = pictures.broadcast_matmul(&columns)?;
        rows.broadcast_matmul(&narrowed)?.reshape((batch, channels, height, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(filter: Filter, from: &[f32], to: usize) -> Vec<f32> {
        let picture = Tensor::from_slice(from, (1, 1, 1, from.len()), &Device::Cpu).unwrap();
        filter.resize(&picture, 1, to).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn near(found: &[f32], expected: &[f32]) {
        let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5);
        assert!(found.len() == expected.len() && close, "{found:?} instead of {expected:?}");
    }

    /// Expected numbers from PyTorch's `interpolate(align_corners=False)`.
    #[test]
    fn rows_scale_as_in_pytorch() {
        let ramp = [0.0, 1.0, 4.0, 9.0, 16.0, 25.0];
        near(&row(Filter::Linear, &ramp, 3), &[1.0, 7.0, 18.857143]);
        near(&row(Filter::LinearOfTwo, &ramp, 4), &[0.25, 3.25, 10.75, 22.75]);
        near(&row(Filter::Cubic, &ramp, 3), &[0.410042, 6.530534, 19.97071]);
        near(&row(Filter::CubicOfFour, &ramp, 4), &[0.121094, 2.828125, 10.796875, 23.207031]);
        near(&row(Filter::Linear, &[1.0, 3.0], 4), &[1.0, 1.5, 2.5, 3.0]);
        near(&row(Filter::Cubic, &[5.0; 4], 7), &[5.0; 7]);
    }
}
