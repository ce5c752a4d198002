//! The network of a part, whichever it is, and what it learns from.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::log_softmax;

use crate::{
    batch::Batch, config::PartConfig, expert::Expert, flow::noised, objective::Objective, parameters::Parameters,
    router::Router,
};

/// A part's network.
pub(crate) enum PartModel {
    Expert(Expert),
    Router(Router),
}

impl PartModel {
    /// The network of `config` over its parameters.
    pub(crate) fn new(config: &PartConfig, parameters: &Parameters) -> Result<Self> {
        Ok(match config {
            PartConfig::Expert(config) => PartModel::Expert(Expert::new(config, parameters)?),
            PartConfig::Router(config) => PartModel::Router(Router::new(config, parameters)?),
        })
    }

    /// The loss of each sample, `[B]`, of a batch that is noised by `noise` to `times`. The batch's loss is their mean.
    pub(crate) fn losses(&self, objective: Objective, batch: &Batch, noise: &Tensor, times: &[f32]) -> Result<Tensor> {
        match self {
            PartModel::Expert(expert) => {
                let point = objective.noised(&batch.images, noise, times)?;
                let predicted = expert.forward(&point.x, &point.time, &batch.text.tokens)?;
                (predicted - &point.target)?.sqr()?.flatten_from(1)?.mean(D::Minus1)
            }
            PartModel::Router(router) => {
                let point = noised(&batch.images, noise, times)?;
                let logits = router.forward(&point.x, &point.time, Some(&batch.text.pooled))?;
                log_softmax(&logits, D::Minus1)?.gather(&batch.labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg()
            }
        }
    }

    /// See [`Trainer::set_recompute`](crate::trainer::Trainer::set_recompute).
    pub(crate) fn set_recompute(&mut self, recompute: bool) {
        match self {
            PartModel::Expert(expert) => expert.set_recompute(recompute),
            PartModel::Router(router) => router.set_recompute(recompute),
        }
    }
}
