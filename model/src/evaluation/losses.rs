//! Every expert's loss on every cluster's held-out samples: each should be best on its own.

use candle_core::{D, Device, Result};
use serde::{Deserialize, Serialize};

use super::held_out::{ByTime, HeldOut};
use crate::{report::LossByTime, sampler::Field};

/// The loss of one model on each cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRow {
    /// Whose: `expert-0`, ..., or another model that is set beside them.
    pub model: String,
    /// Mean squared error of the velocity, cluster by cluster.
    pub clusters: Vec<ByTime>,
}

/// Losses of models (rows) on clusters (columns). All models of a column answer the same questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossMatrix {
    /// The experts in the order of their clusters, then what is set beside them.
    pub rows: Vec<LossRow>,
}

impl LossMatrix {
    /// Measures a model on every cluster and adds its row.
    ///
    /// # Errors
    /// If a cluster has no held-out samples, or candle refuses.
    pub fn measure(&mut self, model: &str, field: &dyn Field, clusters: &[HeldOut], device: &Device) -> Result<()> {
        let clusters = clusters.iter().map(|held_out| Ok(ByTime::from(&velocity_losses(field, held_out, device)?)));
        self.rows.push(LossRow { model: model.to_owned(), clusters: clusters.collect::<Result<_>>()? });
        Ok(())
    }

    /// Clusters whose own expert has the lowest loss of all experts, and clusters.
    pub fn diagonal_wins(&self) -> (usize, usize) {
        let clusters = self.rows.first().map_or(0, |row| row.clusters.len());
        let experts = &self.rows[..clusters.min(self.rows.len())];
        let best = |cluster: usize| {
            let loss = |expert: &usize| experts[*expert].clusters[cluster].mean;
            (0..experts.len()).min_by(|a, b| loss(a).total_cmp(&loss(b)))
        };
        ((0..clusters).filter(|cluster| best(*cluster) == Some(*cluster)).count(), clusters)
    }
}

/// The loss of a model by time: mean squared error of the velocity over a sample's values.
///
/// # Errors
/// If there are no samples, or candle refuses.
pub fn velocity_losses(field: &dyn Field, held_out: &HeldOut, device: &Device) -> Result<LossByTime> {
    let mut losses = LossByTime::default();
    held_out.ask(device, |question| {
        let velocity = field.velocity(&question.point.x, &question.point.time, &question.batch.text.tokens)?;
        let errors = (velocity - &question.point.velocity)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
        question.times.iter().zip(errors.to_vec1::<f32>()?).for_each(|(t, loss)| losses.add(*t, loss));
        Ok(())
    })?;
    Ok(losses)
}
