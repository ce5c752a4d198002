//! AdamW with a state that can be saved (Loshchilov and Hutter, 2019), gradient clipping and warm-up.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, backprop::GradStore};

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

/// First and second moments of each variable's gradients. No weight decay, as in DiT.
pub struct AdamW {
    schedule: Schedule,
    moments: BTreeMap<String, Moments>,
}

/// The moments of a variable.
#[derive(Clone)]
pub struct Moments {
    /// Mean of the gradients.
    pub first: Vec<f32>,
    /// Mean of their squares.
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

    /// Updates every variable; `step` counts from 1. Returns the gradients' global norm before clipping. A variable without a gradient is an
    /// error: candle loses gradients silently where an operation has no backward.
    pub fn step(&mut self, step: u64, variables: &BTreeMap<String, Var>, gradients: &GradStore) -> Result<f64> {
        let mut by_name = BTreeMap::new();
        let mut square = 0.0;
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(variable) else { candle_core::bail!("{name} received no gradient") };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            square += gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
            by_name.insert(name, gradient);
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let scale = (self.schedule.clip / norm).min(1.0) as f32;
        let update = self.update_at(step);
        for (name, gradient) in by_name {
            let (variable, Some(moments)) = (&variables[name], self.moments.get_mut(name)) else { continue };
            let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
            update.apply(&mut values, moments, &gradient, scale);
            variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
        }
        Ok(norm)
    }

    fn update_at(&self, step: u64) -> Update {
        let warmup = (step as f64 / self.schedule.warmup_steps.max(1) as f64).min(1.0);
        let (correction1, correction2) = (1.0 - BETA1.powf(step as f64), 1.0 - BETA2.powf(step as f64));
        Update {
            rate: (self.schedule.learning_rate * warmup / correction1) as f32,
            second_scale: (1.0 / correction2) as f32,
        }
    }
}

/// The numbers that one step shares among all parameters.
struct Update {
    rate: f32,
    second_scale: f32,
}

impl Update {
    fn apply(&self, values: &mut [f32], moments: &mut Moments, gradient: &[f32], scale: f32) {
        let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((value, (first, second)), gradient) in values.iter_mut().zip(moments).zip(gradient) {
            let gradient = gradient * scale;
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            *value -= self.rate * *first / ((*second * self.second_scale).sqrt() + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

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
