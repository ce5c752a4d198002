//! The gradients of a step, summed over its micro-batches.
//!
//! Most of them come with candle's way back. Those of the trunk may come apart from it ([`TrunkGradients`]) and join the others here.

use std::{
    iter::once,
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Result, Tensor, backprop::GradStore};

use crate::parameters::{Parameters, TRUNK};

/// The gradients of a trunk's parameters that come apart from candle's; shared by a model's parameters and its trunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrunkGradients(Arc<Mutex<Found>>);

/// What has come so far.
#[derive(Debug, Default)]
struct Found {
    /// Of the whole group, from the fused trunk. candle zeroes a fresh tensor for every gradient and adds to it, with threads that wait for each other; for
    /// this group, nearly all of a model's numbers, the trunk adds in place to this sum instead.
    group: Option<Vec<f32>>,
    /// Of each sublayer that ran again ([`crate::recomputation`]): candle's node of it has no edge to its parameters.
    sublayers: Vec<GradStore>,
}

impl TrunkGradients {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's, to be added to; none where nothing was added yet.
    pub(crate) fn take_group(&self) -> Option<Vec<f32>> {
        self.found().group.take()
    }

    /// The group's, grown.
    pub(crate) fn put_group(&self, sum: Vec<f32>) {
        self.found().group = Some(sum);
    }

    /// Those of one more sublayer.
    pub(crate) fn put_sublayer(&self, gradients: GradStore) {
        self.found().sublayers.push(gradients);
    }

    fn take_sublayers(&self) -> Vec<GradStore> {
        take(&mut self.found().sublayers)
    }
}

/// The sums of the micro-batches so far.
pub(crate) struct Gradients<'a> {
    parameters: &'a Parameters,
    sums: Option<GradStore>,
}

impl<'a> Gradients<'a> {
    /// No gradients yet: what a step that failed has left of the trunk's is forgotten.
    pub(crate) fn none(parameters: &'a Parameters) -> Self {
        if let Some(trunk) = parameters.trunk_gradients() {
            *trunk.found() = Found::default();
        }
        Self { parameters, sums: None }
    }

    /// Adds those of one more micro-batch.
    pub(crate) fn add(&mut self, more: GradStore) -> Result<()> {
        let apart = self.parameters.trunk_gradients().map(TrunkGradients::take_sublayers);
        once(more).chain(apart.into_iter().flatten()).try_for_each(|more| self.sum(more))
    }

    fn sum(&mut self, mut more: GradStore) -> Result<()> {
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
        let trunk = self.parameters.trunk_gradients().and_then(TrunkGradients::take_group);
        if let (Some(sum), Some(group)) = (trunk, self.parameters.group(TRUNK)) {
            sums.insert(&group, Tensor::from_vec(sum, group.shape(), &Device::Cpu)?);
        }
        Ok(Some(sums))
    }
}
