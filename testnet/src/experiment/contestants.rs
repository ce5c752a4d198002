//! Who draws in an experiment: models from their files, put together to mixtures.

use std::{fmt, fs, path::Path};

use anyhow::Context;
use paris_model::{
    Device,
    config::PartConfig,
    evaluation::contest::Strategy,
    expert::Expert,
    parameters::Parameters,
    router::Router,
    sampler::{Calibration, Mixture},
};

use super::{
    plan::{BUDGETS, Part, Plan},
    training::weights_path,
};

/// A way to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// One model of all data.
    Monolith,
    /// Experts, from random weights or from the base.
    Mixture {
        based: bool,
        /// Which router is asked; none where chance or the truth decides.
        reads_caption: Option<bool>,
        strategy: Strategy,
    },
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Mixture { based, reads_caption, strategy } = self else { return f.write_str("monolith") };
        let router = match reads_caption {
            Some(true) => ", router with captions",
            Some(false) => ", router without",
            None => "",
        };
        let base = if *based { ", from base" } else { "" };
        write!(f, "{strategy}{router}{base}")
    }
}

impl Contestant {
    /// All at a budget. At the first one experts from the base are the base.
    pub(super) fn all(plan: &Plan, budget: usize) -> Vec<Self> {
        let mut all = vec![Self::Monolith];
        for based in [false, true] {
            if based && (!plan.base || budget == 0) {
                continue;
            }
            for reads_caption in [true, false] {
                // The experts of one or two clusters are mixed in one way.
                let tops = (1..=2).filter(|k| *k < plan.models.clusters).map(Strategy::Top);
                for strategy in tops.chain([Strategy::Full]) {
                    all.push(Self::Mixture { based, reads_caption: Some(reads_caption), strategy });
                }
            }
            for strategy in [Strategy::Oracle, Strategy::Random] {
                all.push(Self::Mixture { based, reads_caption: None, strategy });
            }
        }
        all
    }

    /// True for experts from the base.
    pub(super) fn is_based(self) -> bool {
        matches!(self, Self::Mixture { based: true, .. })
    }

    /// How it draws with its mixture.
    pub(super) fn strategy(self) -> Strategy {
        match self {
            Self::Monolith => Strategy::Full,
            Self::Mixture { strategy, .. } => strategy,
        }
    }

    /// The router it asks.
    pub(super) fn router(self) -> Option<Part> {
        match self {
            Self::Mixture { reads_caption: Some(reads_caption), .. } => Some(Part::Router { reads_caption }),
            _ => None,
        }
    }

    /// The models whose velocities it mixes.
    fn experts(self, plan: &Plan) -> Vec<Part> {
        let clusters = 0..plan.models.clusters;
        match self {
            Self::Monolith => vec![Part::Monolith],
            Self::Mixture { based: false, .. } => clusters.map(Part::Expert).collect(),
            Self::Mixture { based: true, .. } => clusters.map(Part::BasedExpert).collect(),
        }
    }

    /// Experts that a step of a picture runs.
    pub(super) fn experts_a_step(self, plan: &Plan) -> usize {
        match self.strategy() {
            Strategy::Top(k) => k.min(plan.models.clusters),
            Strategy::Full => self.experts(plan).len(),
            Strategy::Oracle | Strategy::Random => 1,
        }
    }

    /// Its models at a budget.
    pub(super) fn mixture(
        self,
        plan: &Plan,
        out: &Path,
        budget: usize,
        calibration: Option<Calibration>,
        device: &Device,
    ) -> anyhow::Result<Mixture> {
        let open = |part| Ok(Some(Box::new(expert(plan, part, out, budget, device)?) as Box<_>));
        let router = self.router().map(|part| anyhow::Ok(Box::new(router(plan, part, out, budget, device)?) as Box<_>));
        Ok(Mixture {
            shape: (3, plan.models.size, plan.models.size),
            experts: self.experts(plan).into_iter().map(open).collect::<anyhow::Result<_>>()?,
            router: router.transpose()?,
            calibration,
        })
    }
}

/// An expert, or the monolith, as it was at a budget.
pub(super) fn expert(plan: &Plan, part: Part, out: &Path, budget: usize, device: &Device) -> anyhow::Result<Expert> {
    Ok(Expert::new(&plan.expert(), &load(plan, part, out, budget, device)?)?)
}

/// A router as it was at a budget.
pub(super) fn router(plan: &Plan, part: Part, out: &Path, budget: usize, device: &Device) -> anyhow::Result<Router> {
    let parameters = load(plan, part, out, budget, device)?;
    match plan.config(part) {
        PartConfig::Router(config) => Ok(Router::new(&config, &parameters)?),
        PartConfig::Expert(_) => anyhow::bail!("{} is no router", part.name()),
    }
}

fn load(plan: &Plan, part: Part, out: &Path, budget: usize, device: &Device) -> anyhow::Result<Parameters> {
    debug_assert!(budget < BUDGETS.len());
    let path = weights_path(out, part, plan.steps(part)[budget]);
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let parameters = Parameters::load(&plan.config(part), &bytes, device);
    Ok(parameters.with_context(|| format!("the weights {}", path.display()))?.to_compute()?)
}
