//! The gradients of a step, summed over its micro-batches.
//!
//! Most of them come with candle's way back. Those of the trunk may come apart from it ([`TrunkGradients`]) and join the others here.

use std::{
    iter::once,
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Result, Tensor, backprop::GradStore};
use rayon::prelude::*;

use crate::{
    parameters::{Parameters, TRUNK},
    vector::vectorised,
};

/// The gradients of a trunk's parameters that come apart from candle's; shared by a model's parameters and its trunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrunkGradients(Arc<Mutex<Found>>);

/// What has come so far.
#[derive(Debug, Default)]
struct Found {
    /// Of the whole group, from the fused trunk: each thread's sum. candle zeroes a fresh tensor for every gradient and adds to it, with threads that wait for
    /// each other; for this group, nearly all of a model's numbers, each thread of the trunk adds in place to its own sum instead, whatever the micro-batches.
    group: Vec<Vec<f32>>,
    /// Whether the fused trunk has gone back at all.
    grown: bool,
    /// Of each sublayer that ran again ([`crate::recomputation`]): candle's node of it has no edge to its parameters.
    sublayers: Vec<GradStore>,
}

impl TrunkGradients {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's so far, a sum a thread, to be added to.
    pub(crate) fn take_group(&self) -> Vec<Vec<f32>> {
        take(&mut self.found().group)
    }

    /// The group's, grown.
    pub(crate) fn put_group(&self, sums: Vec<Vec<f32>>) {
        let mut found = self.found();
        (found.group, found.grown) = (sums, true);
    }

    /// The group's over all threads; none if the fused trunk has not gone back.
    fn take_total(&self) -> Option<Vec<f32>> {
        let Found { group, grown, .. } = take(&mut *self.found());
        if grown { total(group) } else { None }
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
    /// No gradients yet: what a step that failed has left of the trunk's is forgotten. The trunk's sums, `shares` of them, are made now, where those of the step before
    /// were: later the forward pass would have broken up their place, and they would take fresh memory.
    pub(crate) fn none(parameters: &'a Parameters, shares: usize) -> Self {
        if let Some(trunk) = parameters.trunk_gradients() {
            let zeros = |group: Tensor| (0..shares).map(move |_| vec![0.0; group.elem_count()]);
            let group = parameters.group(TRUNK).into_iter().flat_map(zeros).collect();
            *trunk.found() = Found { group, ..Found::default() };
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
        for variable in variables(self.parameters) {
            if let Some(gradient) = more.remove(variable) {
                let sum = match sums.remove(variable) {
                    // In bf16 a sum stops growing at 256 times what is added.
                    Some(sum) => (sum.to_dtype(DType::F32)? + gradient.to_dtype(DType::F32)?)?,
                    None => gradient,
                };
                sums.insert(variable, sum);
            }
        }
        Ok(())
    }

    /// The sums of all, each in the precision of its parameter; none where nothing was added.
    pub(crate) fn finish(self) -> Result<Option<GradStore>> {
        let Some(mut sums) = self.sums else { return Ok(None) };
        for variable in variables(self.parameters) {
            if let Some(sum) = sums.remove(variable) {
                sums.insert(variable, sum.to_dtype(variable.dtype())?);
            }
        }
        let trunk = self.parameters.trunk_gradients().and_then(TrunkGradients::take_total);
        if let (Some(sum), Some(group)) = (trunk, self.parameters.group(TRUNK)) {
            sums.insert(&group, Tensor::from_vec(sum, group.shape(), &Device::Cpu)?);
        }
        Ok(Some(sums))
    }
}

/// What has a gradient.
fn variables(parameters: &Parameters) -> impl Iterator<Item = &Tensor> {
    parameters.groups().values().filter(|group| group.is_variable())
}

/// Numbers that are summed at once.
const BLOCK: usize = 1 << 14;

/// The sum of vectors of equal length, added in their order; none of none.
pub(crate) fn total(vectors: Vec<Vec<f32>>) -> Option<Vec<f32>> {
    vectors.into_iter().reduce(|mut total, vector| {
        total.par_chunks_mut(BLOCK).zip(vector.par_chunks(BLOCK)).for_each(|(total, block)| add(total, block));
        total
    })
}

/// a += b
pub(crate) fn add(a: &mut [f32], b: &[f32]) {
    vectorised!(a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PartConfig, RouterConfig};

    fn parameters() -> Parameters {
        let (width, depth, heads) = (4, 1, 1);
        let shape =
            RouterConfig { channels: 1, size: 2, patch: 1, width, depth, heads, clusters: 2, caption_width: None };
        Parameters::initial(&PartConfig::Router(shape), &[0; 32], &Device::Cpu).unwrap()
    }

    /// The optimiser refuses it then: a sum of zeros would be trained with.
    #[test]
    fn a_trunk_that_never_went_back_has_no_gradient() {
        let (parameters, _) = parameters().with_trunk_gradients().into_variables().unwrap();
        let trunk = parameters.group(TRUNK).unwrap();
        let other = parameters.groups().values().find(|group| group.id() != trunk.id()).unwrap();
        for grows in [false, true] {
            let mut gradients = Gradients::none(&parameters, 2);
            if grows {
                let found = parameters.trunk_gradients().unwrap();
                found.put_group(found.take_group());
            }
            gradients.add(other.sum_all().unwrap().backward().unwrap()).unwrap();
            assert_eq!(gradients.finish().unwrap().unwrap().get(&trunk).is_some(), grows);
        }
    }

    /// As on a GPU, where parameters and their gradients are bf16.
    #[test]
    fn many_micro_batches_are_summed_beyond_the_precision_of_one() {
        const MICRO_BATCHES: usize = 400;
        let parameters = parameters();
        let (parameters, of_names) = parameters.scattered(DType::BF16).unwrap().into_variables().unwrap();
        let mut gradients = Gradients::none(&parameters, 1);
        for _ in 0..MICRO_BATCHES {
            let sums = of_names.values().map(|variable| variable.sum_all().unwrap());
            let loss = sums.reduce(|sum, more| (sum + more).unwrap()).unwrap();
            gradients.add(loss.backward().unwrap()).unwrap();
        }
        let gradients = gradients.finish().unwrap().unwrap();
        for (name, variable) in &of_names {
            let gradient = gradients.get(variable).unwrap();
            assert_eq!(gradient.dtype(), DType::BF16, "{name}");
            let numbers = gradient.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(numbers.iter().all(|it| *it == MICRO_BATCHES as f32), "{name}: {numbers:?}");
        }
    }
}
