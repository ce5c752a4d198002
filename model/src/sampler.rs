//! Drawing with the mixture: Euler steps along a velocity that several experts and a router make together (paper, section on sampling).

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax;

use crate::{batch::Text, expert::Expert, flow::TIME_SCALE, random::Stream, router::Router};

/// What gives the velocity of one cluster's flow: an [`Expert`], or anything that a test puts in its place.
pub trait Field {
    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `text` `[B,T,D]` to the velocity `[B,C,S,S]`.
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor>;
}

/// What says which cluster a noisy picture comes from: a [`Router`], or anything that a test puts in its place.
pub trait Posterior {
    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `caption` `[B,D]` to logits `[B,K]`.
    fn logits(&self, x: &Tensor, t: &Tensor, caption: &Tensor) -> Result<Tensor>;
}

impl Field for Expert {
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        self.forward(x, t, text)
    }
}

impl Posterior for Router {
    fn logits(&self, x: &Tensor, t: &Tensor, caption: &Tensor) -> Result<Tensor> {
        self.forward(x, t, Some(caption))
    }
}

/// The models to draw with. An expert that is missing takes no part; without a router all present experts count alike.
pub struct Mixture {
    /// Channels, height and width of what is drawn.
    pub shape: (usize, usize, usize),
    /// The experts by cluster.
    pub experts: Vec<Option<Box<dyn Field>>>,
    /// The router.
    pub router: Option<Box<dyn Posterior>>,
}

/// How many experts draw each picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The k most probable, their weights renormalised.
    Top(usize),
    /// All, by their probabilities.
    Full,
}

/// When the router is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reroute {
    /// At every step, as in the paper.
    EveryStep,
    /// At the first step only.
    Once,
}

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// Euler steps from noise to picture.
    pub steps: usize,
    /// Strength of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// How many experts draw each picture.
    pub routing: Routing,
    /// When the router is asked.
    pub reroute: Reroute,
    /// Seed of the noise.
    pub seed: u64,
}

/// Draws a picture a caption, `[B,C,S,S]`. `null` is the encoding of "", batch 1. Picture i depends on its caption, the seed and i, not on the
/// other captions. `progress` hears (step, steps).
///
/// # Errors
/// If the mixture has no expert, or candle refuses.
pub fn sample(
    mixture: &Mixture,
    text: &Text,
    null: &Text,
    settings: &SampleSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Tensor> {
    if mixture.experts.iter().flatten().next().is_none() {
        candle_core::bail!("the mixture has no expert");
    }
    let (channels, height, width) = mixture.shape;
    let pictures = text.tokens.dim(0)?;
    let device = text.tokens.device();
    let noise = |index: usize| {
        let mut stream = Stream::seeded(settings.seed, &format!("picture {index}"));
        stream.normal_tensor((1, channels, height, width), device)
    };
    let mut x = Tensor::cat(&(0..pictures).map(noise).collect::<Result<Vec<_>>>()?, 0)?;
    let mut weights = None;
    for step in 0..settings.steps {
        progress(step, settings.steps);
        let t = 1.0 - step as f64 / settings.steps as f64;
        let fresh = match (weights.take(), settings.reroute) {
            (Some(weights), Reroute::Once) => weights,
            _ => mixture.weights(&x, t, text, settings.routing)?,
        };
        let velocity = mixture.velocity(&x, t, text, null, settings.guidance, &fresh)?;
        x = (x - (velocity / settings.steps as f64)?)?;
        weights = Some(fresh);
    }
    progress(settings.steps, settings.steps);
    Ok(x)
}

impl Mixture {
    /// Each picture's weight for each expert, `[pictures][experts]`: rows sum to 1, absent experts have 0.
    pub fn weights(&self, x: &Tensor, t: f64, text: &Text, routing: Routing) -> Result<Vec<Vec<f32>>> {
        let pictures = x.dim(0)?;
        let probabilities = match &self.router {
            Some(router) => softmax(&router.logits(x, &times(x, t)?, &text.pooled)?, D::Minus1)?.to_vec2::<f32>()?,
            None => vec![vec![1.0; self.experts.len()]; pictures],
        };
        let present: Vec<bool> = self.experts.iter().map(Option::is_some).collect();
        Ok(probabilities.iter().map(|row| routing.weights(row, &present)).collect())
    }

    /// The mixed velocity: every expert runs once, on the pictures that use it, with and without the caption. Guidance before or after
    /// mixing is the same, since the weights depend on neither.
    pub fn velocity(
        &self,
        x: &Tensor,
        t: f64,
        text: &Text,
        null: &Text,
        guidance: f64,
        weights: &[Vec<f32>],
    ) -> Result<Tensor> {
        let device = x.device();
        let mut mixed = x.zeros_like()?;
        for (cluster, expert) in self.experts.iter().enumerate() {
            let Some(expert) = expert else { continue };
            let rows: Vec<u32> =
                (0..weights.len()).filter(|row| weights[*row][cluster] > 0.0).map(|row| row as u32).collect();
            if rows.is_empty() {
                continue;
            }
            let share: Vec<f32> = rows.iter().map(|row| weights[*row as usize][cluster]).collect();
            let share = Tensor::new(share, device)?.reshape((rows.len(), 1, 1, 1))?;
            let rows = Tensor::new(rows, device)?;
            let (x, tokens) = (x.index_select(&rows, 0)?, text.tokens.index_select(&rows, 0)?);
            let velocity = guided(expert.as_ref(), &x, t, &tokens, &null.tokens, guidance)?;
            mixed = mixed.index_add(&rows, &velocity.broadcast_mul(&share)?, 0)?;
        }
        Ok(mixed)
    }
}

/// v_null + guidance (v_text - v_null), both in one batch.
fn guided(expert: &dyn Field, x: &Tensor, t: f64, text: &Tensor, null: &Tensor, guidance: f64) -> Result<Tensor> {
    if guidance == 1.0 {
        return expert.velocity(x, &times(x, t)?, text);
    }
    let pictures = x.dim(0)?;
    let null = null.broadcast_as(text.shape())?;
    let both = Tensor::cat(&[x, x], 0)?;
    let velocity = expert.velocity(&both, &times(&both, t)?, &Tensor::cat(&[text, &null], 0)?)?;
    let (with, without) = (velocity.narrow(0, 0, pictures)?, velocity.narrow(0, pictures, pictures)?);
    &without + ((with - &without)? * guidance)?
}

/// The time of a step for each picture of a batch, as the models read it.
fn times(x: &Tensor, t: f64) -> Result<Tensor> {
    Tensor::full((t * TIME_SCALE) as f32, x.dim(0)?, x.device())
}

impl Routing {
    /// Weights from probabilities: absent experts out, the best k kept, the rest renormalised. Ties go to the lower cluster.
    fn weights(self, probabilities: &[f32], present: &[bool]) -> Vec<f32> {
        let mut order: Vec<usize> = (0..probabilities.len()).filter(|cluster| present[*cluster]).collect();
        order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        if let Routing::Top(k) = self {
            order.truncate(k.max(1));
        }
        let total: f32 = order.iter().map(|cluster| probabilities[*cluster]).sum();
        let mut weights = vec![0.0; probabilities.len()];
        for cluster in &order {
            // A router that gives every present expert nothing says nothing: they count alike.
            weights[*cluster] = if total > 0.0 { probabilities[*cluster] / total } else { 1.0 / order.len() as f32 };
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_keeps_the_best_and_renormalises() {
        let (probabilities, all) = ([0.1, 0.4, 0.3, 0.2], [true; 4]);
        assert_eq!(Routing::Top(1).weights(&probabilities, &all), [0.0, 1.0, 0.0, 0.0]);
        let two = Routing::Top(2).weights(&probabilities, &all);
        assert!((two[1] - 4.0 / 7.0).abs() < 1e-6 && (two[2] - 3.0 / 7.0).abs() < 1e-6 && two[0] == 0.0);
        assert_eq!(Routing::Full.weights(&probabilities, &all), probabilities);
        assert_eq!(Routing::Top(1).weights(&probabilities, &[true, false, true, true]), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(Routing::Full.weights(&[0.0, 1.0], &[true, false]), [1.0, 0.0]);
    }
}
