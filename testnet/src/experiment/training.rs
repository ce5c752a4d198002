//! Training the parts of an experiment, as nodes train them, up to each budget.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use paris_model::{
    Device,
    batch::BatchSource,
    durable::{Durable, Outcome, Setup},
    snapshot::Snapshots,
    whole_file::write_whole,
};

use super::{
    clock::Clock,
    data::Data,
    plan::{Part, Plan},
};

/// Between two snapshots: what a killed experiment does again at most.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);
/// Weight of the newest step in the loss that is shown.
const LOSS_SMOOTHING: f32 = 0.05;

/// Where the weights of a part at a step lie.
pub(super) fn weights_path(out: &Path, part: Part, step: u64) -> PathBuf {
    out.join("parts").join(part.name()).join(format!("step-{step}.safetensors"))
}

/// The work of a part up to its last budget, in samples of an expert's training.
pub(super) fn work(plan: &Plan, part: Part) -> f64 {
    let steps = plan.steps(part).into_iter().max().unwrap_or(0);
    (steps * plan.training.batch as u64) as f64 * cost_of_sample(plan, part)
}

/// What a sample costs, in samples of an expert: about as their parameters.
fn cost_of_sample(plan: &Plan, part: Part) -> f64 {
    plan.config(part).parameter_count() as f64 / plan.config(Part::Monolith).parameter_count() as f64
}

/// Trains a part, unless the weights of all its budgets are there. It goes on from a snapshot of a process that was killed.
pub(super) fn train(
    plan: &Plan,
    part: Part,
    data: &Data,
    out: &Path,
    device: &Device,
    clock: &mut Clock,
) -> anyhow::Result<()> {
    let milestones: Vec<u64> = plan.steps(part).into_iter().filter(|step| *step > 0).collect();
    let last = milestones.last().copied().unwrap_or(0);
    if milestones.iter().all(|step| weights_path(out, part, *step).exists()) {
        clock.found(work(plan, part));
        return Ok(());
    }
    let pictures = match part {
        Part::Expert(cluster) | Part::BasedExpert(cluster) => &data.splits.clusters[cluster].train,
        Part::Monolith | Part::Router { .. } => &data.splits.all.train,
    };
    let snapshots_path = out.join("snapshots");
    fs::create_dir_all(&snapshots_path)?;
    let mut durable = begin(plan, part, data, out, device, &snapshots_path)?;
    let per_step = plan.training.batch as f64 * cost_of_sample(plan, part);
    clock.found(durable.trainer().step_count() as f64 * per_step);
    let (mut began, mut shown) = (Instant::now(), durable.trainer().step_count());
    let mut smoothed: Option<f32> = None;
    let pictures: Arc<dyn BatchSource + Send + Sync> = pictures.clone();
    durable.train_alone(&pictures, SNAPSHOT_EVERY, |trainer, outcome| {
        match outcome {
            Some(Outcome::Stepped(report)) => {
                smoothed = Some(smoothed.map_or(report.loss, |mean| mean + LOSS_SMOOTHING * (report.loss - mean)));
                clock.done(per_step);
            }
            Some(Outcome::WentBack(fallback)) => println!("{}: {fallback}", part.name()),
            None => {}
        }
        let step = trainer.step_count();
        let path = weights_path(out, part, step);
        // After a failed step the milestone comes by again.
        if milestones.contains(&step) && !path.exists() && !trainer.has_failed()? {
            write_whole(&path, &trainer.weights()?)?;
        }
        clock.say(|| {
            let speed =
                (step.saturating_sub(shown) * plan.training.batch as u64) as f64 / began.elapsed().as_secs_f64();
            (shown, began) = (step, Instant::now());
            let loss = smoothed.unwrap_or(f32::NAN);
            format!("{}: step {step} of {last}, loss {loss:.4}, {speed:.0} samples/s", part.name())
        });
        anyhow::Ok(if step >= last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    drop(durable);
    clock.say_now(&format!("{} is trained", part.name()));
    // Its weights are all that is needed from now on.
    for entry in fs::read_dir(&snapshots_path)? {
        let path = entry?.path();
        let of_part =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{}.", part.name())));
        if of_part {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn begin(
    plan: &Plan,
    part: Part,
    data: &Data,
    out: &Path,
    device: &Device,
    snapshots: &Path,
) -> anyhow::Result<Durable> {
    let base = match part {
        Part::BasedExpert(_) => {
            let path = weights_path(out, Part::Monolith, plan.steps(Part::Monolith)[0]);
            Some(fs::read(&path).with_context(|| format!("reading the base checkpoint {}", path.display()))?.into())
        }
        _ => None,
    };
    let setup = Setup {
        config: plan.config(part),
        settings: plan.train_settings(),
        key: plan.key(part),
        null_text: data.null.clone(),
        device: device.clone(),
        recompute: false,
        base,
    };
    Ok(Durable::begin(setup, &plan.id()?, Snapshots::new(snapshots, &part.name()), None)?)
}
