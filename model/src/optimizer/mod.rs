//! AdamW with a state that can be saved (Loshchilov and Hutter, 2019), gradient clipping, warm-up, and the averaged weights.
//!
//! One interface, two implementations: on the CPU over a variable a group, on CUDA over flat buffers in one launch. Weights, moments and averages are
//! f32 in both and saved alike, so that a part moves between devices; only what is computed with may be bf16.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, backprop::GradStore};

use crate::{
    parameters::Parameters,
    state::{Kind, Source, State},
};

/// Decay of the mean of gradients.
const BETA1: f64 = 0.9;
/// Decay of the mean of their squares.
const BETA2: f64 = 0.999;
/// Keeps the division finite.
const EPSILON: f64 = 1e-8;

/// The optimiser's settings.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Global gradient norm above which gradients are scaled down.
    pub clip: f64,
    /// Decay of the averaged weights, approached as min(decay, (1 + n) / (10 + n)).
    pub ema_decay: f64,
}

/// The numbers that one step shares among all groups.
struct Update {
    /// Learning rate, with warm-up and the first moment's bias.
    rate: f32,
    /// What corrects the second moment's bias.
    second_scale: f32,
    /// What the averaged weights keep of themselves.
    keep: f32,
}

impl Schedule {
    /// The update of a step; steps count from 1.
    fn update(&self, step: u64) -> Update {
        let steps = step as f64;
        let warmup = (steps / self.warmup_steps.max(1) as f64).min(1.0);
        let (correction1, correction2) = (1.0 - BETA1.powf(steps), 1.0 - BETA2.powf(steps));
        Update {
            rate: (self.learning_rate * warmup / correction1) as f32,
            second_scale: (1.0 / correction2) as f32,
            keep: self.ema_decay.min((1.0 + steps) / (10.0 + steps)) as f32,
        }
    }
}

/// A step whose loss or gradient norm was not finite. It updated nothing, and neither did those after it.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The step.
    pub step: u64,
    /// Its loss.
    pub loss: f32,
    /// Its gradients' global norm before clipping.
    pub gradient_norm: f32,
}

/// The optimiser of a part's parameters, on the device where they are.
pub struct Optimizer(Implementation);

enum Implementation {
    Cpu(cpu::AdamW),
    #[cfg(feature = "cuda")]
    Cuda(cuda::AdamW),
}

/// Calls the implementation.
macro_rules! on_device {
    ($optimizer:expr, $it:ident => $call:expr) => {
        match $optimizer {
            Implementation::Cpu($it) => $call,
            #[cfg(feature = "cuda")]
            Implementation::Cuda($it) => $call,
        }
    };
}

impl Optimizer {
    /// An optimiser of `parameters`, f32 in groups, that has not seen a gradient; and the parameters to compute with, variables of the given
    /// precision that follow its steps.
    ///
    /// # Errors
    /// On devices that models are drawn on but not trained on, and in bf16 on the CPU.
    pub fn new(schedule: Schedule, parameters: Parameters, precision: DType) -> Result<(Self, Parameters)> {
        match parameters.groups().values().next().map(Tensor::device) {
            #[cfg(feature = "cuda")]
            Some(Device::Cuda(_)) => {
                let (optimizer, parameters) = cuda::AdamW::new(schedule, parameters, precision)?;
                Ok((Self(Implementation::Cuda(optimizer)), parameters))
            }
            Some(Device::Cpu) if precision == DType::F32 => {
                let (optimizer, parameters) = cpu::AdamW::new(schedule, parameters)?;
                Ok((Self(Implementation::Cpu(optimizer)), parameters))
            }
            device => candle_core::bail!(
                "models are trained in f32 on the CPU, or on CUDA; not in {precision:?} on {device:?}"
            ),
        }
    }

    /// Updates weights, moments and averages; `step` counts from 1. Returns the gradients' global norm before clipping, a scalar on their device: on
    /// CUDA it is still being computed. Where it or the loss is not finite, nothing is updated ([`Optimizer::failure`]).
    ///
    /// # Errors
    /// If a parameter has no gradient: candle loses gradients silently where an operation has no backward.
    pub fn step(&mut self, step: u64, loss: &Tensor, gradients: &GradStore) -> Result<Tensor> {
        on_device!(&mut self.0, it => it.step(step, loss, gradients))
    }

    /// The first step that failed and has not been forgotten. Waits for the device.
    pub fn failure(&self) -> Result<Option<Failure>> {
        on_device!(&self.0, it => it.failure())
    }

    /// Goes on after a step that failed, as if it had not been tried.
    pub fn forget_failure(&mut self) -> Result<()> {
        on_device!(&mut self.0, it => it.forget_failure())
    }

    /// Everything that is to be saved, by [`Kind::of`](crate::state::Kind::of) its group.
    pub(crate) fn state(&self) -> Result<BTreeMap<String, Source<'_>>> {
        on_device!(&self.0, it => it.state())
    }

    /// Restores saved weights, moments and averages of every group, and what is computed with.
    ///
    /// # Errors
    /// If a group is missing.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        on_device!(&mut self.0, it => it.restore(state))
    }

    /// The averaged weights on a device, f32, in groups.
    pub fn averaged(&self, device: &Device) -> Result<Parameters> {
        on_device!(&self.0, it => it.averaged(device))
    }
}

/// A group's numbers of a kind, which must be there and as many as expected.
fn numbers<'a>(state: &'a State, kind: Kind, group: &str, length: usize) -> Result<&'a [f32]> {
    let numbers = state.numbers(kind, group).map_err(candle_core::Error::wrap)?;
    if numbers.len() != length {
        candle_core::bail!("the state's {} has {} numbers, not {length}", kind.of(group), numbers.len());
    }
    Ok(numbers)
}
