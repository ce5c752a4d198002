//! Measuring all parts and strategies of an experiment at each budget.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use paris_model::{
    Device,
    batch::BatchSource,
    evaluation::{
        classification::Answers,
        contest::{Prompts, compete},
        distances::{NamedFeatures, Reference},
        held_out::HeldOut,
        losses::LossMatrix,
    },
    grid::Grid,
    image_codec::Pixels,
    report::TIME_BINS,
};

use super::{
    clock::Clock,
    contestants::{self, Contestant},
    data::Data,
    plan::{BUDGETS, Part, Plan},
    results::{Results, Row},
};

/// What a pass without gradients costs, in samples of training.
const FORWARD: f64 = 1.0 / 3.0;
/// Pictures of each strategy that are shown.
const SHOWN: usize = 16;

/// What measurements need.
pub(super) struct Measuring<'a> {
    plan: &'a Plan,
    data: &'a Data,
    out: &'a Path,
    device: &'a Device,
    references: Vec<Reference<'a>>,
    prompts: Prompts,
}

/// The work of all measurements, in samples of an expert's training.
pub(super) fn work(plan: &Plan, held_out: usize) -> f64 {
    (0..BUDGETS.len()).map(|budget| work_at(plan, held_out, budget)).sum()
}

fn work_at(plan: &Plan, held_out: usize, budget: usize) -> f64 {
    let contests: f64 = Contestant::all(plan, budget).into_iter().map(|it| contest_work(plan, it, budget)).sum();
    let sets = if plan.base && budget > 0 { 2 } else { 1 };
    let rows = sets * (plan.models.clusters + 1);
    contests + (rows * held_out * TIME_BINS) as f64 * FORWARD
}

fn contest_work(plan: &Plan, contestant: Contestant, budget: usize) -> f64 {
    let contest = plan.contest(budget);
    let passes = if contest.guidance == 1.0 { 1 } else { 2 };
    let all = contest.seeds.len() * plan.measuring.pictures * contest.steps * passes;
    (all * contestant.experts_a_step(plan)) as f64 * FORWARD
}

impl<'a> Measuring<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        data: &'a Data,
        out: &'a Path,
        device: &'a Device,
        features: &[NamedFeatures<'a>],
    ) -> anyhow::Result<Self> {
        let (count, real) = (plan.measuring.pictures, data.reference()?);
        let of = |features: &NamedFeatures<'a>| Reference::of(*features, &real, count);
        let references = features.iter().map(of).collect::<Result<_, _>>()?;
        let prompts = data.prompts(count, plan.seed, device)?;
        Ok(Self { plan, data, out, device, references, prompts })
    }

    /// Measures whatever `results.json` does not have yet.
    pub(super) fn run(&self, clock: &mut Clock) -> anyhow::Result<Results> {
        let mut results = match Results::read(self.out, self.plan)? {
            Some(results) => results,
            None => self.floor()?,
        };
        for budget in 0..BUDGETS.len() {
            self.models(&mut results, budget, clock)?;
            for contestant in Contestant::all(self.plan, budget) {
                self.contest(&mut results, contestant, budget, clock)?;
            }
        }
        Ok(results)
    }

    /// Results with nothing but what real pictures reach.
    fn floor(&self) -> anyhow::Result<Results> {
        let held_out = self.data.held_out(self.plan.measuring.pictures)?;
        let mut floor = BTreeMap::new();
        for reference in &self.references {
            match reference.distances(&held_out) {
                Ok(distances) => floor.extend(distances.map(|(name, distance)| (name, rounded(distance)))),
                Err(error) => println!("what {} held-out pictures reach is not measured: {error}", held_out.dim(0)?),
            }
        }
        let reference = self.references.first().map_or(0, Reference::pictures);
        Ok(Results::new(self.plan, reference, floor, held_out.dim(0)?))
    }

    /// Losses of experts and monolith, and both routers.
    fn models(&self, results: &mut Results, budget: usize, clock: &mut Clock) -> anyhow::Result<()> {
        let (plan, measured) = (self.plan, &mut results.budgets[budget]);
        let loss_work = self.losses_work();
        let mut is_new = false;
        let experts: [fn(usize) -> Part; 2] = [Part::Expert, Part::BasedExpert];
        let sets = [
            (true, &mut measured.losses, experts[0]),
            (plan.base && budget > 0, &mut measured.based_losses, experts[1]),
        ];
        for (is_wanted, losses, expert) in sets {
            match (is_wanted, losses.is_some()) {
                (true, false) => {
                    *losses = Some(self.losses(expert, budget)?);
                    clock.done(loss_work);
                    is_new = true;
                }
                (true, true) => clock.found(loss_work),
                (false, _) => {}
            }
        }
        for reads_caption in [true, false] {
            let part = Part::Router { reads_caption };
            if let Entry::Vacant(place) = measured.routers.entry(part.name()) {
                let router = contestants::router(plan, part, self.out, budget, self.device)?;
                let samples = self.plan.measuring.held_out * self.plan.models.clusters;
                let answers =
                    Answers::of(&router, &self.held_out(&*self.data.splits.all.held_out, samples), self.device)?;
                place.insert(answers.classification()?);
                is_new = true;
            }
        }
        if is_new {
            clock.say_now(&format!("losses and routers at {} of the budget are measured", BUDGETS[budget]));
            results.write(self.out)?;
        }
        Ok(())
    }

    fn losses_work(&self) -> f64 {
        let samples: usize =
            self.data.splits.clusters.iter().map(|it| it.held_out.len().min(self.plan.measuring.held_out)).sum();
        ((self.plan.models.clusters + 1) * samples * TIME_BINS) as f64 * FORWARD
    }

    fn losses(&self, expert: fn(usize) -> Part, budget: usize) -> anyhow::Result<LossMatrix> {
        let held_out: Vec<HeldOut> = (self.data.splits.clusters.iter())
            .map(|cluster| self.held_out(&*cluster.held_out, self.plan.measuring.held_out))
            .collect();
        let mut losses = LossMatrix::default();
        for part in (0..self.plan.models.clusters).map(expert).chain([Part::Monolith]) {
            let model = contestants::expert(self.plan, part, self.out, budget, self.device)?;
            let own = match part {
                Part::Expert(cluster) | Part::BasedExpert(cluster) => Some(cluster),
                Part::Monolith | Part::Router { .. } => None,
            };
            losses.measure(&part.name(), own, &model, &held_out, self.device)?;
        }
        Ok(losses)
    }

    fn held_out<'b>(&self, data: &'b dyn BatchSource, samples: usize) -> HeldOut<'b> {
        HeldOut { data, samples, draws: TIME_BINS, seed: self.plan.seed }
    }

    /// Draws by one strategy and measures the pictures.
    fn contest(
        &self,
        results: &mut Results,
        contestant: Contestant,
        budget: usize,
        clock: &mut Clock,
    ) -> anyhow::Result<()> {
        let (plan, measured) = (self.plan, &mut results.budgets[budget]);
        let work = contest_work(plan, contestant, budget);
        let strategy = contestant.to_string();
        if measured.rows.iter().any(|row| row.strategy == strategy) {
            clock.found(work);
            return Ok(());
        }
        let calibration = contestant.router().and_then(|part| measured.routers.get(&part.name()));
        let calibration = calibration.map(|router| router.temperatures.clone());
        let mixture = contestant.mixture(plan, self.out, budget, calibration, self.device)?;
        let contest = plan.contest(budget);
        let all = contest.seeds.len() * self.prompts.len();
        let mut before = 0;
        let mut progress = |drawn: usize| {
            clock.done(work * (drawn - before) as f64 / all as f64);
            before = drawn;
            clock.say(|| format!("{strategy} at {} of the budget: {drawn} of {all} pictures", BUDGETS[budget]));
        };
        let (mut outcome, pictures) = compete(
            &mixture,
            &Pixels,
            contestant.strategy(),
            &self.prompts,
            &self.references,
            &contest,
            &mut progress,
        )?;
        outcome.distances.values_mut().flatten().for_each(|distance| *distance = rounded(*distance));
        if budget + 1 == BUDGETS.len() {
            let shown = pictures.narrow(0, 0, SHOWN.min(pictures.dim(0)?))?;
            let grids = self.out.join("grids");
            std::fs::create_dir_all(&grids)?;
            let name = strategy.replace(", ", "-").replace(' ', "-");
            Grid::fitting(SHOWN, plan.models.size).write_png(&grids.join(format!("{name}.png")), &shown)?;
        }
        let distances: Vec<_> =
            outcome.distances.keys().filter_map(|name| Some(format!("{name} {}", outcome.spread(name)?))).collect();
        clock.say_now(&format!("{strategy} at {} of the budget: {}", BUDGETS[budget], distances.join(", ")));
        measured.rows.push(Row { strategy, based: contestant.is_based(), outcome });
        results.write(self.out)
    }
}

/// To seven digits: more mean nothing, and could change in the last one where `results.json` is read and written again.
fn rounded(distance: f64) -> f64 {
    format!("{distance:.6e}").parse().unwrap_or(distance)
}
