//! What a step is trained on: samples, captions that are dropped, times and noise. All of it follows from (key, settings, step) and the data, never
//! from the model, so it can be made ahead of the step, on another thread ([`Prefetch`](crate::prefetch::Prefetch)).

use candle_core::{Device, Tensor};

use crate::{
    batch::{Batch, BatchSource, Text, noise_like},
    random::Stream,
    shuffle::Shuffle,
};

/// Draws that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// There is nothing to draw from.
    #[error("the part has no samples")]
    NoSamples,
    /// The data could not be read, or is not what a batch can be made of.
    #[error(transparent)]
    Data(#[from] candle_core::Error),
    /// The thread that draws ahead could not be started.
    #[error("no thread to read data ahead of training: {0}. The machine has too many")]
    Thread(std::io::Error),
    /// The thread that draws ahead panicked.
    #[error("reading data ahead of training panicked ({0}): this is a fault of the program, not of the data")]
    Panicked(String),
}

/// What decides a part's draws.
#[derive(Debug, Clone)]
pub struct DrawRule {
    /// Keys all randomness of the part.
    pub(crate) key: [u8; 32],
    /// Samples a step, at least 1.
    pub(crate) batch: usize,
    /// Most samples in one draw: what the machine can take at once. It decides how a step is cut, not what is drawn.
    pub(crate) micro_batch: usize,
    /// Share of captions replaced by the null text.
    pub(crate) caption_drop: f32,
    /// The encoding of "", batch 1, in host memory.
    pub(crate) null_text: Text,
}

/// A micro-batch: a step's samples from `first` on, and where on the path to noise each is learnt from. In host memory.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Batches drawn before the one that this is of: the optimiser steps done, and the batches that were passed over.
    pub step: u64,
    /// Samples of the step that come before these.
    pub first: usize,
    /// The samples, with latents drawn from their distribution and dropped captions replaced.
    pub batch: Batch,
    /// Noise of the pictures' shape.
    pub noise: Tensor,
    /// The time of each sample on the straight path, uniform in 0..1.
    pub times: Vec<f32>,
}

/// A part's draws in the order of its steps, without end; an error is the last item.
pub struct Draws<'a> {
    rule: &'a DrawRule,
    data: &'a dyn BatchSource,
    step: u64,
    /// Samples of the step that are drawn.
    taken: usize,
    streams: Streams,
    ended: bool,
}

/// The random numbers of one step. They go on from one micro-batch to the next, so that the cut changes nothing.
struct Streams {
    captions: Stream,
    latents: Stream,
    times: Stream,
    noise: Stream,
}

impl Streams {
    fn new(key: &[u8; 32], step: u64) -> Self {
        let stream = |purpose| Stream::new(key, purpose, step);
        Self {
            captions: stream("caption-drop"),
            latents: stream("latent"),
            times: stream("time"),
            noise: stream("noise"),
        }
    }
}

impl<'a> Draws<'a> {
    /// The draws that come when `step` steps are done.
    pub fn new(rule: &'a DrawRule, data: &'a dyn BatchSource, step: u64) -> Self {
        Self { rule, data, step, taken: 0, streams: Streams::new(&rule.key, step), ended: false }
    }

    fn draw(&mut self) -> Result<Draw, DrawError> {
        if self.data.is_empty() {
            return Err(DrawError::NoSamples);
        }
        if self.taken == self.rule.batch {
            (self.step, self.taken) = (self.step + 1, 0);
            self.streams = Streams::new(&self.rule.key, self.step);
        }
        let (step, first) = (self.step, self.taken);
        let count = self.rule.micro_batch.clamp(1, self.rule.batch - first);
        let batch = self.data.batch(&self.due(first, count), &Device::Cpu)?;
        let batch = batch.drawn(|_, numbers| self.streams.latents.normals(numbers))?;
        let batch = drop_captions(batch, self.rule, &mut self.streams.captions)?;
        let times = (0..count).map(|_| self.streams.times.uniform()).collect();
        let noise = noise_like(&batch.images, |_, numbers| self.streams.noise.normals(numbers))?;
        self.taken += count;
        Ok(Draw { step, first, batch, noise, times })
    }

    /// Indices of `count` samples of the step from its `first` on. Samples come without replacement, in an order of its own for each epoch.
    fn due(&self, first: usize, count: usize) -> Vec<usize> {
        let samples = self.data.len();
        let mut position = u128::from(self.step) * self.rule.batch as u128 + first as u128;
        let mut due = Vec::with_capacity(count);
        while due.len() < count {
            let (epoch, place) = ((position / samples as u128) as u64, (position % samples as u128) as usize);
            let order = Shuffle::new(&self.rule.key, epoch, samples);
            let taken = (count - due.len()).min(samples - place);
            due.extend((place..place + taken).map(|place| order.at(place)));
            position += taken as u128;
        }
        due
    }
}

impl Iterator for Draws<'_> {
    type Item = Result<Draw, DrawError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let draw = self.draw();
        self.ended = draw.is_err();
        Some(draw)
    }
}

impl Draw {
    /// Samples in it.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// True if it holds nothing; one that was drawn never does.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

/// Replaces a share of the captions by the null text.
fn drop_captions(batch: Batch, rule: &DrawRule, stream: &mut Stream) -> candle_core::Result<Batch> {
    let count = batch.images.dim(0)?;
    let kept: Vec<u8> = (0..count).map(|_| u8::from(stream.uniform() >= rule.caption_drop)).collect();
    let kept = Tensor::new(kept, &Device::Cpu)?;
    let choose = |text: &Tensor, null: &Tensor| {
        let mut shape = vec![count];
        shape.resize(text.rank(), 1);
        kept.reshape(shape)?.broadcast_as(text.shape())?.where_cond(text, &null.broadcast_as(text.shape())?)
    };
    let tokens = choose(&batch.text.tokens, &rule.null_text.tokens)?;
    let pooled = choose(&batch.text.pooled, &rule.null_text.pooled)?;
    Ok(Batch { text: Text { tokens, pooled }, ..batch })
}
