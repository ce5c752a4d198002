//! AdamW with a state that can be saved (Loshchilov and Hutter, 2019), gradient clipping and warm-up.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Var, backprop::GradStore};
use rayon::prelude::*;

use crate::{
    fused::{sum, vectorised},
    host::{numbers, with_numbers},
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
}

/// AdamW over groups of parameters. No weight decay, as in DiT.
pub struct AdamW {
    schedule: Schedule,
    moments: BTreeMap<String, Moments>,
}

/// Running means over a group's gradients.
#[derive(Clone)]
pub struct Moments {
    /// Of the gradients.
    pub first: Vec<f32>,
    /// Of their squares.
    pub second: Vec<f32>,
}

impl AdamW {
    /// An optimiser that has not seen a gradient.
    pub fn new(schedule: Schedule, variables: &BTreeMap<String, Var>) -> Self {
        let zero = |variable: &Var| vec![0.0; variable.elem_count()];
        let moments = variables.iter().map(|(name, it)| (name.clone(), Moments { first: zero(it), second: zero(it) }));
        Self { schedule, moments: moments.collect() }
    }

    /// The moments, to be saved.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Restores saved moments.
    pub fn restore(&mut self, moments: BTreeMap<String, Moments>) {
        self.moments = moments;
    }

    /// Updates every variable; `step` counts from 1. Returns the gradients' global norm before clipping; where that is not finite, nothing is
    /// updated.
    ///
    /// # Errors
    /// If a variable has no gradient: candle loses gradients silently where an operation has no backward.
    pub fn step(&mut self, step: u64, variables: &BTreeMap<String, Var>, gradients: &GradStore) -> Result<f64> {
        let mut work = Vec::with_capacity(variables.len());
        let mut square = 0.0;
        for (name, moments) in &mut self.moments {
            let variable = &variables[name];
            let Some(gradient) = gradients.get(variable) else { candle_core::bail!("{name} received no gradient") };
            square += with_numbers([gradient], |[gradient]| Ok(square_sum(gradient)))?;
            work.push((variable, moments, gradient.contiguous()?));
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let update = Update::new(&self.schedule, step, norm);
        work.into_par_iter().try_for_each(|(variable, moments, gradient)| {
            variable.inplace_op2(&gradient, &UpdateGroup { update: &update, moments: Mutex::new(moments) })
        })?;
        Ok(norm)
    }
}

/// The sum of squares, in f64 between blocks that f32 adds well.
fn square_sum(numbers: &[f32]) -> f64 {
    const BLOCK: usize = 256;
    vectorised(|| numbers.chunks(BLOCK).map(|block| f64::from(sum(block, |x| x * x))).sum())
}

/// The numbers that one step shares among all groups.
struct Update {
    rate: f32,
    second_scale: f32,
    gradient_scale: f32,
}

impl Update {
    fn new(schedule: &Schedule, step: u64, norm: f64) -> Self {
        let warmup = (step as f64 / schedule.warmup_steps.max(1) as f64).min(1.0);
        let (correction1, correction2) = (1.0 - BETA1.powf(step as f64), 1.0 - BETA2.powf(step as f64));
        Self {
            rate: (schedule.learning_rate * warmup / correction1) as f32,
            second_scale: (1.0 / correction2) as f32,
            gradient_scale: (schedule.clip / norm).min(1.0) as f32,
        }
    }

    fn apply(&self, values: &mut [f32], moments: &mut Moments, gradient: &[f32]) {
        let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
        vectorised(|| {
            let moments = moments.first.iter_mut().zip(&mut moments.second);
            for ((value, (first, second)), gradient) in values.iter_mut().zip(moments).zip(gradient) {
                let gradient = gradient * self.gradient_scale;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                *value -= self.rate * *first / ((*second * self.second_scale).sqrt() + epsilon);
            }
        });
    }
}

/// The update of one group, in place.
struct UpdateGroup<'a> {
    update: &'a Update,
    /// candle hands an operation out by shared reference.
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp2 for UpdateGroup<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, value: &mut CpuStorage, value_at: &Layout, gradient: &CpuStorage, at: &Layout) -> Result<()> {
        let gradient = numbers(gradient, at)?;
        let (CpuStorage::F32(values), Some((start, end))) = (value, value_at.contiguous_offsets()) else {
            candle_core::bail!("a variable is a contiguous f32 tensor");
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        self.update.apply(&mut values[start..end], &mut moments, gradient);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// torch.optim.AdamW(lr=0.1, weight_decay=0) on the loss sum(w^2 * [1, 10]), from [1, -2], three steps.
    #[test]
    fn three_steps_are_those_of_torch() {
        let variable = Var::new(&[1.0f32, -2.0], &Device::Cpu).unwrap();
        let variables: BTreeMap<_, _> = [("w".to_owned(), variable.clone())].into();
        let schedule = Schedule { learning_rate: 0.1, warmup_steps: 1, clip: f64::INFINITY };
        let mut optimizer = AdamW::new(schedule, &variables);
        let scale = Tensor::new(&[1.0f32, 10.0], &Device::Cpu).unwrap();
        for step in 1..=3 {
            let loss = (variable.sqr().unwrap() * &scale).unwrap().sum_all().unwrap();
            optimizer.step(step, &variables, &loss.backward().unwrap()).unwrap();
        }
        let values = variable.to_vec1::<f32>().unwrap();
        for (value, torch) in values.iter().zip([0.701_586_3, -1.700_623_4]) {
            assert!((value - torch).abs() < 1e-5, "{values:?}");
        }
    }

    #[test]
    fn clipping_bounds_the_norm_and_reports_it() {
        let variable = Var::new(&[3.0f32, 4.0], &Device::Cpu).unwrap();
        let variables: BTreeMap<_, _> = [("w".to_owned(), variable.clone())].into();
        let schedule = Schedule { learning_rate: 0.1, warmup_steps: 1, clip: 1.0 };
        let mut optimizer = AdamW::new(schedule, &variables);
        let loss = (variable.sqr().unwrap() * 0.5).unwrap().sum_all().unwrap();
        let norm = optimizer.step(1, &variables, &loss.backward().unwrap()).unwrap();
        assert!((norm - 5.0).abs() < 1e-6);
        let first = &optimizer.moments()["w"].first;
        assert!((first[0] - 0.06).abs() < 1e-6 && (first[1] - 0.08).abs() < 1e-6, "{first:?}");
    }
}
