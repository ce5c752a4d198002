//! The gradients of a step, summed over its micro-batches.
//!
//! candle zeroes a fresh tensor for every gradient and adds to it, with threads that wait for each other. For the group of the trunk, nearly all of a model's
//! numbers, the fused trunk adds in place to a sum of its own instead ([`TrunkSum`]), which joins the others when the step is whole.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, backprop::GradStore};

use crate::parameters::{Parameters, TRUNK};

/// The gradient of the trunk's group so far; shared by a model's parameters and its trunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrunkSum(Arc<Mutex<Option<Vec<f32>>>>);

impl TrunkSum {
    /// The sum, to be added to; none where nothing was added yet.
    pub(crate) fn take(&self) -> Option<Vec<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The sum, grown.
    pub(crate) fn put(&self, sum: Vec<f32>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sum);
    }
}

/// The sums of the micro-batches so far.
pub(crate) struct Gradients<'a> {
    parameters: &'a Parameters,
    sums: Option<GradStore>,
}

impl<'a> Gradients<'a> {
    /// No gradients yet: what a step that failed has left in the trunk's sum is forgotten.
    pub(crate) fn none(parameters: &'a Parameters) -> Self {
        parameters.trunk_sum().and_then(TrunkSum::take);
        Self { parameters, sums: None }
    }

    /// Adds those of one more micro-batch.
    pub(crate) fn add(&mut self, mut more: GradStore) -> Result<()> {
        let Some(sums) = &mut self.sums else {
            self.sums = Some(more);
            return Ok(());
        };
        for variable in self.parameters.groups().values().filter(|group| group.is_variable()) {
            if let Some(gradient) = more.remove(variable) {
                let sum = match sums.remove(variable) {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                };
                sums.insert(variable, sum);
            }
        }
        Ok(())
    }

    /// The sums of all; none where nothing was added.
    pub(crate) fn finish(self) -> Result<Option<GradStore>> {
        let Some(mut sums) = self.sums else { return Ok(None) };
        let trunk = self.parameters.trunk_sum().and_then(TrunkSum::take);
        if let (Some(sum), Some(group)) = (trunk, self.parameters.group(TRUNK)) {
            sums.insert(&group, Tensor::from_vec(sum, group.shape(), &Device::Cpu)?);
        }
        Ok(Some(sums))
    }
}
