//! An experiment's results for people: `results.md`, and plots beside it.

use std::{fmt::Write, fs, path::Path};

use paris_model::{
    evaluation::{
        classification,
        losses::{LossMatrix, LossRow},
        table::Table,
    },
    whole_file::write_whole,
};
use paris_node::plot::{self, Curve, CurvePanel};

use super::{
    plan::{BUDGETS, Part, Plan},
    results::{Measured, Results},
};

/// Writes everything that people look at into `out`. `command` is what repeats the experiment.
pub(super) fn write(results: &Results, out: &Path, command: &str) -> anyhow::Result<()> {
    write_whole(&out.join("results.md"), markdown(results, command).as_bytes())?;
    let plots = out.join("plots");
    fs::create_dir_all(&plots)?;
    write_whole(&plots.join("distances.svg"), distances_plot(results).as_bytes())?;
    write_whole(&plots.join("agreement.svg"), agreement_plot(results).as_bytes())?;
    if let Some(last) = results.budgets.last() {
        for (name, losses) in [("losses", &last.losses), ("losses-from-base", &last.based_losses)] {
            if let Some(losses) = losses {
                write_whole(&plots.join(format!("{name}.svg")), loss_plot(losses).as_bytes())?;
            }
        }
    }
    Ok(())
}

/// The settings, then a table of strategies for each distance, losses, routers and agreement.
pub(super) fn markdown(results: &Results, command: &str) -> String {
    let mut text = String::from("# A mixture against a monolith\n\n");
    // Writing to memory does not fail.
    let _ = settings(&mut text, results, command);
    for distance in distances(results) {
        let floor = results.floor.get(&distance).map_or(String::new(), |floor| {
            let (held_out, reference) = (results.floor_pictures, results.reference);
            format!(" The floor, {held_out} held-out pictures against {reference} training pictures, is {floor:.3e}.")
        });
        let _ = writeln!(text, "\n## {distance}\n\nLower is better.{floor}\n\n{}", strategies(results, &distance));
    }
    for measured in &results.budgets {
        let _ = models(&mut text, measured);
    }
    if let Some(last) = results.budgets.last() {
        let _ = writeln!(text, "\n## Agreement with the caption's cluster\n\n{}", agreement(last));
    }
    text
}

fn settings(text: &mut String, results: &Results, command: &str) -> std::fmt::Result {
    let Plan { models, training, measuring, seed, .. } = &results.plan;
    let count = |part| results.plan.config(part).parameter_count();
    let steps = |part| results.plan.steps(part)[BUDGETS.len() - 1];
    let router = Part::Router { reads_caption: true };
    let (expert, monolith) = (steps(Part::Expert(0)), steps(Part::Monolith));
    writeln!(text, "`{command}`\n")?;
    writeln!(
        text,
        "- pictures {size}x{size}, {clusters} clusters; experts and monolith of {} parameters (width {}, depth {}, patch {}), routers of {}",
        count(Part::Monolith),
        models.width,
        models.depth,
        models.patch,
        count(router),
        size = models.size,
        clusters = models.clusters
    )?;
    writeln!(
        text,
        "- equal compute: {expert} steps an expert, {monolith} of the monolith, batch {}; {} samples an expert; routers {} steps each, not counted",
        training.batch,
        expert * training.batch as u64,
        steps(router)
    )?;
    if results.plan.base {
        writeln!(
            text,
            "- the base is the monolith after {} of the budget; experts from it have the rest, so that base and experts together cost what the others cost",
            BUDGETS[0]
        )?;
    }
    writeln!(
        text,
        "- AdamW, learning rate {} after {} steps, clip 1, EMA {}, captions dropped {}; seed {seed} of everything",
        training.learning_rate, training.warmup, training.ema, training.caption_drop
    )?;
    writeln!(
        text,
        "- {} pictures a strategy and seed, from held-out captions; Euler, {} steps, guidance {}; at the last budget {} seeds of the noise (mean ± standard deviation; \
         all draw with the same trained models), before it one; routers at their calibrated temperatures",
        measuring.pictures,
        measuring.contest.steps,
        measuring.contest.guidance,
        measuring.contest.seeds.len()
    )?;
    Ok(())
}

/// Distances that were measured.
pub(super) fn distances(results: &Results) -> Vec<String> {
    let rows = results.budgets.iter().flat_map(|measured| &measured.rows);
    let mut names: Vec<_> = rows.flat_map(|row| row.outcome.distances.keys().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A row a strategy, a column a budget.
pub(super) fn strategies(results: &Results, distance: &str) -> Table {
    let column = |measured: &Measured| format!("{} of the budget ({} samples)", measured.budget, measured.samples);
    let mut table = Table::new(["strategy".to_owned()].into_iter().chain(results.budgets.iter().map(column)));
    for strategy in names(results) {
        let cell = |measured: &Measured| {
            let row = measured.rows.iter().find(|row| row.strategy == strategy);
            row.and_then(|row| row.outcome.spread(distance)).map_or(String::new(), |spread| spread.to_string())
        };
        table.add([strategy.clone()].into_iter().chain(results.budgets.iter().map(cell)));
    }
    table
}

/// Strategies in the order of the last budget that has them.
fn names(results: &Results) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in results.budgets.iter().rev().flat_map(|measured| &measured.rows) {
        if !names.contains(&row.strategy) {
            names.push(row.strategy.clone());
        }
    }
    names
}

fn models(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(text, "\n## Held-out at {} of the budget\n", measured.budget)?;
    for (losses, what) in [(&measured.losses, "Experts"), (&measured.based_losses, "Experts from the base")] {
        if let Some(losses) = losses {
            let (wins, clusters) = (losses.diagonal_wins(), losses.clusters());
            writeln!(text, "{what}: {wins} of {clusters} are the best expert on their own cluster.\n\n{losses}")?;
        }
    }
    let routers = measured.routers.iter().map(|(name, router)| (name.as_str(), router));
    writeln!(text, "{}", classification::table(routers))
}

/// The share of pictures whose heaviest expert is the caption's cluster, at the first, middle and last step.
fn agreement(measured: &Measured) -> Table {
    let mut table = Table::new(["strategy", "first step", "middle", "last step"]);
    for row in measured.rows.iter().filter(|row| !row.outcome.agreement.is_empty()) {
        let at = |place: usize| row.outcome.agreement.get(place).map_or(String::new(), |share| format!("{share:.2}"));
        let steps = row.outcome.agreement.len();
        table.add([row.strategy.clone(), at(0), at(steps / 2), at(steps - 1)]);
    }
    table
}

/// A panel for each distance, for experts with and without base.
fn distances_plot(results: &Results) -> String {
    let mut panels = Vec::new();
    for distance in distances(results) {
        for based in [false, true] {
            let is_shown = |strategy: &String| {
                let row = results.budgets.iter().flat_map(|it| &it.rows).find(|row| row.strategy == *strategy);
                row.is_some_and(|row| row.based == based || row.strategy == "monolith")
            };
            let curve = |strategy: String| {
                let points = results.budgets.iter().filter_map(|measured| {
                    let row = measured.rows.iter().find(|row| row.strategy == strategy)?;
                    Some((measured.budget, row.outcome.spread(&distance)?.mean))
                });
                Curve { points: points.collect(), name: strategy.trim_end_matches(", from base").to_owned() }
            };
            let curves: Vec<_> = names(results).into_iter().filter(is_shown).map(curve).collect();
            if curves.len() > 1 {
                let experts = if based { "experts from the base" } else { "experts from random weights" };
                panels.push(CurvePanel {
                    title: format!("{distance}, {experts}"),
                    across: "budget".to_owned(),
                    curves,
                });
            }
        }
    }
    plot::curves("distance from the training pictures over the budget: lower is better", &panels)
}

fn agreement_plot(results: &Results) -> String {
    let rows = results.budgets.last().map_or(&[][..], |last| &last.rows);
    let curves = rows.iter().filter(|row| !row.based && !row.outcome.agreement.is_empty()).map(|row| {
        let points = row.outcome.agreement.iter().enumerate();
        Curve {
            name: row.strategy.clone(),
            points: points.map(|(step, share)| (step as f64, f64::from(*share))).collect(),
        }
    });
    let panel = CurvePanel {
        title: "share of pictures whose heaviest expert is the caption's cluster".to_owned(),
        across: "step".to_owned(),
        curves: curves.collect(),
    };
    plot::curves("routed and true cluster", &[panel])
}

fn loss_plot(losses: &LossMatrix) -> String {
    let columns: Vec<_> = (0..losses.clusters()).map(|cluster| format!("cluster {cluster}")).collect();
    let values = |row: &LossRow| row.clusters.iter().map(|loss| f64::from(loss.mean)).collect();
    let rows: Vec<_> = losses.rows.iter().map(|row| (row.model.clone(), values(row))).collect();
    plot::matrix("held-out loss: the least of each cluster is framed", &columns, &rows)
}
