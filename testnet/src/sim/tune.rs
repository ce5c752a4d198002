//! How the times of a run are chosen: the same faults under several settings, side by side.
//!
//! `paris-testnet tune` varies one time after the other from the defaults and prints what each costs. Short times find a dead owner sooner and cost messages, and
//! where they are too short for the network owners that live are taken for dead. What is looked at is said in `docs/ownership.md`.

use anyhow::Context;
use clap::Args;

use super::{
    report::Report,
    scenario::{Scenario, Times},
    simulate,
};
use crate::span::span;

/// Find out what a run's times cost: vary each, with nodes that crash on a network that loses and delays messages
#[derive(Args, Clone, Debug)]
pub struct Tune {
    /// Nodes
    #[arg(long, default_value_t = 40)]
    pub nodes: u32,
    /// Parts
    #[arg(long, default_value_t = 12)]
    pub parts: u16,
    /// Simulated hours
    #[arg(long, default_value_t = 1.0, value_parser = span)]
    pub hours: f64,
    /// Seeds of each setting
    #[arg(long, default_value_t = 2)]
    pub seeds: u64,
}

/// What many seeds of one setting came to.
struct Row {
    times: Times,
    takeover_p99_s: f64,
    owned_p99_s: f64,
    unowned_percent: f64,
    duplicated_percent: f64,
    sent_per_node_second: f64,
}

impl Tune {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        println!(
            "| heartbeat, s | ttl, s | intent, s | rank delay, s | owned p99, s | takeover p99, s | unowned, % | duplicated, % | messages/node/s |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for times in settings() {
            let Row { times, takeover_p99_s, owned_p99_s, unowned_percent, duplicated_percent, sent_per_node_second } =
                self.measure(times)?;
            let [heartbeat, ttl, intent, rank] =
                [times.heartbeat_ms, times.ttl_ms, times.intent_ms, times.rank_delay_ms]
                    .map(|ms| f64::from(ms) / 1000.0);
            println!(
                "| {heartbeat} | {ttl} | {intent} | {rank} | {owned_p99_s:.1} | {takeover_p99_s:.1} | {unowned_percent:.3} | {duplicated_percent:.3} | {sent_per_node_second:.3} |"
            );
        }
        Ok(())
    }

    /// The worst takeover and start of all seeds, and the mean of the rest.
    fn measure(&self, times: Times) -> anyhow::Result<Row> {
        let mut row = Row {
            times,
            takeover_p99_s: 0.0,
            owned_p99_s: 0.0,
            unowned_percent: 0.0,
            duplicated_percent: 0.0,
            sent_per_node_second: 0.0,
        };
        for seed in 0..self.seeds {
            let report = self.simulate(times, seed).with_context(|| format!("{times:?}, seed {seed}"))?;
            row.takeover_p99_s = row.takeover_p99_s.max(report.takeover_p99_s);
            row.owned_p99_s = row.owned_p99_s.max(report.owned_p99_s);
            let share = self.seeds as f64;
            row.unowned_percent += report.unowned_percent / share;
            row.duplicated_percent += report.duplicated_percent / share;
            row.sent_per_node_second += report.sent_per_node_second / share;
        }
        Ok(row)
    }

    fn simulate(&self, times: Times, seed: u64) -> anyhow::Result<Report> {
        let scenario = Scenario {
            name: "tuning".into(),
            kills_per_hour: 0.5,
            suspensions_per_hour: 0.2,
            loss: 0.1,
            late: 0.02,
            late_ms: [1000, 10_000],
            times,
            ..Scenario::default()
        };
        simulate(scenario, (self.nodes, self.parts, self.hours), seed, None)
    }
}

/// The defaults, and each time shorter and longer.
fn settings() -> Vec<Times> {
    let usual = Times::default();
    let varied = |vary: fn(&mut Times, u32), values: &[u32]| -> Vec<Times> {
        let of = |value: &u32| {
            let mut times = usual;
            vary(&mut times, *value);
            times
        };
        values.iter().map(of).collect()
    };
    let mut all = vec![usual];
    // The ttl stays four heartbeats: of so many one may be lost, and another late.
    all.extend(varied(|it, ms| (it.heartbeat_ms, it.ttl_ms) = (ms, 4 * ms), &[2_500, 5_000, 20_000]));
    all.extend(varied(|it, ms| it.ttl_ms = ms, &[30_000, 60_000, 100_000]));
    all.extend(varied(|it, ms| it.intent_ms = ms, &[500, 5_000]));
    all.extend(varied(|it, ms| it.rank_delay_ms = ms, &[250, 4_000]));
    all
}
