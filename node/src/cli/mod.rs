//! The command line of `paris-node`, a command per file.

mod asked;
mod bench;
mod data;
pub mod encoders;
mod eval;
mod exit;
mod export;
mod history;
mod import;
mod init;
mod interrupts;
mod invite;
mod join;
mod manifest;
mod mixture;
mod run;
mod sample;
mod status;
mod train;

use std::{ffi::OsString, io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

pub use self::exit::Exit;
use crate::{memory::keep_freed_pages, store::DataDir};

/// Trains and samples Paris, a mixture of diffusion transformers, together with strangers' machines.
///
/// The first node of a run:
///   paris-node data prepare PICTURES --out prepared
///   paris-node manifest new --data prepared --name "my run"
///   paris-node run
/// Every other:
///   paris-node join TICKET
///   paris-node run
/// Anywhere:
///   paris-node status
///   paris-node sample "a green apple" --out apple.png
#[derive(Parser)]
#[command(name = "paris-node", version, max_term_width = 110, verbatim_doc_comment, after_help = exit::table())]
struct Cli {
    /// Where this node keeps its key, its database and its blobs.
    #[arg(long, global = true, env = "PARIS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Where pretrained encoders lie, a folder each: clip, minilm, vae, mobilenet, dino, inception. The folder encoders of the data directory if not given.
    #[arg(long, global = true, env = "PARIS_ENCODERS", value_name = "DIR")]
    encoders: Option<PathBuf>,

    /// What to log, as in "info" or "paris_node=debug"; warnings and errors if not given.
    #[arg(long, global = true, env = "PARIS_LOG", value_name = "FILTER")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    #[command(subcommand)]
    Data(data::Data),
    #[command(subcommand)]
    Manifest(manifest::ManifestCommand),
    Join(join::Join),
    Invite(invite::Invite),
    Run(run::Run),
    Status(status::StatusCommand),
    History(history::HistoryCommand),
    Sample(sample::Sample),
    #[command(subcommand)]
    Mixture(mixture::MixtureCommand),
    Eval(Box<eval::Eval>),
    Export(export::Export),
    Import(import::Import),
    #[command(subcommand)]
    Train(train::TrainCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs the program with its command line, the first argument being its name.
///
/// Generic over nothing: a generic function is compiled anew in every program that calls it, and this one reaches all of the node.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    keep_freed_pages();
    let cli = Cli::parse_from(arguments);
    start_log(cli.log.as_deref());
    let dir = match data_dir(cli.data_dir) {
        Ok(dir) => dir.with_encoders(cli.encoders),
        Err(error) => return report(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Init(command) => command.run(&dir),
            Command::Data(command) => command.run(&dir),
            Command::Manifest(command) => command.run(&dir).await,
            Command::Join(command) => command.run(&dir),
            Command::Invite(command) => command.run(&dir).await,
            Command::Run(command) => command.run(dir).await,
            Command::Status(command) => command.run(&dir).await,
            Command::History(command) => command.run(&dir).await,
            Command::Sample(command) => command.run(dir).await,
            Command::Mixture(command) => command.run(&dir).await,
            Command::Eval(command) => command.run(dir).await,
            Command::Export(command) => command.run(&dir).await,
            Command::Import(command) => tokio::task::block_in_place(|| command.run(&dir)),
            Command::Train(command) => command.run(&dir),
            Command::Bench(command) => command.run(),
        }
    });
    // Whatever still runs in the background must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn data_dir(given: Option<PathBuf>) -> anyhow::Result<DataDir> {
    let root = match given {
        Some(root) => root,
        None => directories::ProjectDirs::from("", "", "paris-node")
            .ok_or_else(|| anyhow::anyhow!("this user has no home directory: say where with --data-dir"))?
            .data_dir()
            .to_owned(),
    };
    Ok(DataDir::new(root))
}

/// Logs go to stderr, quiet unless asked: what a command answers goes to stdout.
fn start_log(filter: Option<&str>) {
    const QUIET: &str = "libp2p_kad=error,noq_proto=error,noq_udp=error,libp2p_mdns=error,iroh=error,iroh_blobs=error";
    let filter = format!("{},{QUIET}", filter.unwrap_or("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
}

fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    Exit::of(error).into()
}
