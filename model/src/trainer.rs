//! Training a part: one object whose every step follows from its state, its key and the data.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use candle_nn::loss::{cross_entropy, mse};
use rayon::prelude::*;

use crate::{
    batch::{Batch, BatchSource, Text},
    checkpoint::{self, CheckpointError},
    config::{ConfigError, PartConfig},
    expert::Expert,
    flow::noised,
    fused::vectorised,
    host::with_numbers,
    optimizer::{AdamW, Moments, Schedule},
    parameters::{Parameters, group_shapes},
    random::Stream,
    router::Router,
    state::{Kind, Source, State},
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

/// A part in training.
pub struct Trainer {
    config: PartConfig,
    settings: TrainSettings,
    key: [u8; 32],
    null_text: Text,
    device: Device,
    model: Model,
    parameters: Parameters,
    variables: BTreeMap<String, Var>,
    /// The averaged weights of every group that is trained.
    average: BTreeMap<String, Vec<f32>>,
    optimizer: AdamW,
    step: u64,
    /// Batches that were passed over.
    skipped: u64,
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
        let (key, null_text, device) = (*key, null_text.clone(), device.clone());
        let (step, skipped) = (0, 0);
        Ok(Self {
            config,
            settings,
            key,
            null_text,
            device,
            model,
            parameters,
            variables,
            average,
            optimizer,
            step,
            skipped,
        })
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
        let state = State::read(state, &config)?;
        Self::from_state(config, settings, key, null_text, &state, device)
    }

    /// The same from a state in memory.
    pub fn from_state(
        config: PartConfig,
        settings: TrainSettings,
        key: &[u8; 32],
        null_text: &Text,
        state: &State,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let mut groups = BTreeMap::new();
        for name in group_shapes(&config).into_keys() {
            let numbers = state.numbers(Kind::Parameter, &name)?;
            groups.insert(name, Tensor::from_slice(numbers, numbers.len(), device)?);
        }
        let parameters = Parameters::initial(&config, key, device)?.with_groups(groups);
        let mut trainer = Self::with_parameters(config, settings, key, null_text, device, parameters)?;
        let mut moments = BTreeMap::new();
        for (name, average) in &mut trainer.average {
            average.copy_from_slice(state.numbers(Kind::Average, name)?);
            let first = state.numbers(Kind::FirstMoment, name)?.to_vec();
            let second = state.numbers(Kind::SecondMoment, name)?.to_vec();
            moments.insert(name.clone(), Moments { first, second });
        }
        trainer.optimizer.restore(moments);
        (trainer.step, trainer.skipped) = (state.step, state.cursor.saturating_sub(state.step));
        Ok(trainer)
    }

    /// Optimiser steps done since the part's beginning, over all owners.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Batches drawn since the part's beginning, those passed over included: the place in the data, and the counter of every generator.
    pub fn cursor(&self) -> u64 {
        self.step + self.skipped
    }

    /// Passes over batches, so that `cursor` is due; never back.
    pub fn skip_to(&mut self, cursor: u64) {
        self.skipped = self.skipped.max(cursor.saturating_sub(self.step));
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
        let loss = loss.to_scalar::<f32>()?;
        let step = self.step + 1;
        let gradient_norm = self.optimizer.step(step, &self.variables, &gradients)? as f32;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::NotFinite { step, loss, gradient_norm });
        }
        self.step = step;
        self.update_average()?;
        Ok(StepReport { step, loss, gradient_norm })
    }

    /// Mean loss of the averaged weights over up to `limit` samples, at times spread evenly and with noise that is the same at every call.
    pub fn held_out_loss(&self, data: &dyn BatchSource, limit: usize) -> Result<f32, TrainError> {
        let count = data.len().min(limit);
        if count == 0 {
            return Err(TrainError::NoSamples);
        }
        let model = Model::new(&self.config, &self.averaged()?)?;
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
        Ok(checkpoint::write(&self.averaged()?.tensors()?)?)
    }

    /// Everything that the next step depends on, as bytes to resume from.
    pub fn state(&self) -> Result<Vec<u8>, TrainError> {
        let mut state = State::default();
        self.copy_state(&mut state)?;
        Ok(state.to_bytes()?)
    }

    /// Everything that the next step depends on, copied over what `state` held before: its memory is used again.
    pub fn copy_state(&self, state: &mut State) -> Result<(), TrainError> {
        let mut sources = BTreeMap::new();
        for (name, tensor) in self.parameters.groups() {
            sources.insert(Kind::Parameter.of(name), Source::Tensor(tensor));
        }
        for (name, moments) in self.optimizer.moments() {
            sources.insert(Kind::Average.of(name), Source::Numbers(&self.average[name]));
            sources.insert(Kind::FirstMoment.of(name), Source::Numbers(&moments.first));
            sources.insert(Kind::SecondMoment.of(name), Source::Numbers(&moments.second));
        }
        (state.step, state.cursor) = (self.step, self.cursor());
        Ok(state.copy_from(&sources)?)
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

    /// The stream of a purpose for the batch that is due.
    fn stream(&self, purpose: &str) -> Stream {
        Stream::new(&self.key, purpose, self.cursor())
    }

    /// Indices of the samples that are due: a pure function of the cursor.
    fn due_samples(&self, samples: usize) -> Vec<usize> {
        let batch = self.settings.batch.max(1);
        let mut due = Vec::with_capacity(batch);
        let mut position = self.cursor() as usize * batch;
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
