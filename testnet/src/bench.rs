//! What the network costs the training: a node that trains, gossips, publishes and serves, measured by the CPU time of its threads.
//!
//! CPU time, not throughput: on a machine that many processes share, half a percent of wall time drowns in noise, and what other threads consume is
//! just what the trainer would lose if it had the cores to itself.

use std::{
    collections::BTreeMap,
    env,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use paris_node::status::{PartStatus, Status};
use serde::{Deserialize, Serialize};

use crate::{
    process::{BUNDLED_PICTURES, NodeProcess},
    span::span,
    usage::{cpu_of_process, cpu_of_threads},
};

/// Between two looks at the node's threads; one that lives shorter is only seen in the sum.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the run may take to come to the state that is measured.
const PATIENCE: Duration = Duration::from_secs(300);
/// The part that is trained.
const PART: &str = "expert-0";
/// Threads that train, draw samples ahead and write snapshots, by the beginnings of their names: a node without a network has them too.
const TRAINER_THREADS: [&str; 4] = ["train-", "compute-", "draw-ahead", "snapshot"];
/// Samples a step.
const BATCH: &str = "32";

/// Measure what a network of real nodes costs.
#[derive(Subcommand)]
pub enum Bench {
    /// Compare the CPU time of everything but the trainer with the trainer's, while a node publishes to its peers.
    Network(Network),
}

/// One node trains an expert and publishes every checkpoint: all its peers fetch the weights, and the replicas among them the resumable state. Linux only.
///
/// The trainer should have a core to itself: what the network costs goes with time, so a trainer that waits for a core makes it look dear. How much
/// of a core it had is printed.
///
/// Example: paris-testnet bench network --shape 192x6 --minutes 3 --json
#[derive(Args)]
pub struct Network {
    /// The expert.
    #[arg(long, value_enum, default_value = "192x6")]
    shape: Shape,

    /// Peers that keep every checkpoint's weights.
    #[arg(long, default_value_t = 8)]
    peers: usize,

    /// Peers of these that keep its resumable state too, which is three times as large.
    #[arg(long, default_value_t = 2)]
    replicas: usize,

    /// Minutes to measure.
    #[arg(long, default_value_t = 3.0, value_parser = span)]
    minutes: f64,

    /// Between two checkpoints, milliseconds; as `manifest new` has it if not given.
    #[arg(long)]
    checkpoint_ms: Option<u32>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Width and depth of the expert that is trained.
#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// The demo's: width 96, three blocks.
    #[value(name = "96x3")]
    Demo,
    /// The default of `manifest new`: width 192, six blocks.
    #[value(name = "192x6")]
    Default,
}

impl Shape {
    /// As `manifest new` and `bench train` take it.
    fn arguments(self) -> [&'static str; 6] {
        match self {
            Self::Demo => ["--width", "96", "--depth", "3", "--heads", "4"],
            Self::Default => ["--width", "192", "--depth", "6", "--heads", "6"],
        }
    }
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    /// Peers that kept every checkpoint's weights.
    peers: usize,
    /// Those of them that kept its state too.
    replicas: usize,
    /// Length of the measurement, seconds.
    wall_s: f64,
    /// Optimiser steps in it.
    steps: u64,
    /// Checkpoints published in it.
    checkpoints: usize,
    /// The most nodes that held one of them, the trainer included.
    holders: usize,
    /// CPU time of the trainer's threads, seconds.
    trainer_cpu_s: f64,
    /// CPU time of all other threads of the node, seconds.
    other_cpu_s: f64,
    /// The second over the first.
    network_share: f64,
    /// CPU time of the trainer over wall time: 1 if it had a core to itself.
    trainer_cores: f64,
    /// CPU time of all other threads over wall time.
    other_cores: f64,
    /// CPU time of the trainer a step, held-out measurements and checkpoints included, milliseconds.
    trainer_cpu_ms_a_step: f64,
    /// Median CPU time of a step without any network, by `bench train`, milliseconds.
    bare_cpu_ms_a_step: f64,
    /// CPU time by the names of threads, seconds, as far as it was seen.
    threads: BTreeMap<String, f64>,
}

impl Bench {
    /// Runs the measurement.
    pub fn run(self) -> anyhow::Result<()> {
        let Self::Network(command) = self;
        command.run()
    }
}

impl Network {
    fn run(self) -> anyhow::Result<()> {
        ensure!(self.peers > 0, "--peers must be above 0");
        let folder = tempfile::Builder::new().prefix("paris-bench-").tempdir()?;
        let program = env::current_exe()?;
        let mut trainer = NodeProcess::new(&program, folder.path(), "trainer")?;
        let mut peers = (0..self.peers)
            .map(|number| NodeProcess::new(&program, folder.path(), &format!("peer-{number}")))
            .collect::<anyhow::Result<Vec<_>>>()?;
        self.start(&mut trainer, &mut peers, folder.path())?;
        let report = self.measure(&mut trainer)?;
        drop(peers);
        trainer.kill()?;
        self.print(&Report { bare_cpu_ms_a_step: self.bare(&trainer)?, ..report })
    }

    /// Brings the run to where every peer holds the trainer's checkpoint.
    fn start(&self, trainer: &mut NodeProcess, peers: &mut [NodeProcess], root: &Path) -> anyhow::Result<()> {
        let prepared = root.join("prepared");
        let prepared = prepared.to_str().context("the temporary folder has a name that is not UTF-8")?;
        trainer.answer(["data", "prepare", BUNDLED_PICTURES, "--out", prepared, "--size", "16", "--clusters", "1"])?;
        let (replicas, checkpoint_ms) = (self.replicas.to_string(), self.checkpoint_ms.map(|it| it.to_string()));
        let mut new = vec!["manifest", "new", "--data", prepared, "--batch", BATCH, "--replicas", &replicas];
        new.extend(checkpoint_ms.iter().flat_map(|it| ["--checkpoint-ms", it]));
        new.extend(self.shape.arguments());
        trainer.answer(new)?;
        trainer.run(&["--capacity", "1"])?;
        let trains = |status: &Status| expert(status).is_some_and(|it| it.is_mine && it.step > Some(0));
        let status = trainer.wait_until("it trains", PATIENCE, trains)?;
        let ticket = status.ticket.context("a running node has a ticket")?;
        for peer in peers.iter_mut() {
            peer.answer(["join", &ticket])?;
            peer.run(&["--capacity", "1"])?;
        }
        for peer in peers.iter_mut() {
            peer.wait_until("it runs", PATIENCE, |_| true)?;
            peer.mirror()?;
        }
        eprintln!("waiting until every peer holds a checkpoint");
        let everyone = self.peers + 1;
        trainer.wait_until("every peer holds its checkpoint", PATIENCE, |status| holders(status) == everyone)?;
        Ok(())
    }

    fn measure(&self, trainer: &mut NodeProcess) -> anyhow::Result<Report> {
        let process = trainer.id().context("the trainer runs")?;
        let steps = |status: &Status| expert(status).and_then(|part| part.step).unwrap_or(0);
        let look = |trainer: &NodeProcess| trainer.status().context("the trainer answers");
        let started = Instant::now();
        let end = started + Duration::from_secs_f64(60.0 * self.minutes);
        let (first, cpu_before, before) = (look(trainer)?, cpu_of_process(process)?, cpu_of_threads(process)?);
        let (mut seen, mut published, mut most) = (before.clone(), Vec::new(), 0);
        eprintln!("measuring for {} minutes", self.minutes);
        while Instant::now() < end {
            thread::sleep(LOOK_EVERY);
            seen.extend(cpu_of_threads(process)?);
            let status = look(trainer)?;
            most = most.max(holders(&status));
            let id = expert(&status).and_then(|part| part.checkpoint.as_ref()).map(|it| it.id.clone());
            published.extend(id.filter(|id| !published.contains(id)));
        }
        let wall_s = started.elapsed().as_secs_f64();
        let (last, total) = (look(trainer)?, cpu_of_process(process)? - cpu_before);
        seen.extend(cpu_of_threads(process)?);
        let mut threads = BTreeMap::new();
        for (thread, (name, cpu)) in &seen {
            let earlier = before.get(thread).map_or(0.0, |(_, cpu)| *cpu);
            *threads.entry(name.clone()).or_default() += cpu - earlier;
        }
        let trains = |name: &str| TRAINER_THREADS.iter().any(|prefix| name.starts_with(prefix));
        let trainer_cpu_s: f64 = threads.iter().filter(|(name, _)| trains(name)).map(|(_, cpu)| cpu).sum();
        let steps = steps(&last).saturating_sub(steps(&first));
        ensure!(trainer_cpu_s > 0.0 && steps > 0, "nothing was trained meanwhile: measure for more --minutes");
        let other_cpu_s = (total - trainer_cpu_s).max(0.0);
        Ok(Report {
            peers: self.peers,
            replicas: self.replicas,
            wall_s,
            steps,
            checkpoints: published.len(),
            holders: most,
            trainer_cpu_s,
            other_cpu_s,
            network_share: other_cpu_s / trainer_cpu_s,
            trainer_cores: trainer_cpu_s / wall_s,
            other_cores: other_cpu_s / wall_s,
            trainer_cpu_ms_a_step: 1e3 * trainer_cpu_s / steps as f64,
            bare_cpu_ms_a_step: f64::NAN,
            threads,
        })
    }

    /// CPU time of a step in a process that has no network, and takes no snapshots.
    fn bare(&self, program: &NodeProcess) -> anyhow::Result<f64> {
        #[derive(Deserialize)]
        struct Measured {
            cpu_ms: f64,
        }
        let mut command = vec!["bench", "train", "--json", "--threads", "1", "--steps", "30", "--batch", BATCH];
        command.extend(["--channels", "3", "--size", "16", "--text-tokens", "8", "--text-width", "64"]);
        command.extend(self.shape.arguments());
        let measured: Measured = serde_json::from_str(&program.answer(command)?)?;
        Ok(measured.cpu_ms)
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(report)?);
            return Ok(());
        }
        let Report { wall_s, steps, checkpoints, holders, trainer_cpu_s, other_cpu_s, network_share, .. } = report;
        println!("{steps} steps in {wall_s:.0} s; {checkpoints} checkpoints, held by up to {holders} nodes");
        println!("{:<18} {:>10}", "thread", "CPU s");
        for (name, cpu) in &report.threads {
            println!("{name:<18} {cpu:>10.3}");
        }
        println!("trainer {trainer_cpu_s:.2} s, everything else {other_cpu_s:.2} s: {:.2} %", 100.0 * network_share);
        println!("the trainer had {:.2} cores, everything else {:.3}", report.trainer_cores, report.other_cores);
        let (with, bare) = (report.trainer_cpu_ms_a_step, report.bare_cpu_ms_a_step);
        println!("a step takes {with:.1} ms of CPU, checkpoints included, and {bare:.1} ms without a network");
        Ok(())
    }
}

fn expert(status: &Status) -> Option<&PartStatus> {
    status.parts.iter().find(|part| part.part == PART)
}

/// Nodes that hold the expert's best checkpoint.
fn holders(status: &Status) -> usize {
    expert(status).and_then(|part| part.checkpoint.as_ref()).map_or(0, |checkpoint| checkpoint.holders)
}
