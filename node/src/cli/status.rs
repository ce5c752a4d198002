//! `paris-node status`

use anyhow::Context;
use clap::Args;
use paris_protocol::{
    checkpoint::{Checkpoint, CheckpointId},
    manifest::Manifest,
    signed::Verified,
};

use crate::{
    admission,
    api::Client,
    history::{History, summary::Summary},
    status::{CheckpointStatus, PartStatus, Status},
    store::{DataDir, Database},
};

/// Show the run as this node sees it: who owns what, how far it is, how good, and how many nodes hold it.
///
/// While the node runs, it answers itself; otherwise what it knew last is shown. `*` marks what this node owns; "held out" is the loss on pictures
/// that are never trained on, as first known and now; "here" is the step of the newest checkpoint on this machine.
///
/// Example: paris-node status --json
#[derive(Args)]
pub(super) struct StatusCommand {
    /// Print JSON, the same structure as the local API's.
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let status = match Client::of(dir) {
            Some(client) => client.status().await?,
            None => last_known(dir)?,
        };
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&status)?),
            false => print!("{status}"),
        }
        Ok(())
    }
}

/// The status of a node that does not run, from its database.
fn last_known(dir: &DataDir) -> anyhow::Result<Status> {
    let node = dir.keypair()?;
    let _lock = dir.lock()?;
    let database = Database::open(dir)?;
    let run = database.current_run()?.context("this node belongs to no run yet: paris-node join TICKET")?;
    let mut status = Status {
        version: Status::VERSION,
        node: node.id().to_string(),
        run: run.0.to_string(),
        run_name: String::new(),
        running: false,
        uptime_s: 0,
        connections: 0,
        peers: 0,
        ticket: None,
        not_admitted: None,
        parts: Vec::new(),
    };
    let Some(bytes) = database.manifest(run)? else { return Ok(status) };
    let history = History::new(dir.history_path(&run.0.to_string()));
    let manifest = std::sync::Arc::new(Manifest::read(&bytes)?);
    let held: Vec<_> = database.memory(run)?.held.into_iter().map(|(id, _)| id).collect();
    let register = database.register(run, manifest.clone())?;
    let first_losses = database.first_losses(run, manifest.parts())?;
    status.not_admitted = admission::why_not(&register, &manifest, node.id());
    status.run_name = manifest.name.clone();
    status.parts = manifest
        .parts()
        .map(|part| {
            let holds = |id: CheckpointId| held.contains(&id);
            let status = |checkpoint: &Verified<Checkpoint>| {
                CheckpointStatus::of(checkpoint, |id| usize::from(holds(id)), holds)
            };
            let known = register.checkpoints(part);
            PartStatus {
                held_out_first: first_losses.get(&part).copied(),
                held_out_loss: known.first().map(|best| best.held_out_loss),
                checkpoint: known.first().copied().map(status),
                held: known.iter().copied().find(|checkpoint| holds(checkpoint.id())).map(status),
                training: Some(Summary::of(history.tail(&part.name()).unwrap_or_default())).filter(|it| !it.is_empty()),
                ..PartStatus::of_register(&register, part, node.id())
            }
        })
        .collect();
    Ok(status)
}
