//! Drawing with the mixture: steps along a velocity that several experts and a router make together (paper, section on sampling).
//!
//! - [`Mixture`]: the models, and the velocity that they make
//! - [`Routing`], [`Calibration`]: which experts draw a picture
//! - [`Guidance`]: how strongly the caption counts
//! - [`Solver`]: how a step is taken
//! - [`Shelf`]: experts that do not fit into memory together
//! - [`Trace`]: which expert was used when

mod guidance;
mod mixture;
mod routing;
mod shelf;
mod solver;
mod trace;

use candle_core::{Result, Tensor};

pub use self::{
    guidance::Guidance,
    mixture::{Field, Mixture, Posterior},
    routing::{CALIBRATION_BINS_MAX, Calibration, CalibrationError, Reroute, Routing, probabilities},
    shelf::{Shelf, ShelfUse},
    solver::Solver,
    trace::Trace,
};
use crate::{batch::Text, random::Stream};

/// How to draw.
#[derive(Clone, Debug)]
pub struct SampleSettings {
    /// Steps from noise to picture, of equal length.
    pub steps: usize,
    /// How a step is taken.
    pub solver: Solver,
    /// How strongly the caption counts.
    pub guidance: Guidance,
    /// Which experts draw each picture.
    pub routing: Routing,
    /// When the router is asked.
    pub reroute: Reroute,
    /// Seed of the noise.
    pub seed: u64,
}

/// A step that is about to be taken.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Steps taken before it.
    pub number: usize,
    /// Steps in all.
    pub steps: usize,
    /// The time that it starts at, 1 for noise, 0 for the picture.
    pub t: f64,
    /// Each picture's weight for each expert, `[pictures][experts]`.
    pub weights: &'a [Vec<f32>],
}

/// Draws a picture a caption, `[B,C,S,S]`. `null` is the encoding of "", batch 1. Picture i depends on its caption, the seed and i, not on the
/// other captions. `watch` hears of each step before it is taken.
///
/// # Errors
/// If the mixture has no expert, or candle refuses.
pub fn sample(
    mixture: &Mixture,
    text: &Text,
    null: &Text,
    settings: &SampleSettings,
    watch: &mut dyn FnMut(&Step),
) -> Result<Tensor> {
    let (channels, height, width) = mixture.shape;
    let pictures = text.tokens.dim(0)?;
    let device = text.tokens.device();
    let noise = |index: usize| {
        let mut stream = Stream::seeded(settings.seed, &format!("picture {index}"));
        stream.normal_tensor((1, channels, height, width), device)
    };
    let mut x = Tensor::cat(&(0..pictures).map(noise).collect::<Result<Vec<_>>>()?, 0)?;
    let time = |step: usize| 1.0 - step as f64 / settings.steps as f64;
    let mut weights = Vec::new();
    for number in 0..settings.steps {
        let mut is_first = true;
        x = settings.solver.step(&x, time(number), time(number + 1), &mut |x, t| {
            if weights.is_empty() || settings.reroute == Reroute::EveryStep {
                weights = mixture.weights(x, t, text, &settings.routing)?;
            }
            if std::mem::take(&mut is_first) {
                watch(&Step { number, steps: settings.steps, t, weights: &weights });
            }
            mixture.velocity(x, t, text, null, settings.guidance, &weights)
        })?;
    }
    Ok(x)
}
