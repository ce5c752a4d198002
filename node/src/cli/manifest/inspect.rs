//! `paris-node manifest inspect`

use anyhow::Context;
use clap::Args;
use paris_protocol::{
    manifest::{self, Manifest},
    ticket::Ticket,
};

use super::summary;
use crate::{
    api::Client,
    sampling::manifest_from_hex,
    store::{DataDir, Database},
};

/// Show the current run's manifest, and the ticket with which others join it.
///
/// The ticket carries addresses while the node runs; otherwise it names the run and the seeds that this node joined with.
///
/// Example: paris-node manifest inspect --json
#[derive(Args)]
pub(in crate::cli) struct Inspect {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let (manifest, ticket) = match Client::of(dir) {
            Some(client) => {
                let (manifest, status) = (client.manifest_hex().await?, client.status().await?);
                (manifest_from_hex(&manifest)?, status.ticket.unwrap_or_default())
            }
            None => stored(dir)?,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&manifest)?);
            return Ok(());
        }
        println!("run    {} {:?}", manifest.id()?.0, manifest.name);
        println!("models {}", summary(&manifest));
        if let Some(base) = manifest.additions.base {
            println!("base   {} ({} bytes), from which every expert starts", base.hash, base.bytes);
        }
        let noise: Vec<_> =
            manifest.parts().filter(|part| manifest.predicts_noise(*part)).map(|it| it.name()).collect();
        if !noise.is_empty() {
            println!("noise  is what these predict, and the other experts the velocity: {}", noise.join(", "));
        }
        for (number, cluster) in manifest.clusters.iter().enumerate() {
            let count = |shards: &[manifest::Shard]| shards.iter().map(|shard| shard.samples).sum::<u32>();
            let (train, held_out) = (count(&cluster.train), count(&cluster.held_out));
            println!("data   cluster {number}: {train} pictures to train on, {held_out} held out");
        }
        println!("ticket {ticket}");
        if ticket.parse::<Ticket>().is_ok_and(|ticket| ticket.seeds().is_empty()) {
            println!("       (it names no peer to dial: `paris-node run` prints one with which others can join)");
        }
        Ok(())
    }
}

/// Manifest and ticket of a node that does not run.
fn stored(dir: &DataDir) -> anyhow::Result<(Manifest, String)> {
    let _lock = dir.lock()?;
    let database = Database::open(dir)?;
    let run = database.current_run()?.context("this node belongs to no run yet: paris-node join TICKET")?;
    let bytes = database.manifest(run)?.context("the manifest is not here yet: `paris-node run` fetches it")?;
    let ticket = database.ticket(run)?.unwrap_or(Ticket::new(run, []));
    Ok((Manifest::read(&bytes)?, ticket.to_string()))
}
