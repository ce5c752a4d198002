//! Training a part: one object whose every step follows from (key, step) and the data.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::loss::{cross_entropy, mse};

use crate::{
    batch::{Batch, BatchSource, Text},
    checkpoint::{self, CheckpointError},
    config::{ConfigError, PartConfig, Shapes},
    device::compute_precision,
    expert::Expert,
    flow::noised,
    optimizer::{Failure, GroupState, Optimizer, Schedule},
    parameters::{FROZEN, Parameters, group_shapes},
    random::Stream,
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

/// What a step did.
///
/// Reading a number from a GPU waits for it, so there loss and norm are those of the newest step whose number is a multiple of [`READ_EVERY`], or of
/// the trainer's first.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The batch's loss: mean squared error of the velocity, or cross-entropy of the cluster.
    pub loss: f32,
    /// The gradients' global norm before clipping.
    pub gradient_norm: f32,
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
    /// There is nothing to train or measure on.
    #[error("the part has no samples")]
    NoSamples,
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The names under which the parts of a state are stored.
const PARTS_OF_STATE: [&str; 4] = ["parameter.", "average.", "moment1.", "moment2."];
/// The step, in two numbers that f32 holds exactly.
const STEP: &str = "step";
const STEP_BASE: u64 = 1 << 20;

/// Steps between two looks at a GPU's numbers.
pub const READ_EVERY: u64 = 16;

/// A part in training.
pub struct Trainer {
    config: PartConfig,
    settings: TrainSettings,
    key: [u8; 32],
    null_text: Text,
    device: Device,
    model: Model,
    /// What is stored but not trained, f32.
    frozen: Option<Tensor>,
    optimizer: Optimizer,
    /// Steps asked for. On a GPU one may have failed since it was last looked at; then no later one did anything.
    step: u64,
    report: StepReport,
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

    /// The mean loss of a batch that was noised by `noise` to the times `t`.
    fn loss(&self, batch: &Batch, noise: &Tensor, t: &Tensor) -> candle_core::Result<Tensor> {
        let point = noised(&batch.images, noise, t)?;
        match self {
            Model::Expert(expert) => {
                let velocity = expert.forward(&point.x, &point.time, &batch.text.tokens)?;
                mse(&velocity, &point.velocity)
            }
            Model::Router(router) => {
                let logits = router.forward(&point.x, &point.time, Some(&batch.text.pooled))?;
                cross_entropy(&logits, &batch.labels)
            }
        }
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
        let frozen = parameters.group(FROZEN);
        let schedule = Schedule {
            learning_rate: settings.learning_rate,
            warmup_steps: settings.warmup_steps,
            clip: settings.clip,
            ema_decay: settings.ema_decay,
        };
        let (optimizer, parameters) = Optimizer::new(schedule, parameters, compute_precision(device))?;
        let model = Model::new(&config, &parameters)?;
        let (key, null_text, device) = (*key, null_text.clone(), device.clone());
        let report = StepReport { step: 0, loss: f32::NAN, gradient_norm: f32::NAN };
        Ok(Self { config, settings, key, null_text, device, model, frozen, optimizer, step: 0, report })
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
        let step = match tensors.remove(STEP) {
            Some(step) => step.to_vec1::<f32>()?,
            None => return Err(CheckpointError::Missing(STEP.to_owned()).into()),
        };
        let mut parts = PARTS_OF_STATE.map(|_| BTreeMap::new());
        for (name, tensor) in tensors {
            for (prefix, part) in PARTS_OF_STATE.iter().zip(&mut parts) {
                if let Some(name) = name.strip_prefix(prefix) {
                    part.insert(name.to_owned(), tensor.clone());
                }
            }
        }
        let [mut parameters, average, mut first, mut second] = parts;
        let on_device = parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?)));
        let on_device =
            Parameters::initial(&config, key, device)?.with_groups(on_device.collect::<candle_core::Result<_>>()?);
        let mut trainer = Self::with_parameters(config, settings, key, null_text, device, on_device)?;
        let mut groups = BTreeMap::new();
        for (name, average) in average {
            // `read` has checked that the state names each group in every part.
            let taken = (parameters.remove(&name), first.remove(&name), second.remove(&name));
            if let (Some(parameter), Some(first), Some(second)) = taken {
                groups.insert(name, GroupState { parameter, average, first, second });
            }
        }
        trainer.optimizer.restore(&groups)?;
        trainer.step = step[0] as u64 * STEP_BASE + step[1] as u64;
        Ok(trainer)
    }

    /// Optimiser steps done since the part's beginning, over all owners; on a GPU, those asked for.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// One optimiser step on the batch that is due. Samples are drawn without replacement, in an order of their own for each epoch.
    pub fn step(&mut self, data: &dyn BatchSource) -> Result<StepReport, TrainError> {
        if data.is_empty() {
            return Err(TrainError::NoSamples);
        }
        let indices = self.due_samples(data.len());
        let batch = data.batch(&indices, &self.device)?;
        let batch = self.drop_captions(batch, &mut self.stream("caption-drop"))?;
        let mut times = self.stream("time");
        let t: Vec<f32> = indices.iter().map(|_| times.uniform()).collect();
        let t = Tensor::new(t, &self.device)?;
        let noise = self.stream("noise").normal_tensor(batch.images.shape().clone(), &self.device)?;

        let loss = self.model.loss(&batch, &noise, &t)?;
        let gradients = loss.backward()?;
        let gradient_norm = self.optimizer.step(self.step + 1, &loss, &gradients)?;
        self.step += 1;
        self.look(&loss, &gradient_norm)
    }

    /// Reads what the step did, where that is at hand or due.
    fn look(&mut self, loss: &Tensor, gradient_norm: &Tensor) -> Result<StepReport, TrainError> {
        self.report.step = self.step;
        let is_first = self.report.loss.is_nan();
        if self.device.is_cpu() || is_first || self.step.is_multiple_of(READ_EVERY) {
            if let Some(Failure { step, loss, gradient_norm }) = self.optimizer.failure()? {
                // Nothing has changed since the step before it: the trainer is as it was then.
                self.step = step - 1;
                self.optimizer.forget_failure()?;
                return Err(TrainError::NotFinite { step, loss, gradient_norm });
            }
            (self.report.loss, self.report.gradient_norm) = (loss.to_scalar()?, gradient_norm.to_scalar()?);
        }
        Ok(self.report)
    }

    /// Mean loss of the averaged weights over up to `limit` samples, at times spread evenly and with noise that is the same at every call.
    pub fn held_out_loss(&self, data: &dyn BatchSource, limit: usize) -> Result<f32, TrainError> {
        let count = data.len().min(limit);
        if count == 0 {
            return Err(TrainError::NoSamples);
        }
        let model = Model::new(&self.config, &self.optimizer.averaged(&self.device)?.to_compute()?)?;
        let indices: Vec<usize> = (0..count).collect();
        let mut sum = 0.0;
        for (number, indices) in indices.chunks(self.settings.batch.max(1)).enumerate() {
            let batch = data.batch(indices, &self.device)?;
            let t: Vec<f32> = indices.iter().map(|index| (*index as f32 + 0.5) / count as f32).collect();
            let mut stream = Stream::new(&self.key, "held-out", number as u64);
            let noise = stream.normal_tensor(batch.images.shape().clone(), &self.device)?;
            let loss = model.loss(&batch, &noise, &Tensor::new(t, &self.device)?)?;
            sum += f64::from(loss.to_scalar::<f32>()?) * indices.len() as f64;
        }
        Ok((sum / count as f64) as f32)
    }

    /// The averaged weights, as bytes to sample with.
    pub fn weights(&self) -> Result<Vec<u8>, TrainError> {
        Ok(checkpoint::write(&self.optimizer.averaged(&Device::Cpu)?.tensors()?)?)
    }

    /// Everything that the next step depends on, as bytes to resume from.
    pub fn state(&self) -> Result<Vec<u8>, TrainError> {
        let mut tensors = BTreeMap::new();
        let [parameter, average, first, second] = PARTS_OF_STATE;
        if let Some(frozen) = &self.frozen {
            tensors.insert(format!("{parameter}{FROZEN}"), frozen.clone());
        }
        for (name, group) in self.optimizer.state()? {
            tensors.insert(format!("{parameter}{name}"), group.parameter);
            tensors.insert(format!("{average}{name}"), group.average);
            tensors.insert(format!("{first}{name}"), group.first);
            tensors.insert(format!("{second}{name}"), group.second);
        }
        // A step that failed unseen and those after it changed nothing.
        let done = self.optimizer.failure()?.map_or(self.step, |failure| failure.step - 1);
        let step = [(done / STEP_BASE) as f32, (done % STEP_BASE) as f32];
        tensors.insert(STEP.to_owned(), Tensor::new(&step, &Device::Cpu)?);
        Ok(checkpoint::write(&tensors)?)
    }

    /// The stream of a purpose at the step that is due.
    fn stream(&self, purpose: &str) -> Stream {
        Stream::new(&self.key, purpose, self.step)
    }

    /// Indices of the samples that are due: a pure function of the step.
    fn due_samples(&self, samples: usize) -> Vec<usize> {
        let batch = self.settings.batch.max(1);
        let mut due = Vec::with_capacity(batch);
        let mut position = self.step as usize * batch;
        while due.len() < batch {
            let (epoch, offset) = (position / samples, position % samples);
            let order = Stream::new(&self.key, "epoch", epoch as u64).permutation(samples);
            let taken = (batch - due.len()).min(samples - offset);
            due.extend_from_slice(&order[offset..offset + taken]);
            position += taken;
        }
        due
    }

    /// Replaces a share of the captions by the null text.
    fn drop_captions(&self, batch: Batch, stream: &mut Stream) -> candle_core::Result<Batch> {
        let count = batch.images.dim(0)?;
        let kept: Vec<u8> = (0..count).map(|_| u8::from(stream.uniform() >= self.settings.caption_drop)).collect();
        let kept = Tensor::new(kept, &self.device)?;
        let choose = |text: &Tensor, null: &Tensor| {
            let mut shape = vec![count];
            shape.resize(text.rank(), 1);
            let null = null.to_device(&self.device)?.broadcast_as(text.shape())?;
            kept.reshape(shape)?.broadcast_as(text.shape())?.where_cond(text, &null)
        };
        let tokens = choose(&batch.text.tokens, &self.null_text.tokens)?;
        let pooled = choose(&batch.text.pooled, &self.null_text.pooled)?;
        Ok(Batch { text: Text { tokens, pooled }, ..batch })
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
    shapes
}
