//! `paris-testnet`: a network of real nodes on this machine.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use paris_node::memory::Counting;
use paris_testnet::{
    bench::Bench,
    demo::Demo,
    experiment::Experiment,
    process::NODE,
    sim::{Sim, baseline::Baseline, tune::Tune},
};

/// The same allocator as the node's: child processes are this program.
#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);

/// Many Paris nodes on one machine, each a process of its own.
#[derive(Parser)]
#[command(name = "paris-testnet", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(Demo),
    Experiment(Box<Experiment>),
    Sim(Sim),
    Baseline(Baseline),
    Tune(Tune),
    #[command(subcommand)]
    Bench(Bench),
}

fn main() -> ExitCode {
    // A child of this program is a node: it takes the node's command line, and runs the node's code.
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == NODE) {
        arguments.remove(1);
        return paris_node::cli::main(arguments);
    }
    let outcome = match Cli::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Experiment(experiment) => experiment.run(),
        Command::Sim(sim) => sim.run(),
        Command::Baseline(baseline) => baseline.run(),
        Command::Tune(tune) => tune.run(),
        Command::Bench(bench) => bench.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
