//! A fixed set of seeds whose reports are kept, so that a change which makes ownership worse shows before it lands.
//!
//! `paris-testnet baseline` runs them all and compares; `--write` keeps what it found. Times of virtual clocks and counts, never of this machine.

use std::{fmt::Write, path::PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use super::{Sim, report::Report, scenario::Spread};

/// Share by which a measure may be worse than the one kept.
const TOLERANCE: f64 = 0.25;

/// Simulations of one scenario.
struct Runs {
    /// None: what each seed draws.
    scenario: Option<&'static str>,
    gossip: Option<Spread>,
    nodes: u32,
    parts: u16,
    hours: f64,
    seeds: &'static [u64],
}

const fn runs(
    scenario: &'static str,
    gossip: Option<Spread>,
    (nodes, parts, hours): (u32, u16, f64),
    seeds: &'static [u64],
) -> Runs {
    Runs { scenario: Some(scenario), gossip, nodes, parts, hours, seeds }
}

const ALL: [Runs; 9] = [
    runs("calm", None, (40, 8, 0.5), &[1, 2]),
    runs("calm", Some(Spread::Cohorts), (1000, 64, 0.5), &[1]),
    runs("churn", Some(Spread::Cohorts), (1000, 64, 1.0), &[1]),
    runs("crashes", None, (30, 8, 1.0), &[1, 2]),
    runs("exodus", None, (30, 8, 1.0), &[1]),
    runs("hops", None, (60, 8, 0.5), &[1]),
    runs("lossy", None, (30, 8, 0.5), &[1]),
    runs("partitions", None, (30, 8, 1.0), &[1]),
    Runs { scenario: None, gossip: None, nodes: 20, parts: 5, hours: 1.0, seeds: &[1, 2, 3, 4] },
];

/// Run the fixed seeds and compare with the reports that are kept
#[derive(Args, Clone, Debug)]
pub struct Baseline {
    /// Keep these reports as the new baseline
    #[arg(long)]
    pub write: bool,
    /// Where the scenarios and the baseline are
    #[arg(long, default_value = "testnet/scenarios")]
    pub folder: PathBuf,
}

impl Baseline {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let path = self.folder.join("baseline.json");
        let reports = self.reports()?;
        println!("{}", Report::HEADING);
        reports.iter().for_each(|report| println!("{report}"));
        if self.write {
            let mut text = String::from("[\n");
            for (at, report) in reports.iter().enumerate() {
                let comma = if at + 1 < reports.len() { "," } else { "" };
                writeln!(text, "{}{comma}", serde_json::to_string(report)?)?;
            }
            text.push_str("]\n");
            return std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()));
        }
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}: run from the project's root, or give --folder", path.display())
        })?;
        let kept: Vec<Report> =
            serde_json::from_str(&text).context("the baseline is of another version: --write it anew")?;
        let worse = worse(&kept, &reports);
        ensure!(
            worse.is_empty(),
            "worse than the baseline:\n{}\nIf that is meant, keep it with: paris-testnet baseline --write",
            worse.join("\n")
        );
        println!("nothing is worse than the baseline");
        Ok(())
    }

    fn reports(&self) -> anyhow::Result<Vec<Report>> {
        let mut reports = Vec::new();
        for Runs { scenario, gossip, nodes, parts, hours, seeds } in ALL {
            let scenario = scenario.map(|name| self.folder.join(name).with_extension("toml"));
            let sim = Sim { nodes, parts, hours, seed: 0, seeds: 1, scenario, gossip, json: false, trace: None };
            for seed in seeds {
                reports.push(sim.simulate(*seed).with_context(|| sim.replay(*seed))?);
            }
        }
        Ok(reports)
    }
}

/// What is worse in the reports now than in those kept, a line each.
fn worse(kept: &[Report], now: &[Report]) -> Vec<String> {
    let mut lines = Vec::new();
    if kept.len() != now.len() {
        lines.push(format!("{} reports are kept, {} were made", kept.len(), now.len()));
    }
    for (kept, now) in kept.iter().zip(now) {
        // Each with how much of it is nothing at all.
        let measures = [
            ("seconds to ownership, p99", kept.owned_p99_s, now.owned_p99_s, 2.0),
            ("seconds to takeover, p99", kept.takeover_p99_s, now.takeover_p99_s, 15.0),
            ("percent unowned", kept.unowned_percent, now.unowned_percent, 0.2),
            ("percent duplicated", kept.duplicated_percent, now.duplicated_percent, 0.2),
            ("changes an hour", kept.transfers_per_hour, now.transfers_per_hour, 4.0),
            ("messages a node and second", kept.sent_per_node_second, now.sent_per_node_second, 0.005),
            ("bytes heard a second", kept.heard_bytes_per_second, now.heard_bytes_per_second, 20.0),
            ("seconds to agreement", kept.divergence_s, now.divergence_s, 15.0),
            ("checkpoints lost", kept.checkpoints_lost as f64, now.checkpoints_lost as f64, 0.0),
            ("parts robbed", kept.robbed as f64, now.robbed as f64, 0.0),
        ];
        for (name, before, after, slack) in measures {
            if after > before * (1.0 + TOLERANCE) + slack {
                lines.push(format!("{}, seed {}: {name}: {after:.3}, was {before:.3}", now.scenario, now.seed));
            }
        }
        // Fault-free means that nothing changes, not that little does.
        if kept.scenario == "calm" && now.transfers_per_hour > 0.0 {
            lines.push(format!("calm, seed {}: {} changes an hour", now.seed, now.transfers_per_hour));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worse_is_named_and_what_is_better_is_not() {
        let kept = Report { owned_p99_s: 20.0, takeover_p99_s: 50.0, ..Report::default() };
        let better = Report { takeover_p99_s: 40.0, ..kept.clone() };
        let slower = Report { owned_p99_s: 30.0, checkpoints_lost: 1, ..kept.clone() };
        assert!(worse(std::slice::from_ref(&kept), &[better]).is_empty());
        let lines = worse(std::slice::from_ref(&kept), &[slower]);
        assert!(lines.len() == 2 && lines[0].contains("ownership") && lines[1].contains("lost"), "{lines:?}");
        assert!(!worse(&[kept], &[]).is_empty());
    }
}
