//! What an experiment has measured so far: `results.json`, written after every measurement, so that none is done twice.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use paris_model::{
    evaluation::{classification::Classification, contest::Outcome, losses::LossMatrix},
    whole_file::write_whole,
};
use serde::{Deserialize, Serialize};

use super::plan::{BUDGETS, Plan};

const FILE_NAME: &str = "results.json";

/// All measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Results {
    /// What was done.
    pub(super) plan: Plan,
    /// Real pictures that drawn ones are compared with.
    pub(super) reference: usize,
    /// Distances of as many held-out pictures as are drawn, or as there are, from the reference: what a perfect model would reach.
    pub(super) floor: BTreeMap<String, f64>,
    /// Held-out pictures that the floor is of.
    pub(super) floor_pictures: usize,
    /// By budget.
    pub(super) budgets: Vec<Measured>,
}

/// What was measured at a budget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// The share of the compute.
    pub(super) budget: f64,
    /// Samples that an expert was trained on.
    pub(super) samples: u64,
    /// Losses of the experts and the monolith.
    pub(super) losses: Option<LossMatrix>,
    /// The same with experts from the base.
    pub(super) based_losses: Option<LossMatrix>,
    /// Routers by name.
    pub(super) routers: BTreeMap<String, Classification>,
    /// Strategies in the order in which they were measured.
    pub(super) rows: Vec<Row>,
}

/// A strategy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Its name.
    pub(super) strategy: String,
    /// Whether its experts started from the base.
    pub(super) based: bool,
    /// What it achieved.
    pub(super) outcome: Outcome,
}

impl Results {
    /// What was measured by `plan` in its folder before.
    pub(super) fn read(folder: &Path, plan: &Plan) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let results: Self = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is damaged: remove it, and everything is measured again", path.display()))?;
        Ok(Some(results).filter(|results| results.plan == *plan))
    }

    /// Nothing yet but the floor.
    pub(super) fn new(plan: &Plan, reference: usize, floor: BTreeMap<String, f64>, floor_pictures: usize) -> Self {
        let batch = plan.training.batch as u64;
        let steps = plan.steps(super::plan::Part::Expert(0));
        let budget = |(budget, steps): (f64, u64)| Measured { budget, samples: steps * batch, ..Measured::default() };
        let budgets = BUDGETS.into_iter().zip(steps).map(budget).collect();
        Self { plan: plan.clone(), reference, floor, floor_pictures, budgets }
    }

    /// Keeps what was measured.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(write_whole(&folder.join(FILE_NAME), &serde_json::to_vec_pretty(self)?)?)
    }
}
