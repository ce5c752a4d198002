//! A network of thousands of agents in virtual time: the same state machine that a node runs, with faults drawn from a seed.
//!
//! Gossip is an abstract broadcast, or goes hop by hop, or reaches whole cohorts of nodes that hear as one ([`scenario::Spread`]). Register exchanges go between
//! neighbours.
//!
//! Every run replays exactly by its seed. An all-seeing observer holds the agents to the laws at every event: nothing is signed that is not durable, no key
//! signs two claims on one term, no node's view of an owner goes back, no honest message is rejected; and, when the faults have ceased, all agree,
//! every part is trained once, no best checkpoint is lost and no liar owns anything.

pub mod baseline;
mod cohorts;
mod faults;
mod gossip;
mod hops;
mod laws;
mod ledger;
pub mod liars;
mod node;
mod queue;
pub mod random;
pub mod report;
pub mod scenario;
mod training;
pub mod tune;
mod world;

use std::{
    io::BufWriter,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use self::{
    report::Report,
    scenario::{Scenario, Spread},
    world::World,
};
use crate::{
    span::span,
    usage::{cpu_of_process, peak_mb},
};

/// The time at the end in which no fault begins, at most.
const CALM: Duration = Duration::from_secs(1200);

/// Simulate many nodes in virtual time, with faults, and check the promises of the protocol
#[derive(Args, Clone, Debug)]
pub struct Sim {
    /// Nodes, liars among them
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub nodes: u32,
    /// Parts: experts, and the router
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(2..=1024))]
    pub parts: u16,
    /// Simulated hours
    #[arg(long, default_value_t = 1.0, value_parser = span)]
    pub hours: f64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// Faults; without a file every seed draws its own
    #[arg(long)]
    pub scenario: Option<PathBuf>,
    /// How gossip travels, whatever the scenario says
    #[arg(long)]
    pub gossip: Option<Spread>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Write a line for every fault and every change of trainer, a column for every node: the parts it trains, z if suspended
    #[arg(long)]
    pub trace: Option<PathBuf>,
}

impl Sim {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        if !self.json {
            println!("{}", Report::HEADING);
        }
        let mut broken = 0;
        for seed in self.seed..self.seed.saturating_add(self.seeds) {
            let began = cpu_s();
            let mut report = match self.simulate(seed) {
                Ok(report) => report,
                // The other seeds may say something else.
                Err(error) => {
                    eprintln!("seed {seed}: {error:#}\nreplay with: {}", self.replay(seed));
                    broken += 1;
                    continue;
                }
            };
            (report.cpu_s, report.peak_mb) = (cpu_s() - began, peak_mb());
            match self.json {
                true => println!("{}", serde_json::to_string(&report)?),
                false => println!("{report}"),
            }
        }
        ensure!(broken == 0, "{broken} of {} seeds broke a law or could not be simulated", self.seeds);
        Ok(())
    }

    /// Runs one seed. An error says which law was broken, and when.
    pub fn simulate(&self, seed: u64) -> anyhow::Result<Report> {
        let seconds = (self.hours * 3600.0).max(1.0);
        let mut scenario = match &self.scenario {
            Some(path) => Scenario::read(path)?,
            None => Scenario::drawn(seed, seconds as u64).for_nodes(self.nodes),
        };
        if let Some(gossip) = self.gossip {
            scenario.gossip = gossip;
            scenario.check().context("this scenario cannot be simulated with that gossip")?;
        }
        simulate(scenario, (self.nodes, self.parts, self.hours), seed, self.trace.as_deref())
    }

    fn replay(&self, seed: u64) -> String {
        let scenario = self.scenario.as_ref().map_or(String::new(), |path| format!(" --scenario {}", path.display()));
        let gossip = self.gossip.and_then(|it| it.to_possible_value());
        let gossip = gossip.map_or(String::new(), |it| format!(" --gossip {}", it.get_name()));
        let Self { nodes, parts, hours, .. } = self;
        format!("paris-testnet sim --nodes {nodes} --parts {parts} --hours {hours} --seed {seed}{scenario}{gossip}")
    }
}

/// Simulates so many nodes and parts for so many hours.
fn simulate(
    scenario: Scenario,
    (nodes, parts, hours): (u32, u16, f64),
    seed: u64,
    trace: Option<&Path>,
) -> anyhow::Result<Report> {
    let end = Duration::from_secs_f64((hours * 3600.0).max(1.0));
    let mut world = World::new(scenario, nodes, parts, seed, end)?;
    if let Some(path) = trace {
        let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        world.trace = Some(Box::new(BufWriter::new(file)));
    }
    // Half of the time or more has faults; then there is time to come to rest, and the laws of rest are checked.
    let calm = CALM.min(end / 2);
    world.plan_faults(end - calm);
    let report = Report { nodes, parts, seed, ..Report::default() };
    world.run_until(end).with_context(|| format!("a law is broken at {:?} of virtual time", world.now))?;
    world.close(report, calm == CALM)
}

/// CPU time of this process so far, seconds; 0 where the system does not say.
fn cpu_s() -> f64 {
    cpu_of_process(std::process::id()).unwrap_or(0.0)
}
