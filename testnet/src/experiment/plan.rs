//! What an experiment does, fixed when its folder is begun: everything in it follows from this and the pictures.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use paris_model::{
    config::{ExpertConfig, PartConfig, RouterConfig},
    evaluation::contest::ContestSettings,
    objective::Objective,
    trainer::TrainSettings,
    whole_file::write_whole,
};
use serde::{Deserialize, Serialize};

/// Version of `plan.json` that this program writes and reads.
const VERSION: u32 = 1;
const FILE_NAME: &str = "plan.json";
/// Shares of the compute after which everything is measured. The monolith of the first is the base checkpoint.
pub(super) const BUDGETS: [f64; 3] = [0.25, 0.5, 1.0];

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) version: u32,
    /// BLAKE3 of `prepared.json`, which names every shard.
    pub(super) data: String,
    /// Minutes that it was given, if it was not given samples.
    pub(super) minutes: Option<f64>,
    /// Samples that each expert is trained on, and each router.
    pub(super) samples: u64,
    pub(super) seed: u64,
    pub(super) models: Models,
    pub(super) training: Training,
    /// Whether experts that start from a base checkpoint are compared too.
    pub(super) base: bool,
    pub(super) measuring: Measuring,
}

/// The models' sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Models {
    pub(super) clusters: usize,
    /// Side of a picture, pixels.
    pub(super) size: usize,
    pub(super) patch: usize,
    pub(super) width: usize,
    pub(super) depth: usize,
    pub(super) heads: usize,
    pub(super) router_width: usize,
    pub(super) router_depth: usize,
    pub(super) router_heads: usize,
    pub(super) text_tokens: usize,
    pub(super) text_width: usize,
}

/// How all parts are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Training {
    pub(super) batch: usize,
    pub(super) learning_rate: f64,
    pub(super) warmup: u64,
    pub(super) ema: f64,
    pub(super) caption_drop: f32,
}

/// How all budgets are measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measuring {
    /// Pictures drawn a strategy and seed.
    pub(super) pictures: usize,
    /// At the last budget; before it the first seed alone.
    pub(super) contest: ContestSettings,
    /// Held-out samples of a cluster on which losses are measured, at most.
    pub(super) held_out: usize,
}

/// A model that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All data, K times an expert's steps.
    Monolith,
    /// One cluster's data, from random weights.
    Expert(usize),
    /// The same from the base checkpoint.
    BasedExpert(usize),
    /// The router that reads captions, or the one that does not.
    Router { reads_caption: bool },
}

impl Part {
    /// The name of its folder.
    pub(super) fn name(self) -> String {
        match self {
            Self::Monolith => "monolith".to_owned(),
            Self::Expert(cluster) => format!("expert-{cluster}"),
            Self::BasedExpert(cluster) => format!("based-expert-{cluster}"),
            Self::Router { reads_caption: true } => "caption-router".to_owned(),
            Self::Router { reads_caption: false } => "plain-router".to_owned(),
        }
    }
}

impl Plan {
    /// The plan of a folder that was begun, if it was.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let plan: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is of another version of this program: use another --out", path.display()))?;
        if plan.version != VERSION {
            bail!("{} has version {}, this program reads {VERSION}: use another --out", path.display(), plan.version);
        }
        Ok(Some(plan))
    }

    /// Fixes the plan in its folder.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(write_whole(&folder.join(FILE_NAME), &serde_json::to_vec_pretty(self)?)?)
    }

    /// The current version.
    pub(super) fn version() -> u32 {
        VERSION
    }

    /// All parts in the order in which they are trained: a base needs the monolith.
    pub(super) fn parts(&self) -> Vec<Part> {
        let clusters = 0..self.models.clusters;
        let mut parts = vec![Part::Monolith];
        parts.extend(clusters.clone().map(Part::Expert));
        parts.extend([true, false].map(|reads_caption| Part::Router { reads_caption }));
        if self.base {
            parts.extend(clusters.map(Part::BasedExpert));
        }
        parts
    }

    /// Steps of a part after each budget; 0 where it has not begun. What an expert from the base saves is what the base took, over all of them.
    pub(super) fn steps(&self, part: Part) -> [u64; BUDGETS.len()] {
        let all = (self.samples / self.training.batch as u64).max(1) as f64;
        BUDGETS.map(|budget| {
            let steps = |share: f64| (share * all).round() as u64;
            match part {
                Part::Monolith => self.models.clusters as u64 * steps(budget),
                Part::Expert(_) | Part::Router { .. } => steps(budget),
                Part::BasedExpert(_) => steps(budget) - steps(BUDGETS[0]),
            }
        })
    }

    /// A part's model.
    pub(super) fn config(&self, part: Part) -> PartConfig {
        match part {
            Part::Router { reads_caption } => PartConfig::Router(self.router(reads_caption)),
            _ => PartConfig::Expert(self.expert()),
        }
    }

    /// An expert's shape, and the monolith's.
    pub(super) fn expert(&self) -> ExpertConfig {
        let Models { size, patch, width, depth, heads, text_tokens, text_width, .. } = self.models;
        ExpertConfig { channels: 3, size, patch, width, depth, heads, text_tokens, text_width }
    }

    /// A router's shape.
    pub(super) fn router(&self, reads_caption: bool) -> RouterConfig {
        let Models { size, patch, router_width, router_depth, router_heads, clusters, text_width, .. } = self.models;
        RouterConfig {
            channels: 3,
            size,
            patch,
            width: router_width,
            depth: router_depth,
            heads: router_heads,
            clusters,
            caption_width: reads_caption.then_some(text_width),
        }
    }

    /// How every part is trained.
    pub(super) fn train_settings(&self) -> TrainSettings {
        let Training { batch, learning_rate, warmup, ema, caption_drop } = self.training;
        TrainSettings {
            batch,
            learning_rate,
            warmup_steps: warmup,
            clip: 1.0,
            ema_decay: ema,
            caption_drop,
            objective: Objective::Velocity,
        }
    }

    /// What names this experiment's snapshots.
    pub(super) fn id(&self) -> anyhow::Result<String> {
        Ok(blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string())
    }

    /// What keys the randomness of a part's training.
    pub(super) fn key(&self, part: Part) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("paris-testnet experiment 1");
        hasher.update(&self.seed.to_le_bytes()).update(part.name().as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// The seeds that strategies draw with at a budget.
    pub(super) fn contest(&self, budget: usize) -> ContestSettings {
        let mut contest = self.measuring.contest.clone();
        if budget + 1 < BUDGETS.len() {
            contest.seeds.truncate(1);
        }
        contest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn plan() -> Plan {
        Plan {
            version: VERSION,
            data: String::new(),
            minutes: None,
            samples: 1000,
            seed: 0,
            models: Models {
                clusters: 4,
                size: 16,
                patch: 4,
                width: 32,
                depth: 1,
                heads: 2,
                router_width: 32,
                router_depth: 1,
                router_heads: 2,
                text_tokens: 4,
                text_width: 8,
            },
            training: Training { batch: 10, learning_rate: 1e-3, warmup: 5, ema: 0.9, caption_drop: 0.1 },
            base: true,
            measuring: Measuring {
                pictures: 100,
                contest: ContestSettings { steps: 4, guidance: 1.5, seeds: vec![1, 2, 3] },
                held_out: 100,
            },
        }
    }

    #[test]
    fn every_strategy_costs_the_same_at_every_budget() {
        let plan = plan();
        assert_eq!(plan.steps(Part::Monolith), [100, 200, 400]);
        for budget in 0..BUDGETS.len() {
            let of = |part: fn(usize) -> Part| (0..4).map(|cluster| plan.steps(part(cluster))[budget]).sum::<u64>();
            let monolith = plan.steps(Part::Monolith)[budget];
            assert_eq!(of(Part::Expert), monolith);
            assert_eq!(plan.steps(Part::Monolith)[0] + of(Part::BasedExpert), monolith);
        }
    }

    #[test]
    fn a_plan_survives_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Plan::read(folder.path()).unwrap(), None);
        plan().write(folder.path()).unwrap();
        assert_eq!(Plan::read(folder.path()).unwrap(), Some(plan()));
        let names: std::collections::BTreeSet<_> = plan().parts().into_iter().map(Part::name).collect();
        assert_eq!(names.len(), 1 + 4 + 2 + 4);
    }
}
