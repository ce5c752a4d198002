//! Everything that a part's next step depends on, as plain numbers: copied out of a trainer, written, read, and put into another.
//!
//! Numbers are the parameters, AdamW's moments and the averaged weights. A snapshot holds all of them; what is published holds the averages once, as the
//! weights that are sampled with. The place in the data and the state of every generator are one number, the
//! *cursor*: which samples are drawn, to which times and with which noise follows from the part's key and the cursor alone
//! ([`random`](crate::random)). The cursor counts batches, the step counts updates; they differ by the batches that were passed over
//! after a failure ([`durable`](crate::durable)).

use std::{collections::BTreeMap, io::Write};

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::{
    checkpoint::{self, CheckpointError},
    config::{PartConfig, Shapes},
    host::with_numbers,
    parameters::{FROZEN, Parameters, group_shapes, read_groups},
};

/// The names of the counts, each stored as two numbers that f32 holds exactly: whole, and below [`COUNT_BASE`].
const STEP: &str = "step";
const CURSOR: &str = "cursor";
const MICRO_BATCH: &str = "micro_batch";
const COUNT_BASE: u64 = 1 << 20;

/// What a state holds of every group of parameters; of the one that is never trained, only the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The parameters.
    Parameter,
    /// Their average over the steps.
    Average,
    /// AdamW's mean of the gradients.
    FirstMoment,
    /// AdamW's mean of their squares.
    SecondMoment,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Parameter, Kind::Average, Kind::FirstMoment, Kind::SecondMoment];
    /// What is published beside the averages.
    pub(crate) const REST: [Kind; 3] = [Kind::Parameter, Kind::FirstMoment, Kind::SecondMoment];

    /// The name under which a group's numbers are stored.
    pub fn of(self, group: &str) -> String {
        format!("{}{group}", self.prefix())
    }

    /// What the names of its groups begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Parameter => "parameter.",
            Kind::Average => "average.",
            Kind::FirstMoment => "moment1.",
            Kind::SecondMoment => "moment2.",
        }
    }
}

/// Where numbers are copied from.
pub(crate) enum Source<'a> {
    /// A tensor on any device.
    Tensor(Tensor),
    /// Numbers on the host.
    Numbers(&'a [f32]),
}

/// A state as it is published: two blobs, since who only samples needs but the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The averaged weights, safetensors by the names of the published weights.
    pub weights: Vec<u8>,
    /// All the rest.
    pub state: Vec<u8>,
}

impl Published {
    /// Checks that bytes are a published state's weights, as strictly as [`State::read_published`] reads them, and keeps nothing.
    ///
    /// # Errors
    /// Where the bytes are anything else.
    pub fn check_weights(bytes: &[u8], config: &PartConfig) -> std::result::Result<(), CheckpointError> {
        checkpoint::find_numbers(bytes, &config.shapes()).map(drop)
    }

    /// The same of all the rest.
    ///
    /// # Errors
    /// Where the bytes are anything else.
    pub fn check_state(bytes: &[u8], config: &PartConfig) -> std::result::Result<(), CheckpointError> {
        let found = checkpoint::find_numbers(bytes, &shapes(config, &Kind::REST))?;
        [STEP, CURSOR, MICRO_BATCH].into_iter().try_for_each(|name| {
            let digits: Vec<_> = found[name].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            count(name, &digits).map(drop)
        })
    }
}

/// A state. The default is empty: memory to copy to.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Optimiser steps done.
    pub step: u64,
    /// Batches drawn.
    pub cursor: u64,
    /// Samples that went through the model at once: the last bits depend on it.
    pub micro_batch: usize,
    /// Flat numbers by [`Kind::of`] their group.
    numbers: BTreeMap<String, Vec<f32>>,
}

impl State {
    /// Reads a state of `config`: exactly its names and shapes, finite numbers, nothing else.
    ///
    /// # Errors
    /// Where the bytes are anything else.
    pub fn read(bytes: &[u8], config: &PartConfig) -> std::result::Result<Self, CheckpointError> {
        Self::read_kinds(bytes, config, &Kind::ALL)
    }

    /// Reads a published state of `config`, as strictly.
    ///
    /// # Errors
    /// Where either of its blobs is anything else.
    pub fn read_published(published: &Published, config: &PartConfig) -> std::result::Result<Self, CheckpointError> {
        let mut state = Self::read_kinds(&published.state, config, &Kind::REST)?;
        let averages = read_groups(config, &published.weights)?.into_iter().filter(|(group, _)| group != FROZEN);
        state.numbers.extend(averages.map(|(group, numbers)| (Kind::Average.of(&group), numbers)));
        Ok(state)
    }

    fn read_kinds(bytes: &[u8], config: &PartConfig, kinds: &[Kind]) -> std::result::Result<Self, CheckpointError> {
        let mut numbers = checkpoint::read_numbers(bytes, &shapes(config, kinds))?;
        let mut count = |name: &str| count(name, &numbers.remove(name).unwrap_or_default());
        let (step, cursor, micro_batch) = (count(STEP)?, count(CURSOR)?, count(MICRO_BATCH)? as usize);
        Ok(Self { step, cursor, micro_batch, numbers })
    }

    /// Writes the state as safetensors: the same bytes for the same state.
    pub fn write_to(&self, out: &mut impl Write) -> std::result::Result<(), CheckpointError> {
        let counts = [(STEP, self.step), (CURSOR, self.cursor), (MICRO_BATCH, self.micro_batch as u64)];
        let counts = counts.map(|(name, count)| (name, [(count / COUNT_BASE) as f32, (count % COUNT_BASE) as f32]));
        let mut all: BTreeMap<&str, &[f32]> = BTreeMap::new();
        all.extend(self.numbers.iter().map(|(name, numbers)| (name.as_str(), numbers.as_slice())));
        all.extend(counts.iter().map(|(name, count)| (*name, count.as_slice())));
        let shapes = all.iter().map(|(name, numbers)| ((*name).to_owned(), vec![numbers.len()])).collect();
        out.write_all(&checkpoint::header(&shapes)?)?;
        for numbers in all.into_values() {
            checkpoint::write_numbers(numbers, out)?;
        }
        Ok(())
    }

    /// The same as bytes in memory.
    pub fn to_bytes(&self) -> std::result::Result<Vec<u8>, CheckpointError> {
        let mut bytes = Vec::with_capacity(4 * self.numbers.values().map(Vec::len).sum::<usize>() + (64 << 10));
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Bytes that a state of `config` takes.
    pub fn bytes_of(config: &PartConfig) -> std::result::Result<u64, CheckpointError> {
        let shapes = shapes(config, &Kind::ALL);
        let numbers: usize = shapes.values().flatten().sum();
        Ok((checkpoint::header(&shapes)?.len() + 4 * numbers) as u64)
    }

    /// A group's numbers.
    ///
    /// # Errors
    /// If the state has no such group.
    pub fn numbers(&self, kind: Kind, group: &str) -> std::result::Result<&[f32], CheckpointError> {
        let name = kind.of(group);
        match self.numbers.get(&name) {
            Some(numbers) => Ok(numbers),
            None => Err(CheckpointError::Missing(name)),
        }
    }

    /// The parameters of `config`, on a device.
    ///
    /// # Errors
    /// If a group is missing or of another length: the state is another model's.
    pub(crate) fn parameters(
        &self,
        config: &PartConfig,
        device: &Device,
    ) -> std::result::Result<Parameters, CheckpointError> {
        let mut groups = BTreeMap::new();
        for (group, shape) in group_shapes(config) {
            let numbers = self.numbers(Kind::Parameter, &group)?;
            if numbers.len() != shape[0] {
                let (name, found) = (Kind::Parameter.of(&group), format!("{} numbers", numbers.len()));
                return Err(CheckpointError::Shape { name, found, expected: format!("{} numbers", shape[0]) });
            }
            groups.insert(group, Tensor::from_slice(numbers, numbers.len(), device)?);
        }
        Ok(Parameters::from_groups(config, groups))
    }

    /// The first group whose numbers are not all finite.
    pub fn not_finite(&self) -> Option<&str> {
        // In blocks without a way out, which the compiler turns into vector operations.
        let finite = |block: &[f32]| block.iter().fold(true, |finite, number| finite & number.is_finite());
        let broken = self.numbers.iter().find(|(_, numbers)| !numbers.chunks(1024).all(finite));
        broken.map(|(name, _)| name.as_str())
    }

    /// Replaces all numbers by those of `sources`, in the memory that is there.
    pub(crate) fn copy_from(&mut self, sources: &BTreeMap<String, Source<'_>>) -> Result<()> {
        self.numbers.retain(|name, _| sources.contains_key(name));
        for name in sources.keys().filter(|name| !self.numbers.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.numbers.insert(name, Vec::new());
        }
        self.numbers.par_iter_mut().try_for_each(|(name, numbers)| {
            numbers.clear();
            match &sources[name] {
                Source::Numbers(source) => numbers.extend_from_slice(source),
                Source::Tensor(tensor) => with_numbers([&tensor.to_device(&Device::Cpu)?], |[source]| {
                    numbers.extend_from_slice(source);
                    Ok(())
                })?,
            }
            Ok(())
        })
    }
}

/// The count of this name, as it is written.
fn count(name: &str, digits: &[f32]) -> std::result::Result<u64, CheckpointError> {
    match digits {
        [high, low] if is_digit(*high) && is_digit(*low) => Ok(*high as u64 * COUNT_BASE + *low as u64),
        _ => Err(CheckpointError::Count(name.to_owned())),
    }
}

/// True for a number that a count is written with.
fn is_digit(number: f32) -> bool {
    number.fract() == 0.0 && (0.0..COUNT_BASE as f32).contains(&number)
}

/// Names and shapes of a state's numbers of some kinds, and of its counts.
fn shapes(config: &PartConfig, kinds: &[Kind]) -> Shapes {
    let mut shapes = Shapes::new();
    for (group, shape) in group_shapes(config) {
        for kind in kinds {
            if group != FROZEN || *kind == Kind::Parameter {
                shapes.insert(kind.of(&group), shape.clone());
            }
        }
    }
    shapes.extend([STEP, CURSOR, MICRO_BATCH].map(|name| (name.to_owned(), vec![2])));
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExpertConfig;

    #[test]
    fn counts_that_are_none_are_refused() {
        let (channels, size, patch, width, depth, heads, text_tokens, text_width) = (1, 2, 2, 4, 1, 1, 1, 1);
        let expert = ExpertConfig { channels, size, patch, width, depth, heads, text_tokens, text_width };
        let config = PartConfig::Expert(expert);
        let mut state = State { step: 3_000_000, cursor: 3_000_007, micro_batch: 4, ..State::default() };
        for (name, shape) in shapes(&config, &Kind::ALL).into_iter().filter(|(name, _)| name.contains('.')) {
            state.numbers.insert(name, vec![0.5; shape[0]]);
        }
        let bytes = state.to_bytes().unwrap();
        assert_eq!(bytes.len() as u64, State::bytes_of(&config).unwrap());
        let read = State::read(&bytes, &config).unwrap();
        assert_eq!((read.step, read.cursor, read.micro_batch), (3_000_000, 3_000_007, 4));
        state.numbers.retain(|name, _| !name.starts_with(Kind::Average.prefix()));
        let published = state.to_bytes().unwrap();
        Published::check_state(&published, &config).unwrap();
        assert!(Published::check_state(&bytes, &config).is_err(), "the averages are in the other blob");
        // The step is the last tensor, and two numbers long.
        let strange = |bytes: &[u8], bad: f32| [&bytes[..bytes.len() - 4], &bad.to_le_bytes()].concat();
        for bad in [-1.0, 0.5, COUNT_BASE as f32, f32::MAX] {
            let read = State::read(&strange(&bytes, bad), &config).map(drop);
            let checked = Published::check_state(&strange(&published, bad), &config);
            for refused in [read, checked] {
                assert!(matches!(refused, Err(CheckpointError::Count(name)) if name == STEP), "{bad}");
            }
        }
    }
}
