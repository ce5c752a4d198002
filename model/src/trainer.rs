//! Training a part: one object whose every step follows from (key, step) and the data.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var, backprop::GradStore};
use candle_nn::ops::log_softmax;
use rayon::prelude::*;

use crate::{
    batch::{Batch, BatchSource, Text},
    checkpoint::{self, CheckpointError},
    config::{ConfigError, PartConfig, Shapes},
    draw::{Draw, DrawError, DrawRule, Draws, noise_like},
    expert::Expert,
    flow::noised,
    fused::vectorised,
    host::with_numbers,
    optimizer::{AdamW, Moments, Schedule},
    parameters::{FROZEN, Parameters, group_shapes},
    prefetch::DRAWS_AHEAD_MAX,
    random::Stream,
    report::{LossByTime, StepDurations, StepReport, timed},
    router::Router,
};

/// How a part is trained.
#[derive(Clone, Copy, Debug)]
pub struct TrainSettings {
    /// Samples a step.
    pub batch: usize,
    /// AdamW's learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Global gradient norm above which gradients are scaled down.
    pub clip: f64,
    /// Decay of the averaged weights, approached as min(decay, (1 + n) / (10 + n)).
    pub ema_decay: f64,
    /// Share of captions replaced by the null text.
    pub caption_drop: f32,
}

/// Training that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's shapes do not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state to resume from is not this part's.
    #[error("the state to resume from: {0}")]
    State(#[from] CheckpointError),
    /// The loss or the gradients left the range of numbers.
    #[error(
        "step {step} failed: loss {loss}, gradient norm {gradient_norm}. Go on from an earlier checkpoint, or with a lower learning rate"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f32,
        /// Its gradients' norm.
        gradient_norm: f32,
    },
    /// There is nothing to train or measure on, or it cannot be read.
    #[error(transparent)]
    Draw(#[from] DrawError),
    /// The draw is not the one that is due: the draws begin at another step than the part is at, or have ended.
    #[error(
        "{due} steps are done, and the next draw {}: this is a fault of the program, which must draw from the step that is due",
        .at.map_or("does not come".to_owned(), |at| format!("is for when {at} are"))
    )]
    OutOfStep {
        /// Steps done.
        due: u64,
        /// Steps done when the draw would be due; none after the last draw.
        at: Option<u64>,
    },
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The names under which the parts of a state are stored.
const PARTS_OF_STATE: [&str; 4] = ["parameter.", "average.", "moment1.", "moment2."];
/// The step, in two numbers that f32 holds exactly.
const STEP: &str = "step";
const STEP_BASE: u64 = 1 << 20;
/// The micro-batch, which f32 holds exactly.
const MICRO_BATCH: &str = "micro_batch";

/// A part in training.
pub struct Trainer {
    config: PartConfig,
    settings: TrainSettings,
    rule: DrawRule,
    device: Device,
    model: Model,
    parameters: Parameters,
    variables: BTreeMap<String, Var>,
    /// The averaged weights of every group that is trained.
    average: BTreeMap<String, Vec<f32>>,
    optimizer: AdamW,
    step: u64,
}

/// A part's network.
enum Model {
    Expert(Expert),
    Router(Router),
}

impl Model {
    fn new(config: &PartConfig, parameters: &Parameters) -> candle_core::Result<Self> {
        Ok(match config {
            PartConfig::Expert(config) => Model::Expert(Expert::new(config, parameters)?),
            PartConfig::Router(config) => Model::Router(Router::new(config, parameters)?),
        })
    }

    /// The loss of each sample, `[B]`, of a batch that is noised by `noise` to the times `t`. The batch's loss is their mean.
    fn losses(&self, batch: &Batch, noise: &Tensor, t: &Tensor) -> candle_core::Result<Tensor> {
        let point = noised(&batch.images, noise, t)?;
        match self {
            Model::Expert(expert) => {
                let velocity = expert.forward(&point.x, &point.time, &batch.text.tokens)?;
                (velocity - &point.velocity)?.sqr()?.flatten_from(1)?.mean(D::Minus1)
            }
            Model::Router(router) => {
                let logits = router.forward(&point.x, &point.time, Some(&batch.text.pooled))?;
                log_softmax(&logits, D::Minus1)?.gather(&batch.labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg()
            }
        }
    }
}

/// The gradients of a step, summed over its micro-batches.
#[derive(Default)]
struct Gradients(Option<GradStore>);

impl Gradients {
    fn add(&mut self, variables: &BTreeMap<String, Var>, mut more: GradStore) -> candle_core::Result<()> {
        let Some(sums) = &mut self.0 else {
            self.0 = Some(more);
            return Ok(());
        };
        for variable in variables.values() {
            if let Some(gradient) = more.remove(variable) {
                let sum = match sums.remove(variable) {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                };
                sums.insert(variable, sum);
            }
        }
        Ok(())
    }
}

impl Trainer {
    /// A part at its beginning. `null_text` is the encoding of "", batch 1.
    pub fn new(
        config: PartConfig,
        settings: TrainSettings,
        key: &[u8; 32],
        null_text: &Text,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let parameters = Parameters::initial(&config, key, device)?;
        Self::with_parameters(config, settings, key, null_text, device, parameters)
    }

    fn with_parameters(
        config: PartConfig,
        settings: TrainSettings,
        key: &[u8; 32],
        null_text: &Text,
        device: &Device,
        parameters: Parameters,
    ) -> Result<Self, TrainError> {
        let (parameters, variables) = parameters.into_variables()?;
        let model = Model::new(&config, &parameters)?;
        let mut average = BTreeMap::new();
        for (name, variable) in &variables {
            average.insert(name.clone(), variable.to_vec1()?);
        }
        let schedule = Schedule {
            learning_rate: settings.learning_rate,
            warmup_steps: settings.warmup_steps,
            clip: settings.clip,
        };
        let optimizer = AdamW::new(schedule, &variables);
        let batch = settings.batch.max(1);
        let rule = DrawRule {
            key: *key,
            batch,
            micro_batch: batch,
            caption_drop: settings.caption_drop,
            null_text: null_text.to_device(&Device::Cpu)?,
        };
        let device = device.clone();
        Ok(Self { config, settings, rule, device, model, parameters, variables, average, optimizer, step: 0 })
    }

    /// A part as [`Trainer::state`] left it: the next step is the one that would have come.
    pub fn resume(
        config: PartConfig,
        settings: TrainSettings,
        key: &[u8; 32],
        null_text: &Text,
        state: &[u8],
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let mut tensors = checkpoint::read(state, &state_shapes(&config), &Device::Cpu)?;
        let mut plain = |name: &str| match tensors.remove(name) {
            Some(numbers) => Ok(numbers.to_vec1::<f32>()?),
            None => Err(TrainError::from(CheckpointError::Missing(name.to_owned()))),
        };
        let (step, micro_batch) = (plain(STEP)?, plain(MICRO_BATCH)?);
        let mut parts = PARTS_OF_STATE.map(|_| BTreeMap::new());
        for (name, tensor) in tensors {
            for (prefix, part) in PARTS_OF_STATE.iter().zip(&mut parts) {
                if let Some(name) = name.strip_prefix(prefix) {
                    part.insert(name.to_owned(), tensor.clone());
                }
            }
        }
        let [parameters, average, first, second] = parts;
        let mut on_device = BTreeMap::new();
        for (name, tensor) in parameters {
            on_device.insert(name, tensor.to_device(device)?);
        }
        let parameters = Parameters::initial(&config, key, device)?.with_groups(on_device);
        let mut trainer = Self::with_parameters(config, settings, key, null_text, device, parameters)?;
        let numbers = |tensors: &BTreeMap<String, Tensor>, name: &str| tensors[name].to_vec1::<f32>();
        let mut moments = BTreeMap::new();
        for (name, average_of_name) in &mut trainer.average {
            *average_of_name = numbers(&average, name)?;
            moments.insert(name.clone(), Moments { first: numbers(&first, name)?, second: numbers(&second, name)? });
        }
        trainer.optimizer.restore(moments);
        trainer.step = step[0] as u64 * STEP_BASE + step[1] as u64;
        trainer.set_micro_batch(micro_batch[0] as usize);
        Ok(trainer)
    }

    /// Optimiser steps done since the part's beginning, over all owners.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Samples a step.
    pub fn batch(&self) -> usize {
        self.rule.batch
    }

    /// Samples that go through the model at once. A step's gradients are summed over its micro-batches; how it is cut decides the last bits.
    pub fn micro_batch(&self) -> usize {
        self.rule.micro_batch
    }

    /// Cuts steps into micro-batches of so many samples, at least one and at most the whole step.
    pub fn set_micro_batch(&mut self, samples: usize) {
        self.rule.micro_batch = samples.clamp(1, self.rule.batch);
    }

    /// What decides this part's draws, for whoever makes them ahead.
    pub fn draw_rule(&self) -> &DrawRule {
        &self.rule
    }

    /// One optimiser step on the samples that are due, drawn here and now.
    pub fn step(&mut self, data: &dyn BatchSource) -> Result<StepReport, TrainError> {
        let rule = self.rule.clone();
        self.step_from(&mut Draws::new(&rule, data, self.step))
    }

    /// One optimiser step on the next of `draws`, which follow [`draw_rule`](Self::draw_rule). Where it fails nothing is changed, but the step's draws
    /// are used up.
    pub fn step_from(
        &mut self,
        draws: &mut dyn Iterator<Item = Result<Draw, DrawError>>,
    ) -> Result<StepReport, TrainError> {
        let mut durations = StepDurations::default();
        let (mut gradients, mut losses, mut times) = (Gradients::default(), Vec::new(), Vec::new());
        let batch = self.rule.batch;
        while times.len() < batch {
            let is_due =
                |draw: &Draw| (draw.step, draw.first) == (self.step, times.len()) && draw.first + draw.len() <= batch;
            let draw = match timed(&mut durations.data, || draws.next()).transpose()? {
                Some(draw) if is_due(&draw) => draw,
                other => return Err(TrainError::OutOfStep { due: self.step, at: other.map(|draw| draw.step) }),
            };
            let of_draw = timed(&mut durations.forward, || self.losses(&draw))?;
            timed(&mut durations.backward, || gradients.add(&self.variables, self.backward(&of_draw)?))?;
            losses.push(of_draw.detach());
            times.extend(draw.times);
        }
        let step = self.step + 1;
        let gradients = gradients.0.ok_or(DrawError::NoSamples)?;
        let gradient_norm =
            timed(&mut durations.optimizer, || self.optimizer.step(step, &self.variables, &gradients))? as f32;
        drop(gradients);
        let mut loss_by_time = LossByTime::default();
        // The one place where the host reads what a device has computed.
        let micro_batches = losses.len();
        let losses = timed(&mut durations.optimizer, || Tensor::cat(&losses, 0)?.to_vec1::<f32>())?;
        times.iter().zip(losses).for_each(|(t, loss)| loss_by_time.add(*t, loss));
        let loss = loss_by_time.mean().unwrap_or(f32::NAN);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::NotFinite { step, loss, gradient_norm });
        }
        self.step = step;
        timed(&mut durations.optimizer, || self.update_average())?;
        Ok(StepReport { step, loss, loss_by_time, gradient_norm, micro_batches, durations })
    }

    /// Computes the gradients of two micro-batches of `samples` and throws them away, so that what a step takes can be measured. As many draws are at hand
    /// as in a step with [`Prefetch`](crate::prefetch::Prefetch).
    pub fn rehearse(&self, data: &dyn BatchSource, samples: usize) -> Result<(), TrainError> {
        let rule = DrawRule { micro_batch: samples, ..self.rule.clone() };
        let draws = Draws::new(&rule, data, self.step).take(DRAWS_AHEAD_MAX + 2).collect::<Result<Vec<_>, _>>()?;
        let mut gradients = Gradients::default();
        for draw in &draws[..2] {
            gradients.add(&self.variables, self.backward(&self.losses(draw)?)?)?;
        }
        Ok(())
    }

    /// The losses of a draw, on the device.
    fn losses(&self, draw: &Draw) -> candle_core::Result<Tensor> {
        let t = Tensor::new(draw.times.as_slice(), &self.device)?;
        self.model.losses(&draw.batch.to_device(&self.device)?, &draw.noise.to_device(&self.device)?, &t)
    }

    /// What a draw's losses add to the gradients of the step: that of their share in its mean.
    fn backward(&self, losses: &Tensor) -> candle_core::Result<GradStore> {
        (losses.sum_all()? / self.rule.batch as f64)?.backward()
    }

    /// Mean loss of the averaged weights over up to `limit` samples, at times spread evenly and with noise that is the same at every call.
    pub fn held_out_loss(&self, data: &dyn BatchSource, limit: usize) -> Result<f32, TrainError> {
        let count = data.len().min(limit);
        if count == 0 {
            return Err(DrawError::NoSamples.into());
        }
        let model = Model::new(&self.config, &self.averaged()?)?;
        let indices: Vec<usize> = (0..count).collect();
        let mut sum = 0.0;
        for indices in indices.chunks(self.rule.micro_batch) {
            let batch = data.batch(indices, &Device::Cpu)?;
            let t: Vec<f32> = indices.iter().map(|index| (*index as f32 + 0.5) / count as f32).collect();
            let noise = noise_like(&batch.images, |sample, numbers| {
                Stream::new(&self.rule.key, "held-out", indices[sample] as u64).normals(numbers)
            })?;
            let (batch, noise) = (batch.to_device(&self.device)?, noise.to_device(&self.device)?);
            let losses = model.losses(&batch, &noise, &Tensor::new(t, &self.device)?)?;
            sum += losses.to_vec1::<f32>()?.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        }
        Ok((sum / count as f64) as f32)
    }

    /// The averaged weights, as bytes to sample with.
    pub fn weights(&self) -> Result<Vec<u8>, TrainError> {
        Ok(checkpoint::write(&self.averaged()?.tensors()?)?)
    }

    /// Everything that the next step depends on, as bytes to resume from.
    pub fn state(&self) -> Result<Vec<u8>, TrainError> {
        let mut tensors = BTreeMap::new();
        let [parameter, average, first, second] = PARTS_OF_STATE;
        for (name, tensor) in self.parameters.groups() {
            tensors.insert(format!("{parameter}{name}"), tensor.clone());
        }
        for (name, moments) in self.optimizer.moments() {
            let parts = [(average, &self.average[name]), (first, &moments.first), (second, &moments.second)];
            for (prefix, values) in parts {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{prefix}{name}"), tensor);
            }
        }
        let step = [(self.step / STEP_BASE) as f32, (self.step % STEP_BASE) as f32];
        tensors.insert(STEP.to_owned(), Tensor::new(&step, &Device::Cpu)?);
        tensors.insert(MICRO_BATCH.to_owned(), Tensor::new(&[self.rule.micro_batch as f32], &Device::Cpu)?);
        Ok(checkpoint::write(&tensors)?)
    }

    /// The averaged weights as parameters.
    fn averaged(&self) -> candle_core::Result<Parameters> {
        let mut groups = BTreeMap::new();
        for (name, tensor) in self.parameters.groups() {
            let averaged = match self.average.get(name) {
                Some(values) => Tensor::from_slice(values, tensor.shape(), &self.device)?,
                None => tensor.clone(),
            };
            groups.insert(name.clone(), averaged);
        }
        Ok(self.parameters.with_groups(groups))
    }

    fn update_average(&mut self) -> candle_core::Result<()> {
        let steps = self.step as f64;
        let decay = self.settings.ema_decay.min((1.0 + steps) / (10.0 + steps)) as f32;
        let variables = &self.variables;
        self.average.par_iter_mut().try_for_each(|(name, average)| {
            with_numbers([&variables[name]], |[values]| {
                vectorised(|| {
                    for (average, value) in average.iter_mut().zip(values) {
                        *average += (1.0 - decay) * (value - *average);
                    }
                });
                Ok(())
            })
        })
    }
}

/// Names and shapes of everything in a state.
fn state_shapes(config: &PartConfig) -> Shapes {
    let mut shapes = Shapes::new();
    for (name, shape) in group_shapes(config) {
        for prefix in PARTS_OF_STATE {
            if name != FROZEN || prefix == PARTS_OF_STATE[0] {
                shapes.insert(format!("{prefix}{name}"), shape.clone());
            }
        }
    }
    shapes.insert(STEP.to_owned(), vec![2]);
    shapes.insert(MICRO_BATCH.to_owned(), vec![1]);
    shapes
}
