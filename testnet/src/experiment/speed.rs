//! How fast this machine is, and what fits into so many minutes.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use paris_model::{Device, trainer::Trainer};

use super::{
    COMPONENTS,
    data::Data,
    measuring,
    plan::{Part, Plan},
    training,
};

/// Steps before the measured ones: memory is mapped, caches are filled.
const WARM_UP: usize = 2;
/// Measured for so long, and three steps at least.
const MEASURE_FOR: Duration = Duration::from_secs(4);
/// The share of the time that is planned; the rest is for what is not counted.
const PLANNED: f64 = 0.9;
/// The share of that which drawing may take, where the pictures are not given.
const DRAWING: f64 = 1.0 / 3.0;
/// Pictures a strategy: as few as distances take with a margin, and as many as are worth their time.
const PICTURES: (usize, usize) = (2 * COMPONENTS, 1024);

/// Samples of an expert's training a second.
pub(super) fn measure(plan: &Plan, data: &Data, device: &Device) -> anyhow::Result<f64> {
    let part = Part::Monolith;
    let mut trainer = Trainer::new(plan.config(part), plan.train_settings(), &plan.key(part), &data.null, device)?;
    for _ in 0..WARM_UP {
        trainer.step(&*data.splits.all.train)?;
    }
    let (began, mut steps) = (Instant::now(), 0);
    while steps < 3 || began.elapsed() < MEASURE_FOR {
        trainer.step(&*data.splits.all.train)?;
        steps += 1;
    }
    Ok((steps * plan.training.batch) as f64 / began.elapsed().as_secs_f64())
}

/// Fixes the plan's samples, and its pictures where they are not given, so that all of it takes so many minutes.
pub(super) fn fit(
    plan: &mut Plan,
    speed: &f64,
    minutes: f64,
    pictures: Option<usize>,
    held_out: usize,
) -> anyhow::Result<()> {
    let all = minutes * 60.0 * speed * PLANNED;
    let measuring_work = |plan: &Plan| measuring::work(plan, held_out);
    if pictures.is_none() {
        // The work of drawing is in proportion to the pictures, that of losses is not.
        let mut with = |pictures| {
            plan.measuring.pictures = pictures;
            measuring_work(plan)
        };
        let (none, thousand) = (with(0), with(1000));
        let fitting = (all * DRAWING - none) / ((thousand - none) / 1000.0);
        plan.measuring.pictures = (fitting.max(0.0) as usize).clamp(PICTURES.0, PICTURES.1);
    }
    let left = all - measuring_work(plan);
    // Work grows with the samples; one sample an expert is the unit.
    plan.samples = 1_000_000;
    let million: f64 = plan.parts().into_iter().map(|part| training::work(plan, part)).sum();
    plan.samples = (left / million * 1e6).max(0.0) as u64;
    let least = 4 * plan.training.batch as u64;
    if plan.samples < least {
        bail!(
            "{minutes} minutes are too few here: measuring {} pictures a strategy leaves {} samples an expert, and {least} are the least. Give more --minutes, \
             fewer --pictures, --draws or --steps, or smaller models",
            plan.measuring.pictures,
            plan.samples
        );
    }
    ensure!(plan.samples < 1 << 40, "{minutes} minutes are more than anybody has");
    Ok(())
}
