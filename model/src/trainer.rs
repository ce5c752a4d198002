//! Training a part: one object whose every step follows from its state, its key and the data.

use candle_core::{Device, Tensor, backprop::GradStore};

use crate::{
    batch::{BatchSource, Text, noise_like},
    checkpoint::{self, CheckpointError},
    config::{ConfigError, PartConfig},
    device::{compute_precision, is_out_of_memory},
    draw::{Draw, DrawError, DrawRule, Draws},
    fused::{samples_at_once, share_count},
    gradients::Gradients,
    objective::Objective,
    optimizer::{Failure, Optimizer, Schedule},
    parameters::{FROZEN, Parameters},
    part_model::PartModel,
    prefetch::DRAWS_AHEAD_MAX,
    random::Stream,
    report::{LossByTime, StepDurations, StepReport, timed},
    state::{Kind, Published, Source, State},
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
    /// What an expert learns to predict; a router learns from the straight path whatever is said here.
    pub objective: Objective,
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
    /// The base checkpoint is not this model's.
    #[error("the base checkpoint: {0}")]
    Base(#[source] CheckpointError),
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

impl TrainError {
    /// True where the device had too little memory left: with smaller micro-batches it may do.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Candle(error) | Self::Draw(DrawError::Data(error)) if is_out_of_memory(error))
    }
}

/// Steps between two looks at a GPU's numbers.
pub const READ_EVERY: u64 = 16;

/// A part in training.
pub struct Trainer {
    config: PartConfig,
    objective: Objective,
    rule: DrawRule,
    device: Device,
    model: PartModel,
    /// What the model computes with; the optimiser keeps it.
    parameters: Parameters,
    /// What is stored but not trained, f32.
    frozen: Option<Tensor>,
    optimizer: Optimizer,
    /// Steps asked for. On a GPU one may have failed since it was last looked at; then no later one did anything.
    step: u64,
    /// Steps when that was last known.
    checked: u64,
    /// Batches that were passed over.
    skipped: u64,
    /// What was last read of a step: its losses and its gradients' norm.
    read: Option<(LossByTime, f32)>,
}

/// See [`Trainer::micro_batch_max`].
fn most_at_once(config: &PartConfig, batch: usize, device: &Device) -> usize {
    /// Samples are a dimension of CUDA's grids.
    const GRID_MAX: usize = 65_535;
    let most = if device.is_cpu() { samples_at_once(config.tokens(), config.parameter_count()) } else { GRID_MAX };
    batch.min(most)
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

    /// A part at its beginning, from weights as [`Trainer::weights`] writes them: its optimiser has seen nothing, and its average is those weights.
    ///
    /// # Errors
    /// Where the weights are not of this model.
    pub fn from_base(
        config: PartConfig,
        settings: TrainSettings,
        key: &[u8; 32],
        null_text: &Text,
        weights: &[u8],
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let parameters = Parameters::load(&config, weights, device).map_err(TrainError::Base)?;
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
        let parameters = parameters.with_trunk_gradients();
        let model = PartModel::new(&config, &parameters)?;
        let batch = settings.batch.max(1);
        let rule = DrawRule {
            key: *key,
            batch,
            micro_batch: most_at_once(&config, batch, device),
            caption_drop: settings.caption_drop,
            null_text: null_text.to_device(&Device::Cpu)?,
        };
        let (device, step, checked, skipped, read) = (device.clone(), 0, 0, 0, None);
        Ok(Self {
            config,
            objective: settings.objective,
            rule,
            device,
            model,
            parameters,
            frozen,
            optimizer,
            step,
            checked,
            skipped,
            read,
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
        let parameters = state.parameters(&config, device)?;
        let mut trainer = Self::with_parameters(config, settings, key, null_text, device, parameters)?;
        trainer.restore(state)?;
        Ok(trainer)
    }

    /// Goes on from another state of this training, in the memory that is there: a second trainer may not fit beside it.
    pub(crate) fn restore(&mut self, state: &State) -> Result<(), TrainError> {
        self.optimizer.restore(state)?;
        (self.step, self.checked) = (state.step, state.step);
        self.skipped = state.cursor.saturating_sub(state.step);
        self.set_micro_batch(state.micro_batch);
        self.read = None;
        Ok(())
    }

    /// Optimiser steps done since the part's beginning, over all owners; on a GPU, those asked for.
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

    /// Samples a step.
    pub fn batch(&self) -> usize {
        self.rule.batch
    }

    /// Where it is trained.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Samples that go through the model at once. A step's gradients are summed over its micro-batches; how it is cut decides the last bits.
    pub fn micro_batch(&self) -> usize {
        self.rule.micro_batch
    }

    /// The largest micro-batch that is worth its memory, and the one that a trainer begins with.
    pub fn micro_batch_max(&self) -> usize {
        most_at_once(&self.config, self.rule.batch, &self.device)
    }

    /// Cuts steps into micro-batches of so many samples, at least one and at most the whole step.
    pub fn set_micro_batch(&mut self, samples: usize) {
        self.rule.micro_batch = samples.clamp(1, self.rule.batch);
    }

    /// Whether to keep of a sublayer only what it read and to run it again on the way back: the same bits in less memory, and more time.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.model.set_recompute(recompute);
    }

    /// What decides this part's draws, for whoever makes them ahead.
    pub fn draw_rule(&self) -> &DrawRule {
        &self.rule
    }

    /// One optimiser step on the samples that are due, drawn here and now.
    pub fn step(&mut self, data: &dyn BatchSource) -> Result<StepReport, TrainError> {
        let rule = self.rule.clone();
        self.step_from(&mut Draws::new(&rule, data, self.cursor()))
    }

    /// One optimiser step on the next of `draws`, which follow [`draw_rule`](Self::draw_rule). Where it fails nothing is changed, but the step's draws
    /// are used up.
    pub fn step_from(
        &mut self,
        draws: &mut dyn Iterator<Item = Result<Draw, DrawError>>,
    ) -> Result<StepReport, TrainError> {
        let mut durations = StepDurations::default();
        let (mut losses, mut times) = (Vec::new(), Vec::new());
        let mut gradients = self.no_gradients(self.rule.micro_batch);
        let (batch, due) = (self.rule.batch, self.cursor());
        while times.len() < batch {
            let is_due =
                |draw: &Draw| (draw.step, draw.first) == (due, times.len()) && draw.first + draw.len() <= batch;
            let draw = match timed(&mut durations.data, || draws.next()).transpose()? {
                Some(draw) if is_due(&draw) => draw,
                other => return Err(TrainError::OutOfStep { due, at: other.map(|draw| draw.step) }),
            };
            let of_draw = timed(&mut durations.forward, || self.losses(&draw))?;
            timed(&mut durations.backward, || gradients.add(self.backward(&of_draw)?))?;
            losses.push(of_draw.detach());
            times.extend(draw.times);
        }
        let gradients = gradients.finish()?.ok_or(DrawError::NoSamples)?;
        let micro_batches = losses.len();
        let (loss_by_time, gradient_norm) = timed(&mut durations.optimizer, || {
            let losses = Tensor::cat(&losses, 0)?;
            let gradient_norm = self.optimizer.step(self.step + 1, &losses.mean_all()?, &gradients)?;
            self.step += 1;
            self.look(&times, &losses, &gradient_norm)
        })?;
        let loss = loss_by_time.mean().unwrap_or(f32::NAN);
        Ok(StepReport { step: self.step, loss, loss_by_time, gradient_norm, micro_batches, durations })
    }

    /// What the step did, read where that is at hand or due: it is the one place where the host waits for what a device computes.
    fn look(
        &mut self,
        times: &[f32],
        losses: &Tensor,
        gradient_norm: &Tensor,
    ) -> Result<(LossByTime, f32), TrainError> {
        match self.read {
            Some(read) if !self.device.is_cpu() && !self.step.is_multiple_of(READ_EVERY) => Ok(read),
            _ => {
                self.check()?;
                let mut loss_by_time = LossByTime::default();
                let losses = losses.to_vec1::<f32>()?;
                times.iter().zip(losses).for_each(|(t, loss)| loss_by_time.add(*t, loss));
                Ok(*self.read.insert((loss_by_time, gradient_norm.to_scalar()?)))
            }
        }
    }

    /// Whether all steps asked for went well; the host waits for the device to know. On the CPU each step has said so itself.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] with the first that failed.
    pub fn check(&mut self) -> Result<(), TrainError> {
        let failure = self.optimizer.failure()?;
        if let Some(Failure { step, .. }) = failure {
            // Nothing has changed since the step before it: the trainer is as it was then.
            self.step = step - 1;
            self.optimizer.forget_failure()?;
        }
        self.checked = self.step;
        match failure {
            Some(Failure { step, loss, gradient_norm }) => Err(TrainError::NotFinite { step, loss, gradient_norm }),
            None => Ok(()),
        }
    }

    /// Whether a step asked for has failed, so that the weights are those before it; the host waits for the device to know.
    ///
    /// # Errors
    /// If the device cannot be asked.
    pub fn has_failed(&self) -> Result<bool, TrainError> {
        Ok(self.optimizer.failure()?.is_some())
    }

    /// True where it is known that all steps asked for went well.
    pub(crate) fn is_checked(&self) -> bool {
        self.checked == self.step
    }

    /// Computes the gradients of two micro-batches of `samples` and throws them away, so that what a step takes can be measured. As many draws are at hand
    /// as in a step with [`Prefetch`](crate::prefetch::Prefetch).
    pub fn rehearse(&self, data: &dyn BatchSource, samples: usize) -> Result<(), TrainError> {
        let rule = DrawRule { micro_batch: samples, ..self.rule.clone() };
        let draws = Draws::new(&rule, data, self.cursor()).take(DRAWS_AHEAD_MAX + 2).collect::<Result<Vec<_>, _>>()?;
        let mut gradients = self.no_gradients(samples);
        for draw in &draws[..2] {
            gradients.add(self.backward(&self.losses(draw)?)?)?;
        }
        gradients.finish()?;
        Ok(())
    }

    /// What the gradients of micro-batches of so many samples are added to.
    fn no_gradients(&self, samples: usize) -> Gradients<'_> {
        Gradients::none(&self.parameters, share_count(samples))
    }

    /// The losses of a draw, on the device.
    fn losses(&self, draw: &Draw) -> candle_core::Result<Tensor> {
        let (batch, noise) = (draw.batch.to_device(&self.device)?, draw.noise.to_device(&self.device)?);
        self.model.losses(self.objective, &batch, &noise, &draw.times)
    }

    /// What a draw's losses add to the gradients of the step: that of their share in its mean.
    fn backward(&self, losses: &Tensor) -> candle_core::Result<GradStore> {
        (losses.sum_all()? / self.rule.batch as f64)?.backward()
    }

    /// Mean loss, by the part's own objective, of the averaged weights over up to `limit` samples, at times spread evenly and with noise that is the same at
    /// every call.
    pub fn held_out_loss(&self, data: &dyn BatchSource, limit: usize) -> Result<f32, TrainError> {
        let count = data.len().min(limit);
        if count == 0 {
            return Err(DrawError::NoSamples.into());
        }
        let model = PartModel::new(&self.config, &self.optimizer.averaged(&self.device)?.to_compute()?)?;
        let indices: Vec<usize> = (0..count).collect();
        let mut sum = 0.0;
        for indices in indices.chunks(self.rule.micro_batch) {
            let batch = data.batch(indices, &Device::Cpu)?;
            let times: Vec<f32> = indices.iter().map(|index| (*index as f32 + 0.5) / count as f32).collect();
            let normals = |purpose| {
                move |sample: usize, numbers| {
                    Stream::new(&self.rule.key, purpose, indices[sample] as u64).normals(numbers)
                }
            };
            let batch = batch.drawn(normals("held-out latent"))?;
            let noise = noise_like(&batch.images, normals("held-out"))?;
            let (batch, noise) = (batch.to_device(&self.device)?, noise.to_device(&self.device)?);
            let losses = model.losses(self.objective, &batch, &noise, &times)?;
            sum += losses.to_vec1::<f32>()?.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        }
        Ok((sum / count as f64) as f32)
    }

    /// The averaged weights, as bytes to sample with.
    pub fn weights(&self) -> Result<Vec<u8>, TrainError> {
        Ok(checkpoint::write(&self.optimizer.averaged(&Device::Cpu)?.tensors()?)?)
    }

    /// Everything that the next step depends on, as bytes to resume from.
    pub fn state(&self) -> Result<Vec<u8>, TrainError> {
        let mut state = State::default();
        self.copy_state(&mut state)?;
        Ok(state.to_bytes()?)
    }

    /// The same as it is published.
    pub fn published(&self) -> Result<Published, TrainError> {
        let mut state = State::default();
        self.copy_kinds(&mut state, &Kind::REST)?;
        Ok(Published { weights: self.weights()?, state: state.to_bytes()? })
    }

    /// Everything that the next step depends on, copied over what `state` held before: its memory is used again.
    pub fn copy_state(&self, state: &mut State) -> Result<(), TrainError> {
        self.copy_kinds(state, &Kind::ALL)
    }

    fn copy_kinds(&self, state: &mut State, kinds: &[Kind]) -> Result<(), TrainError> {
        let mut sources = self.optimizer.state()?;
        if let Some(frozen) = &self.frozen {
            sources.insert(Kind::Parameter.of(FROZEN), Source::Tensor(frozen.clone()));
        }
        sources.retain(|name, _| kinds.iter().any(|kind| name.starts_with(kind.prefix())));
        // A step that failed unseen and those after it changed nothing.
        state.step = self.optimizer.failure()?.map_or(self.step, |failure| failure.step - 1);
        (state.cursor, state.micro_batch) = (state.step + self.skipped, self.rule.micro_batch);
        Ok(state.copy_from(&sources)?)
    }
}
