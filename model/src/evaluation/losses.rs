//! Every expert's loss on every cluster's held-out samples: each should be best on its own.

use std::fmt;

use candle_core::{D, Device, Result};
use serde::{Deserialize, Serialize};

use super::{
    held_out::{ByTime, HeldOut},
    table::Table,
};
use crate::{report::LossByTime, sampler::Field};

/// The loss of one model on each cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRow {
    /// Whose: `expert-0`, ..., or another model that is set beside them.
    pub model: String,
    /// The cluster that it is the expert of; none of what is set beside the experts.
    pub own: Option<usize>,
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
    /// Measures a model on every cluster and adds its row; `own` is the cluster that it is the expert of.
    ///
    /// # Errors
    /// If a cluster has no held-out samples, or candle refuses.
    pub fn measure(
        &mut self,
        model: &str,
        own: Option<usize>,
        field: &dyn Field,
        clusters: &[HeldOut],
        device: &Device,
    ) -> Result<()> {
        let losses = clusters.iter().map(|held_out| Ok(ByTime::from(&velocity_losses(field, held_out, device)?)));
        let clusters = losses.collect::<Result<_>>()?;
        self.rows.push(LossRow { model: model.to_owned(), own, clusters });
        Ok(())
    }

    /// Clusters whose own expert has the lowest loss of all experts.
    pub fn diagonal_wins(&self) -> usize {
        let wins = |cluster: &usize| self.best_expert(*cluster).is_some_and(|row| row.own == Some(*cluster));
        (0..self.clusters()).filter(wins).count()
    }

    /// Clusters that were measured on.
    pub fn clusters(&self) -> usize {
        self.rows.first().map_or(0, |row| row.clusters.len())
    }

    /// The expert with the lowest loss on a cluster.
    fn best_expert(&self, cluster: usize) -> Option<&LossRow> {
        let loss = |row: &LossRow| row.clusters[cluster].mean;
        self.rows.iter().filter(|row| row.own.is_some()).min_by(|a, b| loss(a).total_cmp(&loss(b)))
    }
}

/// Rows of models, a column a cluster, means over all times; what is lowest of the experts is marked.
impl fmt::Display for LossMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = (0..self.clusters()).map(|cluster| format!("cluster {cluster}"));
        let mut table = Table::new(["held-out loss".to_owned()].into_iter().chain(head));
        for row in &self.rows {
            let cells = row.clusters.iter().enumerate().map(|(cluster, loss)| match self.best_expert(cluster) {
                Some(best) if best == row => format!("**{:.4}**", loss.mean),
                _ => format!("{:.4}", loss.mean),
            });
            table.add([row.model.clone()].into_iter().chain(cells));
        }
        table.fmt(f)
    }
}

/// The loss of a model by time: mean squared error of the velocity over a sample's values, whatever its expert predicts, so that models of unlike objectives
/// compare. Close to noise one that predicts the noise is far off there, since the velocity multiplies its errors by the ratio of noise to picture.
///
/// # Errors
/// If there are no samples, or candle refuses.
pub fn velocity_losses(field: &dyn Field, held_out: &HeldOut, device: &Device) -> Result<LossByTime> {
    let mut losses = LossByTime::default();
    held_out.ask(device, |question| {
        let velocity = field.velocity(&question.point.x, &question.point.time, &question.batch.text.tokens)?;
        let errors = (velocity - &question.point.target)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
        question.times.iter().zip(errors.to_vec1::<f32>()?).for_each(|(t, loss)| losses.add(*t, loss));
        Ok(())
    })?;
    Ok(losses)
}
