//! `paris-node mixture`

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use paris_protocol::hash::Hash;

use super::asked::Asked;
use crate::{
    runtime::{AssembledPart, Assembly},
    sampling::Assembled,
    store::DataDir,
};

/// Seconds in which a node that does not run must have its run's manifest, to let go of something.
const JOIN_WAIT_S: u64 = 10;

/// Hold a mixture still, so that pictures can be drawn with it again anywhere.
///
/// Which checkpoints are best changes while a run trains. A mixture names some of them for good; its name is a hash. A node that keeps one
/// keeps its weights, however old they become, and serves them to whoever draws with `paris-node sample --mixture HASH`.
#[derive(Subcommand)]
pub(super) enum MixtureCommand {
    Assemble(Assemble),
    Show(Show),
    Drop(Forget),
}

/// Take the best checkpoint of every part, keep them, and print the mixture's hash.
///
/// Example: paris-node mixture assemble
#[derive(Args)]
pub(super) struct Assemble {
    /// Seconds to wait for checkpoints before taking those that are here.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// Show what a mixture consists of, fetching and keeping it if it is not here; without a hash, list the mixtures that are kept.
///
/// Example: paris-node mixture show 5f0c2c...
#[derive(Args)]
pub(super) struct Show {
    /// The mixture's hash; all that are kept if not given.
    hash: Option<Hash>,
    /// Seconds to wait for a peer that has it.
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Let go of a mixture: its weights make room unless they are needed for something else.
///
/// Example: paris-node mixture drop 5f0c2c...
#[derive(Args)]
pub(super) struct Forget {
    /// The mixture's hash.
    hash: Hash,
}

impl MixtureCommand {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let wait = Duration::from_secs(match &self {
            Self::Assemble(command) => command.wait,
            Self::Show(command) => command.wait,
            Self::Drop(_) => JOIN_WAIT_S,
        });
        let asked = Asked::of(dir, wait).await?;
        let outcome = match self {
            Self::Assemble(_) => assemble(&asked, wait).await,
            Self::Show(Show { hash: Some(hash), json, .. }) => show(&asked.mixture(hash, wait).await?, json),
            Self::Show(Show { hash: None, json, .. }) => list(&asked.mixtures().await?, json),
            Self::Drop(command) => forget(&asked, command.hash).await,
        };
        asked.leave().await?;
        outcome
    }
}

async fn assemble(asked: &Asked, wait: Duration) -> anyhow::Result<()> {
    let assembled = Assembled::of(&asked.assemble(wait).await?)?;
    let hash = asked.keep(assembled.record()).await?;
    eprintln!("{}", assembled.describe());
    println!("{hash}");
    Ok(())
}

fn show(mixture: &Assembly, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(mixture)?);
        return Ok(());
    }
    println!("run {}", mixture.run);
    println!("{:<12} {:>8} {:<12} weights", "part", "step", "author");
    for AssembledPart { part, step, author, weights, .. } in &mixture.parts {
        println!("{part:<12} {step:>8} {author:<12} {weights}");
    }
    Ok(())
}

fn list(mixtures: &[Hash], json: bool) -> anyhow::Result<()> {
    if json {
        let names: Vec<_> = mixtures.iter().map(Hash::to_string).collect();
        println!("{}", serde_json::to_string_pretty(&names)?);
        return Ok(());
    }
    if mixtures.is_empty() {
        println!("no mixture is kept here: `paris-node mixture assemble` keeps the best of now");
    }
    mixtures.iter().for_each(|hash| println!("{hash}"));
    Ok(())
}

async fn forget(asked: &Asked, hash: Hash) -> anyhow::Result<()> {
    if !asked.forget(hash).await? {
        bail!("mixture {hash} is not kept here: `paris-node mixture show` lists those that are");
    }
    println!("mixture {hash} is kept no more");
    Ok(())
}
