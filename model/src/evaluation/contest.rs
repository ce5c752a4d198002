//! Strategies against each other: the same captions and the same noise, drawn by each.

use std::{collections::BTreeMap, fmt};

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{distances::Reference, greatest};
use crate::{
    batch::{BatchSource, Text},
    image_codec::ImageCodec,
    random::Stream,
    sampler::{Guidance, Mixture, Reroute, Routing, SampleSettings, Solver, Step, sample},
    shuffle::Shuffle,
};

/// Pictures that are drawn at once.
const BATCH: usize = 64;

/// Who chooses the experts that draw a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The router, its k most probable.
    Top(usize),
    /// The router, all by their probabilities.
    Full,
    /// The caption's true cluster.
    Oracle,
    /// Chance, once a picture.
    Random,
}

/// What is drawn: captions that were not trained on.
pub struct Prompts {
    text: Text,
    null: Text,
    /// The cluster of each.
    labels: Vec<usize>,
}

/// How strategies are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestSettings {
    /// Euler steps a picture.
    pub steps: usize,
    /// Strength of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Seeds of the noise: each draws all prompts anew.
    pub seeds: Vec<u64>,
}

/// What a strategy achieved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Distances to the references by name, seed by seed.
    pub distances: BTreeMap<String, Vec<f64>>,
    /// Share of pictures whose heaviest expert is the caption's cluster, step by step; empty where there is one expert only.
    pub agreement: Vec<f32>,
}

/// Mean of some seeds' numbers, and their standard deviation (over n - 1; 0 of one).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
}

/// As people write it: `top-2`.
impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top(k) => f.pad(&format!("top-{k}")),
            Self::Full => f.pad("full"),
            Self::Oracle => f.pad("oracle cluster"),
            Self::Random => f.pad("random expert"),
        }
    }
}

impl Spread {
    /// Of these numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let numbers: Vec<f64> = numbers.into_iter().collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (count - 1.0).max(1.0)).sqrt() }
    }
}

/// With as many digits as the deviation leaves meaning to.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean, deviation } = self;
        // Two digits of the deviation, or three of a mean without one.
        let (number, digits) = if *deviation > 0.0 { (*deviation, 1.0) } else { (mean.abs(), 2.0) };
        let decimals = if number > 0.0 { (digits - number.log10().floor()).clamp(0.0, 8.0) as usize } else { 0 };
        match *deviation > 0.0 {
            true => f.pad(&format!("{mean:.decimals$} ± {deviation:.decimals$}")),
            false => f.pad(&format!("{mean:.decimals$}")),
        }
    }
}

impl Outcome {
    /// A distance over the seeds; none if it was not measured.
    pub fn spread(&self, distance: &str) -> Option<Spread> {
        self.distances.get(distance).map(|by_seed| Spread::of(by_seed.iter().copied()))
    }
}

impl Prompts {
    /// `count` captions of `held_out`, in an order that follows from `seed`; beyond its length they come again, to be drawn from other noise.
    /// `null` is the encoding of "", batch 1. Drawing is done on `device`.
    ///
    /// # Errors
    /// If there are no samples, or they cannot be read.
    pub fn of(held_out: &dyn BatchSource, null: &Text, count: usize, seed: u64, device: &Device) -> Result<Self> {
        let samples = held_out.len();
        if samples == 0 {
            candle_core::bail!(
                "there are no held-out captions to draw: prepare the data with a held-out share above 0"
            );
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let chosen: Vec<usize> =
            (0..count).map(|place| Shuffle::new(&key, (place / samples) as u64, samples).at(place % samples)).collect();
        let (mut tokens, mut pooled, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for chosen in chosen.chunks(BATCH) {
            let batch = held_out.batch(chosen, device)?;
            tokens.push(batch.text.tokens);
            pooled.push(batch.text.pooled);
            labels.extend(batch.labels.to_vec1::<u32>()?.into_iter().map(|label| label as usize));
        }
        let text = Text { tokens: Tensor::cat(&tokens, 0)?, pooled: Tensor::cat(&pooled, 0)? };
        Ok(Self { text, null: null.to_device(device)?, labels })
    }

    /// Captions.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if nothing is drawn.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn part(&self, from: usize, count: usize) -> Result<Text> {
        let part = |tensor: &Tensor| tensor.narrow(0, from, count);
        Ok(Text { tokens: part(&self.text.tokens)?, pooled: part(&self.text.pooled)? })
    }
}

/// Draws every prompt by one strategy, `[prompts, 3, height, width]`, and counts at each step in how many pictures the heaviest expert is the
/// caption's cluster. `progress` hears how many pictures are drawn.
///
/// # Errors
/// If candle refuses.
pub fn draw(
    mixture: &Mixture,
    codec: &dyn ImageCodec,
    strategy: Strategy,
    prompts: &Prompts,
    settings: &ContestSettings,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<(Tensor, Vec<u32>)> {
    let mut agreed = vec![0; settings.steps];
    let mut drawn = Vec::new();
    for from in (0..prompts.len()).step_by(BATCH) {
        let count = BATCH.min(prompts.len() - from);
        let labels = &prompts.labels[from..from + count];
        // Each batch has noise of its own, the same for every strategy.
        let noise = Stream::seeded(seed, &format!("contest {from}")).bits();
        let settings = SampleSettings {
            steps: settings.steps,
            solver: Solver::Euler,
            guidance: Guidance::of(settings.guidance),
            routing: match strategy {
                Strategy::Top(k) => Routing::Top(k),
                Strategy::Full => Routing::Full,
                Strategy::Oracle => Routing::Oracle(labels.to_vec()),
                Strategy::Random => Routing::Random(noise),
            },
            reroute: Reroute::EveryStep,
            seed: noise,
        };
        let latents = sample(mixture, &prompts.part(from, count)?, &prompts.null, &settings, &mut |step: &Step| {
            let right = step.weights.iter().zip(labels).filter(|(weights, label)| greatest(weights) == **label);
            agreed[step.number] += right.count() as u32;
        })?;
        drawn.push(codec.decode(&latents.to_device(&Device::Cpu)?)?);
        progress(from + count);
    }
    Ok((Tensor::cat(&drawn, 0)?, agreed))
}

/// Draws every prompt once a seed and says how far that is from the references; the pictures of the first seed too. `progress` hears how many
/// pictures are drawn, over all seeds.
///
/// # Errors
/// If candle refuses.
pub fn compete(
    mixture: &Mixture,
    codec: &dyn ImageCodec,
    strategy: Strategy,
    prompts: &Prompts,
    references: &[Reference],
    settings: &ContestSettings,
    progress: &mut dyn FnMut(usize),
) -> Result<(Outcome, Tensor)> {
    let mut distances: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut agreed = vec![0u32; settings.steps];
    let mut first = None;
    for (round, seed) in settings.seeds.iter().enumerate() {
        let mut of_round = |drawn| progress(round * prompts.len() + drawn);
        let (pictures, agreed_now) = draw(mixture, codec, strategy, prompts, settings, *seed, &mut of_round)?;
        for reference in references {
            for (name, distance) in reference.distances(&pictures)? {
                distances.entry(name).or_default().push(distance);
            }
        }
        agreed.iter_mut().zip(agreed_now).for_each(|(sum, now)| *sum += now);
        first.get_or_insert(pictures);
    }
    let Some(pictures) = first else { candle_core::bail!("a contest takes at least one seed") };
    let all = (settings.seeds.len() * prompts.len()) as f32;
    let agreement = match mixture.experts.len() {
        1 => Vec::new(),
        _ => agreed.into_iter().map(|count| count as f32 / all).collect(),
    };
    Ok((Outcome { distances, agreement }, pictures))
}
