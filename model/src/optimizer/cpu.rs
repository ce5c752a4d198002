//! AdamW on the CPU: a variable a group, updated in place with everything that belongs to it in one pass over its numbers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;

use super::{BETA1, BETA2, EPSILON, Failure, Schedule, Update, numbers};
use crate::{
    host::{self, with_numbers},
    parameters::Parameters,
    state::{Kind, Source, State},
    vector::{sum, vectorised},
};

/// AdamW over groups of parameters. No weight decay, as in DiT.
pub(super) struct AdamW {
    schedule: Schedule,
    /// What is computed with; its trained groups are the variables.
    parameters: Parameters,
    groups: BTreeMap<String, Group>,
    failure: Option<Failure>,
}

/// A trained group.
struct Group {
    variable: Var,
    numbers: Numbers,
}

/// What belongs to each of a group's weights.
struct Numbers {
    first: Vec<f32>,
    second: Vec<f32>,
    average: Vec<f32>,
}

impl AdamW {
    pub(super) fn new(schedule: Schedule, parameters: Parameters) -> Result<(Self, Parameters)> {
        let (parameters, variables) = parameters.into_variables()?;
        let mut groups = BTreeMap::new();
        for (name, variable) in variables {
            let average = variable.to_vec1()?;
            let zeros = vec![0.0; average.len()];
            groups.insert(name, Group { variable, numbers: Numbers { first: zeros.clone(), second: zeros, average } });
        }
        Ok((Self { schedule, parameters: parameters.clone(), groups, failure: None }, parameters))
    }

    pub(super) fn step(&mut self, step: u64, loss: &Tensor, gradients: &GradStore) -> Result<Tensor> {
        let mut work = Vec::with_capacity(self.groups.len());
        let mut square = 0.0;
        for (name, group) in &mut self.groups {
            let Some(gradient) = gradients.get(&group.variable) else {
                candle_core::bail!("{name} received no gradient")
            };
            square += with_numbers([gradient], |[gradient]| Ok(square_sum(gradient)))?;
            work.push((group, gradient.contiguous()?));
        }
        let norm = square.sqrt();
        let (gradient_norm, loss) = (norm as f32, loss.to_scalar::<f32>()?);
        if !gradient_norm.is_finite() || !loss.is_finite() {
            self.failure = Some(Failure { step, loss, gradient_norm });
        } else {
            let gradient_scale = (self.schedule.clip / norm).min(1.0) as f32;
            let update = &self.schedule.update(step);
            work.into_par_iter().try_for_each(|(group, gradient)| {
                let numbers = Mutex::new(&mut group.numbers);
                group.variable.inplace_op2(&gradient, &UpdateGroup { update, gradient_scale, numbers })
            })?;
        }
        Tensor::new(gradient_norm, &Device::Cpu)
    }

    pub(super) fn failure(&self) -> Result<Option<Failure>> {
        Ok(self.failure)
    }

    pub(super) fn forget_failure(&mut self) -> Result<()> {
        self.failure = None;
        Ok(())
    }

    pub(super) fn state(&self) -> Result<BTreeMap<String, Source<'_>>> {
        let mut state = BTreeMap::new();
        for (name, group) in &self.groups {
            let Numbers { first, second, average } = &group.numbers;
            state.insert(Kind::Parameter.of(name), Source::Tensor(group.variable.as_detached_tensor()));
            state.insert(Kind::Average.of(name), Source::Numbers(average));
            state.insert(Kind::FirstMoment.of(name), Source::Numbers(first));
            state.insert(Kind::SecondMoment.of(name), Source::Numbers(second));
        }
        Ok(state)
    }

    pub(super) fn restore(&mut self, state: &State) -> Result<()> {
        for (name, group) in &mut self.groups {
            let of_kind = |kind| numbers(state, kind, name, group.variable.elem_count());
            let weights = Tensor::from_slice(of_kind(Kind::Parameter)?, group.variable.shape(), &Device::Cpu)?;
            group.variable.set(&weights)?;
            let Numbers { first, second, average } = &mut group.numbers;
            for (kind, into) in [(Kind::FirstMoment, first), (Kind::SecondMoment, second), (Kind::Average, average)] {
                into.copy_from_slice(of_kind(kind)?);
            }
        }
        Ok(())
    }

    pub(super) fn averaged(&self, device: &Device) -> Result<Parameters> {
        let mut groups = BTreeMap::new();
        for (name, tensor) in self.parameters.groups() {
            let averaged = match self.groups.get(name) {
                Some(group) => Tensor::from_slice(&group.numbers.average, tensor.shape(), device)?,
                None => tensor.to_device(device)?,
            };
            groups.insert(name.clone(), averaged);
        }
        Ok(self.parameters.with_groups(groups))
    }
}

/// Numbers that a thread takes at once.
const SHARE: usize = 1 << 16;

/// The sum of squares, in f64 between blocks that f32 adds well. The same on any number of threads.
fn square_sum(numbers: &[f32]) -> f64 {
    const BLOCK: usize = 256;
    let of_share =
        |share: &[f32]| -> f64 { vectorised!(share.chunks(BLOCK).map(|block| f64::from(sum(block, |x| x * x))).sum()) };
    let shares: Vec<f64> = numbers.par_chunks(SHARE).map(of_share).collect();
    shares.iter().sum()
}

/// The update of one group, in place.
struct UpdateGroup<'a> {
    update: &'a Update,
    gradient_scale: f32,
    /// candle hands an operation out by shared reference.
    numbers: Mutex<&'a mut Numbers>,
}

impl UpdateGroup<'_> {
    fn apply(&self, values: &mut [f32], numbers: &mut Numbers, gradient: &[f32]) {
        let moments = numbers.first.par_chunks_mut(SHARE).zip(numbers.second.par_chunks_mut(SHARE));
        let kept = values.par_chunks_mut(SHARE).zip(numbers.average.par_chunks_mut(SHARE));
        kept.zip(moments).zip(gradient.par_chunks(SHARE)).for_each(
            |(((values, average), (first, second)), gradient)| {
                self.apply_share(values, average, first, second, gradient);
            },
        );
    }

    fn apply_share(
        &self,
        values: &mut [f32],
        average: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
    ) {
        let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
        let Update { rate, second_scale, keep } = *self.update;
        vectorised!({
            let kept = values.iter_mut().zip(average);
            for (((value, average), (first, second)), gradient) in kept.zip(first.iter_mut().zip(second)).zip(gradient)
            {
                let gradient = gradient * self.gradient_scale;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                *value -= rate * *first / ((*second * second_scale).sqrt() + epsilon);
                *average += (1.0 - keep) * (*value - *average);
            }
        });
    }
}

impl InplaceOp2 for UpdateGroup<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, value: &mut CpuStorage, value_at: &Layout, gradient: &CpuStorage, at: &Layout) -> Result<()> {
        let gradient = host::numbers(gradient, at)?;
        let (CpuStorage::F32(values), Some((start, end))) = (value, value_at.contiguous_offsets()) else {
            candle_core::bail!("a variable is a contiguous f32 tensor");
        };
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        self.apply(&mut values[start..end], &mut numbers, gradient);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PartConfig, RouterConfig};

    /// The optimiser of one group, and its variable, which begins as given.
    fn optimizer(schedule: Schedule, values: &[f32]) -> (AdamW, Var) {
        let variable = Var::new(values, &Device::Cpu).unwrap();
        let average = values.to_vec();
        let zeros = vec![0.0; values.len()];
        let group =
            Group { variable: variable.clone(), numbers: Numbers { first: zeros.clone(), second: zeros, average } };
        let config = PartConfig::Router(RouterConfig {
            channels: 1,
            size: 2,
            patch: 1,
            width: 4,
            depth: 1,
            heads: 1,
            clusters: 1,
            caption_width: None,
        });
        let parameters = Parameters::initial(&config, &[0; 32], &Device::Cpu).unwrap();
        let groups = [("w".to_owned(), group)].into();
        (AdamW { schedule, parameters, groups, failure: None }, variable)
    }

    /// torch.optim.AdamW(lr=0.1, weight_decay=0) on the loss sum(w^2 * [1, 10]), from [1, -2], three steps.
    #[test]
    fn three_steps_are_those_of_torch() {
        let schedule = Schedule { learning_rate: 0.1, warmup_steps: 1, clip: f64::INFINITY, ema_decay: 0.25 };
        let (mut optimizer, variable) = optimizer(schedule, &[1.0, -2.0]);
        let scale = Tensor::new(&[1.0f32, 10.0], &Device::Cpu).unwrap();
        let mut average = [1.0, -2.0];
        for step in 1..=3 {
            let loss = (variable.sqr().unwrap() * &scale).unwrap().sum_all().unwrap();
            optimizer.step(step, &loss, &loss.backward().unwrap()).unwrap();
            // min(0.25, 2/11), min(0.25, 3/12), min(0.25, 4/13)
            let keep = [2.0 / 11.0, 0.25, 0.25][step as usize - 1];
            for (average, value) in average.iter_mut().zip(variable.to_vec1::<f32>().unwrap()) {
                *average = keep * *average + (1.0 - keep) * value;
            }
        }
        let values = variable.to_vec1::<f32>().unwrap();
        for (value, torch) in values.iter().zip([0.701_586_3, -1.700_623_4]) {
            assert!((value - torch).abs() < 1e-5, "{values:?}");
        }
        let found = &optimizer.groups["w"].numbers.average;
        assert!(found.iter().zip(average).all(|(found, expected)| (found - expected).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn clipping_bounds_the_norm_and_reports_it() {
        let schedule = Schedule { learning_rate: 0.1, warmup_steps: 1, clip: 1.0, ema_decay: 0.9 };
        let (mut optimizer, variable) = optimizer(schedule, &[3.0, 4.0]);
        let loss = (variable.sqr().unwrap() * 0.5).unwrap().sum_all().unwrap();
        let norm = optimizer.step(1, &loss, &loss.backward().unwrap()).unwrap().to_scalar::<f32>().unwrap();
        assert!((norm - 5.0).abs() < 1e-6);
        let first = &optimizer.groups["w"].numbers.first;
        assert!((first[0] - 0.06).abs() < 1e-6 && (first[1] - 0.08).abs() < 1e-6, "{first:?}");
    }

    #[test]
    fn a_loss_that_is_no_number_updates_nothing() {
        let schedule = Schedule { learning_rate: 0.1, warmup_steps: 1, clip: 1.0, ema_decay: 0.9 };
        let (mut optimizer, variable) = optimizer(schedule, &[3.0, 4.0]);
        let loss = variable.sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let infinite = Tensor::new(f32::INFINITY, &Device::Cpu).unwrap();
        optimizer.step(1, &infinite, &gradients).unwrap();
        assert_eq!(variable.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        assert!(optimizer.failure().unwrap().is_some_and(|failure| failure.step == 1));
        optimizer.forget_failure().unwrap();
        optimizer.step(1, &loss, &gradients).unwrap();
        assert!(optimizer.failure().unwrap().is_none());
        assert_ne!(variable.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
    }
}
