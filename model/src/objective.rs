//! What an expert predicts: how it learns that, and how one that predicts the noise draws together with those that predict the velocity (arXiv 2603.06741).
//!
//! The mixture follows the straight path x_t = (1 - t) x_0 + t eps. An expert that learnt on another path, here the cosine schedule of DDPM, is asked where
//! its own path has the same ratio of signal to noise, with the input scaled to what it has there; its noise then gives both x_0 and the velocity.
//!
//! It learns at such points too: times are drawn on the straight path, uniform as for every expert, and each stands for the point of equal ratio on its own. So
//! it learns from the ratios at which it will be asked, as often as it will be, and a bin of the losses by time holds the same ratios whatever is predicted. Times
//! uniform on the schedule itself, as in DDPM, would only count the middle of the path twice as often as its ends.

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    expert::Expert,
    flow::{self, Noised, TIME_SCALE},
    sampler::Field,
};

/// What an expert's output means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// v = eps - x_0 on the straight path.
    #[default]
    Velocity,
    /// eps on the cosine schedule, its time counted from 0 (picture) to 1000 (noise).
    Epsilon,
}

impl Objective {
    /// The velocity that an expert means by its output.
    pub fn field(self, expert: Expert) -> Box<dyn Field> {
        match self {
            Self::Velocity => Box::new(expert),
            Self::Epsilon => Box::new(EpsilonField(expert)),
        }
    }

    /// What such an expert learns from: clean `x0` `[B,C,S,S]`, moved towards `noise` on its path to where the ratio of signal to noise is that of the
    /// straight path at `times`, one a sample, in 0..1.
    pub fn noised(self, x0: &Tensor, noise: &Tensor, times: &[f32]) -> Result<Noised> {
        match self {
            Self::Velocity => flow::noised(x0, noise, times),
            Self::Epsilon => {
                let times: Vec<f64> = times.iter().copied().map(f64::from).collect();
                let Points { time, alpha, sigma } = Points::of_equal_ratio(&times, x0.device())?;
                let x = (x0.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?)?;
                Ok(Noised { x, time, target: noise.clone() })
            }
        }
    }
}

/// The offset of the cosine schedule, which keeps its first steps from being too small (Nichol and Dhariwal, arXiv 2102.09672, section 3.2).
const OFFSET: f64 = 0.008;
/// The least share of the picture in what such an expert is shown: nearer to noise its answer says nothing about x_0.
const ALPHA_MIN: f64 = 0.01;
/// What x_0 is held within.
const X0_MAX: f64 = 20.0;

/// A point of the cosine schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// The time as the expert reads it, 0..1000.
    time: f64,
    /// The share of the picture, and of the noise; their squares sum to 1.
    alpha: f64,
    sigma: f64,
}

impl Point {
    /// Where the ratio of alpha to sigma is that of the straight path at `t` in 0..1.
    fn of_equal_ratio(t: f64) -> Self {
        let length = (1.0 - t).hypot(t);
        let alpha = ((1.0 - t) / length).clamp(ALPHA_MIN, 1.0);
        let sigma = (1.0 - alpha * alpha).max(0.0).sqrt();
        // alpha = cos((s + offset) / (1 + offset) pi/2) / cos(offset / (1 + offset) pi/2), solved for s.
        let angle = |s: f64| (s + OFFSET) / (1.0 + OFFSET) * std::f64::consts::FRAC_PI_2;
        let angle = (alpha * angle(0.0).cos()).acos();
        let s = angle / std::f64::consts::FRAC_PI_2 * (1.0 + OFFSET) - OFFSET;
        Self { time: s.clamp(0.0, 1.0) * TIME_SCALE, alpha, sigma }
    }
}

/// Points of the cosine schedule, one a sample.
struct Points {
    /// `[B]`.
    time: Tensor,
    /// `[B,1,1,1]`, as sigma.
    alpha: Tensor,
    sigma: Tensor,
}

impl Points {
    /// Where the ratios of alpha to sigma are those of the straight path at `times` in 0..1.
    fn of_equal_ratio(times: &[f64], device: &Device) -> Result<Self> {
        let points: Vec<Point> = times.iter().map(|t| Point::of_equal_ratio(*t)).collect();
        let of_each = |number: fn(&Point) -> f64| column(points.iter().map(number), device);
        Ok(Self {
            time: of_each(|point| point.time)?.flatten_all()?,
            alpha: of_each(|point| point.alpha)?,
            sigma: of_each(|point| point.sigma)?,
        })
    }
}

/// A number a sample, `[B,1,1,1]`.
fn column(numbers: impl Iterator<Item = f64>, device: &Device) -> Result<Tensor> {
    Tensor::from_iter(numbers.map(|it| it as f32), device)?.reshape(((), 1, 1, 1))
}

/// A field that predicts the noise of the cosine schedule, asked for velocities of the straight path. Their errors are those of the noise, times the ratio of
/// noise to picture.
pub struct EpsilonField<F>(pub F);

impl<F: Field> Field for EpsilonField<F> {
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let times: Vec<f64> = t.to_vec1::<f32>()?.iter().map(|t| f64::from(*t) / TIME_SCALE).collect();
        let Points { time, alpha, sigma } = Points::of_equal_ratio(&times, x.device())?;
        let x = x.broadcast_mul(&column(times.iter().map(|t| 1.0 / (1.0 - t).hypot(*t)), x.device())?)?;
        let noise = self.0.velocity(&x, &time, text)?;
        let x0 = (x - noise.broadcast_mul(&sigma)?)?.broadcast_div(&alpha)?.clamp(-X0_MAX, X0_MAX)?;
        noise - x0
    }

    fn is_at_hand(&self) -> bool {
        self.0.is_at_hand()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_the_ratio_of_the_straight_path_and_lies_on_the_cosine_schedule() {
        let alpha_of = |time: f64| {
            let angle = |s: f64| ((s + OFFSET) / (1.0 + OFFSET) * std::f64::consts::FRAC_PI_2).cos();
            angle(time / TIME_SCALE) / angle(0.0)
        };
        for t in [0.0, 0.1, 0.5, 0.9, 0.98] {
            let point = Point::of_equal_ratio(t);
            assert!((point.sigma * (1.0 - t) - point.alpha * t).abs() < 1e-9, "{t}: {point:?}");
            assert!((alpha_of(point.time) - point.alpha).abs() < 1e-9, "{t}: {point:?}");
        }
        // Signal and noise are equal in the middle of the straight path.
        assert!((Point::of_equal_ratio(0.5).alpha - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(Point::of_equal_ratio(1.0).alpha, ALPHA_MIN);
        assert!(Point::of_equal_ratio(0.0).time < 1e-6 && Point::of_equal_ratio(1.0).time > 985.0);
    }
}
