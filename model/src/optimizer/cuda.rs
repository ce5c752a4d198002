//! AdamW on CUDA: the numbers of all trained parameters lie one after the other in four flat f32 buffers, and one launch updates them all and writes
//! the parameters that are computed with. The norm stays on the device, where the update reads it; nothing here waits for the device.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var, backprop::GradStore};

use super::{Failure, Schedule, numbers};
use crate::{
    cuda::{ADAMW, Gpu, Spread, address, size, suffix},
    parameters::{FROZEN, Parameters},
    state::{Kind, Source, State},
};

/// Numbers that a block works on, as in the kernels.
const PIECE: usize = 4096;
/// Threads of a block, and of the one that sums the pieces' squares.
const THREADS: usize = 256;
const NORM_THREADS: usize = 1024;

/// AdamW over flat buffers. No weight decay, as in DiT.
pub(super) struct AdamW {
    schedule: Schedule,
    precision: DType,
    /// The groups in the order of the buffers: names, first numbers, lengths.
    groups: Vec<(String, usize, usize)>,
    /// Places of all parameters in their groups, and what is not trained.
    like: Parameters,
    variables: Vec<Variable>,
    /// For each piece that a block works on: its variable, and pieces of that before it.
    pieces: Tensor,
    weights: Tensor,
    average: Tensor,
    first: Tensor,
    second: Tensor,
    /// The first step that failed, and the bits of its loss and norm; zeros for none.
    failure: Tensor,
}

/// A parameter that is computed with, and where its numbers begin in the buffers.
struct Variable {
    name: String,
    variable: Var,
    start: usize,
}

impl AdamW {
    pub(super) fn new(schedule: Schedule, parameters: Parameters, precision: DType) -> Result<(Self, Parameters)> {
        let mut groups = Vec::new();
        let mut flat = Vec::new();
        let mut end = 0;
        for (name, tensor) in parameters.groups().iter().filter(|(name, _)| *name != FROZEN) {
            groups.push((name.clone(), end, tensor.elem_count()));
            end += tensor.elem_count();
            flat.push(tensor.clone());
        }
        let starts: BTreeMap<&str, usize> = groups.iter().map(|(name, start, _)| (name.as_str(), *start)).collect();
        let (compute, mut by_name) = parameters.scattered(precision)?.into_variables()?;
        let mut variables = Vec::new();
        for (name, group, start) in parameters.places() {
            if let Some(variable) = by_name.remove(name) {
                variables.push(Variable { name: name.to_owned(), variable, start: starts[group] + start });
            }
        }
        let weights = Tensor::cat(&flat, 0)?;
        let device = weights.device().clone();
        let mut pieces = Vec::new();
        for (index, variable) in variables.iter().enumerate() {
            for piece in 0..variable.variable.elem_count().div_ceil(PIECE) {
                pieces.extend([size(index)?, size(piece)?]);
            }
        }
        let frozen = parameters.groups().iter().filter(|(name, _)| *name == FROZEN);
        let optimizer = Self {
            schedule,
            precision,
            like: parameters.with_groups(frozen.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()),
            variables,
            pieces: Tensor::new(pieces, &device)?,
            average: weights.copy()?,
            first: weights.zeros_like()?,
            second: weights.zeros_like()?,
            failure: Tensor::zeros(3, DType::U32, &device)?,
            weights,
            groups,
        };
        Ok((optimizer, compute))
    }

    pub(super) fn step(&mut self, step: u64, loss: &Tensor, gradients: &GradStore) -> Result<Tensor> {
        // The kernels' table: where each parameter and its gradient are, first number in the buffers, length. Gradients are elsewhere at every step.
        let mut table = Vec::with_capacity(4 * self.variables.len());
        let mut held = Vec::with_capacity(self.variables.len());
        for Variable { name, variable, start } in &self.variables {
            let Some(gradient) = gradients.get(variable) else { candle_core::bail!("{name} received no gradient") };
            let gradient = gradient.contiguous()?;
            let length = variable.elem_count();
            if gradient.elem_count() != length || gradient.dtype() != self.precision {
                candle_core::bail!("the gradient of {name} is {gradient:?}, of {length} {:?} numbers", self.precision);
            }
            // Addresses are bits: candle has no unsigned 64-bit tensors.
            table.extend([address(variable)? as i64, address(&gradient)? as i64, *start as i64, length as i64]);
            held.push(gradient);
        }
        let (gpu, suffix) = (Gpu::of(&self.weights)?, suffix(self.precision)?);
        let table = Tensor::new(table, self.weights.device())?;
        let pieces = self.pieces.elem_count() / 2;

        let squares = gpu.output(pieces, DType::F32)?;
        gpu.kernel(&ADAMW, &format!("gradient_squares_{suffix}"))?
            .tensor(&table)?
            .tensor(&self.pieces)?
            .output(&squares)?
            .run(Spread::new((pieces, 1, 1), (THREADS, 1)))?;
        let norm = gpu.output((), DType::F32)?;
        gpu.kernel(&ADAMW, "gradient_norm")?
            .tensor(&squares.into_tensor())?
            .size(pieces)?
            .tensor(&loss.detach().to_dtype(DType::F32)?)?
            .size(step as usize)?
            .output(&norm)?
            .tensor(&self.failure)?
            .run(Spread::new((1, 1, 1), (NORM_THREADS, 1)))?;
        let norm = norm.into_tensor();

        let update = self.schedule.update(step);
        gpu.kernel(&ADAMW, &format!("adamw_{suffix}"))?
            .tensor(&table)?
            .tensor(&self.pieces)?
            .tensor(&self.weights)?
            .tensor(&self.first)?
            .tensor(&self.second)?
            .tensor(&self.average)?
            .tensor(&norm)?
            .tensor(&self.failure)?
            .real(update.rate)
            .real(update.second_scale)
            .real(self.schedule.clip as f32)
            .real(update.keep)
            .run(Spread::new((pieces, 1, 1), (THREADS, 1)))?;
        // The gradients were read through the table: they may go only now, in the stream's order.
        drop(held);
        Ok(norm)
    }

    pub(super) fn failure(&self) -> Result<Option<Failure>> {
        let numbers = self.failure.to_vec1::<u32>()?;
        Ok(match numbers[..] {
            [step, loss, norm] if step > 0 => {
                Some(Failure { step: step.into(), loss: f32::from_bits(loss), gradient_norm: f32::from_bits(norm) })
            }
            _ => None,
        })
    }

    pub(super) fn forget_failure(&mut self) -> Result<()> {
        self.failure = self.failure.zeros_like()?;
        Ok(())
    }

    pub(super) fn state(&self) -> Result<BTreeMap<String, Source<'_>>> {
        let buffers = [
            (Kind::Parameter, &self.weights),
            (Kind::Average, &self.average),
            (Kind::FirstMoment, &self.first),
            (Kind::SecondMoment, &self.second),
        ];
        let mut state = BTreeMap::new();
        for (kind, buffer) in buffers {
            // Each buffer crosses once and whole: candle copies all of a tensor's memory even for a part of it.
            let buffer = buffer.to_device(&Device::Cpu)?;
            for (name, start, length) in &self.groups {
                state.insert(kind.of(name), Source::Tensor(buffer.narrow(0, *start, *length)?));
            }
        }
        Ok(state)
    }

    pub(super) fn restore(&mut self, state: &State) -> Result<()> {
        let device = self.weights.device().clone();
        let whole = |kind| {
            let mut whole = Vec::new();
            for (name, _, length) in &self.groups {
                whole.extend_from_slice(numbers(state, kind, name, *length)?);
            }
            Tensor::from_slice(&whole, whole.len(), &device)
        };
        // One after the other, so that what each replaces has made room for the next.
        self.weights = whole(Kind::Parameter)?;
        self.average = whole(Kind::Average)?;
        self.first = whole(Kind::FirstMoment)?;
        self.second = whole(Kind::SecondMoment)?;
        for Variable { variable, start, .. } in &self.variables {
            variable.set(&self.weights.narrow(0, *start, variable.elem_count())?.to_dtype(self.precision)?)?;
        }
        Ok(())
    }

    pub(super) fn averaged(&self, device: &Device) -> Result<Parameters> {
        let average = self.average.to_device(device)?;
        let mut groups = BTreeMap::new();
        for (name, tensor) in self.like.groups() {
            groups.insert(name.clone(), tensor.to_device(device)?);
        }
        for (name, start, length) in &self.groups {
            groups.insert(name.clone(), average.narrow(0, *start, *length)?);
        }
        Ok(self.like.with_groups(groups))
    }
}
