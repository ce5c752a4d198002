//! The models to draw with, and the velocity that they make together.

use candle_core::{Result, Tensor};

use super::{
    Guidance,
    routing::{Calibration, Routing, probabilities},
};
use crate::{batch::Text, expert::Expert, flow::TIME_SCALE, router::Router};

/// What gives the velocity of one cluster's flow: an [`Expert`], or anything that stands in its place.
pub trait Field {
    /// `x` `[B,C,S,S]`, `t` `[B]` on a scale of 0..1000, `text` `[B,T,D]` to the velocity `[B,C,S,S]`.
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor>;

    /// True if asking costs no more than computing: nothing must be loaded first.
    fn is_at_hand(&self) -> bool {
        true
    }
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
    /// How far the router's confidence is to be believed; as it is if not given.
    pub calibration: Option<Calibration>,
}

impl Mixture {
    /// Each picture's weight for each expert, `[pictures][experts]`, at `t` in 0..1: rows sum to 1, absent experts have 0.
    ///
    /// # Errors
    /// If there is no expert, or the oracle cannot be followed.
    pub fn weights(&self, x: &Tensor, t: f64, text: &Text, routing: &Routing) -> Result<Vec<Vec<f32>>> {
        let alike = || candle_core::Result::Ok(vec![vec![1.0; self.experts.len()]; x.dim(0)?]);
        let (routing, probabilities) = match (routing.asks_router(), &self.router) {
            (true, Some(router)) => {
                let logits = router.logits(x, &times(x, t)?, &text.pooled)?;
                (routing, probabilities(&logits, t, self.calibration.as_ref())?)
            }
            // Among those that count alike there are no strongest.
            (true, None) => (&Routing::Full, alike()?),
            (false, _) => (routing, alike()?),
        };
        let present: Vec<bool> = self.experts.iter().map(Option::is_some).collect();
        routing.weights(&probabilities, &present)
    }

    /// The mixed and guided velocity `[B,C,S,S]` at `t` in 0..1: every expert runs once, on the pictures that use it, with and without the caption. What
    /// is mixed is guided afterwards; guidance alone could as well come first, since the weights do not depend on it, rescaling could not.
    pub fn velocity(
        &self,
        x: &Tensor,
        t: f64,
        text: &Text,
        null: &Text,
        guidance: Guidance,
        weights: &[Vec<f32>],
    ) -> Result<Tensor> {
        if !guidance.is_used() {
            return self.mixed(x, t, &text.tokens, weights);
        }
        let pictures = x.dim(0)?;
        let null = null.tokens.broadcast_as(text.tokens.shape())?;
        let (x, tokens) = (Tensor::cat(&[x, x], 0)?, Tensor::cat(&[&text.tokens, &null], 0)?);
        let both = self.mixed(&x, t, &tokens, &[weights, weights].concat())?;
        guidance.apply(&both.narrow(0, 0, pictures)?, &both.narrow(0, pictures, pictures)?)
    }

    /// The sum over the experts of weight times velocity.
    fn mixed(&self, x: &Tensor, t: f64, tokens: &Tensor, weights: &[Vec<f32>]) -> Result<Tensor> {
        let device = x.device();
        let users =
            |cluster: usize| (0..weights.len()).filter(move |row| weights[*row][cluster] > 0.0).map(|row| row as u32);
        let mut used: Vec<(usize, &dyn Field)> = Vec::new();
        for (cluster, expert) in self.experts.iter().enumerate() {
            match expert {
                Some(expert) if users(cluster).next().is_some() => used.push((cluster, expert.as_ref())),
                _ => {}
            }
        }
        // What is at hand comes first, before it makes room for the rest.
        used.sort_by_key(|(cluster, expert)| (!expert.is_at_hand(), *cluster));
        let mut velocities = Vec::new();
        for (cluster, expert) in used {
            let rows = Tensor::from_iter(users(cluster), device)?;
            let x = x.index_select(&rows, 0)?;
            let velocity = expert.velocity(&x, &times(&x, t)?, &tokens.index_select(&rows, 0)?)?;
            velocities.push((cluster, rows, velocity));
        }
        // Added up in the order of the clusters, so that the last bits do not depend on what was at hand.
        velocities.sort_by_key(|(cluster, ..)| *cluster);
        let mut mixed = x.zeros_like()?;
        for (cluster, rows, velocity) in velocities {
            let share = Tensor::from_iter(users(cluster).map(|row| weights[row as usize][cluster]), device)?;
            mixed = mixed.index_add(&rows, &velocity.broadcast_mul(&share.reshape(((), 1, 1, 1))?)?, 0)?;
        }
        Ok(mixed)
    }
}

/// The time of a step for each picture of a batch, as the models read it.
fn times(x: &Tensor, t: f64) -> Result<Tensor> {
    Tensor::full((t * TIME_SCALE) as f32, x.dim(0)?, x.device())
}
