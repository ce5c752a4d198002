//! `paris-node run`

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, builder::FalseyValueParser, value_parser};
use paris_model::device::DeviceChoice;

use super::interrupts::Interrupts;
use crate::{
    api,
    runtime::{Compute, Node, NodeConfig, NodeError, SNAPSHOT_EVERY},
    status::Status,
    store::DataDir,
};

/// Run the node: find peers, claim parts nobody owns, train them, publish checkpoints, serve the others.
///
/// The first Ctrl-C finishes the steps under way, publishes, releases the parts and stops within half a minute; the second stops at once. Nothing
/// is lost either way: the node goes on from its last snapshot, a minute old at most, when it is started again, or another node does from its
/// last checkpoint.
///
/// Examples: paris-node run --capacity 2 trains two parts at most; paris-node run --data-dir second --port 0 is a second node on this machine.
#[derive(Args)]
pub(super) struct Run {
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), env = "PARIS_HOST")]
    host: IpAddr,

    /// The port to listen on, UDP and TCP, with the UDP port above it for blobs; 0 lets the system choose. Peers behind a router need
    /// both forwarded if they are to be dialled.
    #[arg(long, default_value_t = 4801, env = "PARIS_PORT", value_parser = value_parser!(u16).range(..65_535))]
    port: u16,

    /// Parts to own at once, each trained on a thread of its own; 0 keeps and serves checkpoints only. All parts of the run if not given:
    /// what others can take is handed over to them.
    #[arg(long, env = "PARIS_CAPACITY")]
    capacity: Option<u16>,

    /// Find peers on the local network by multicast, beside the ticket's.
    #[arg(long)]
    mdns: bool,

    /// MiB of memory that training may take, over all parts; most of what is available if not given. With less, samples go through the model in
    /// smaller groups, which learns the same and takes a little longer.
    #[arg(long, env = "PARIS_MEMORY", value_name = "MIB")]
    memory: Option<u64>,

    /// MiB of the disk to leave free: with less, and less than the next checkpoints take, the node hands its parts over and stops.
    #[arg(long, default_value_t = 256, env = "PARIS_DISK_RESERVE", value_name = "MIB")]
    disk_reserve: u64,

    /// Where to train: auto, cpu or cuda:N. auto takes the first CUDA device if this program was built for it, else the CPU.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,

    /// Train in less memory, by computing what the way back reads a second time instead of keeping it. Learns the same, to the bit, and takes about a
    /// third longer.
    #[arg(long, env = "PARIS_RECOMPUTE", value_parser = FalseyValueParser::new())]
    recompute: bool,

    /// Seconds between two snapshots of a part in training: what a killed node has to do again at most.
    #[arg(long, default_value_t = SNAPSHOT_EVERY.as_secs(), env = "PARIS_SNAPSHOT_EVERY", value_name = "SECONDS")]
    snapshot_every: u64,
}

impl Run {
    pub(super) async fn run(self, dir: DataDir) -> anyhow::Result<()> {
        let config = NodeConfig {
            dir: dir.clone(),
            host: self.host,
            port: self.port,
            capacity: self.capacity,
            mdns: self.mdns,
            memory_limit: self.memory.map(|mib| mib.saturating_mul(1 << 20)),
            disk_reserve: self.disk_reserve.saturating_mul(1 << 20),
            compute: Compute { device: self.device, recompute: self.recompute },
            snapshot_every: Duration::from_secs(self.snapshot_every),
        };
        // Named, so that an operator sees what computes and what communicates.
        rayon::ThreadPoolBuilder::new()
            .thread_name(|number| format!("compute-{number}"))
            .build_global()
            .context("starting the threads that compute")?;
        // One for the whole command: who asks to stop while the node still starts is heard as soon as it has.
        let mut interrupts = Interrupts::listen().context("listening for Ctrl-C")?;
        let mut node = match Node::start(config, interrupts.next()).await {
            Err(NodeError::NoManifest { .. }) => return Ok(()),
            node => node?,
        };
        let handle = node.handle().clone();
        api::serve(&dir, handle.clone()).await?;
        println!("node {} runs; `paris-node status` shows what it does, Ctrl-C stops it", dir.keypair()?.id());
        tokio::time::sleep(Duration::from_millis(300)).await;
        // A node that has stopped already says why below.
        if let Ok(Status { ticket: Some(ticket), .. }) = handle.status().await {
            println!("to join from another machine: paris-node join {ticket}");
        }
        let stopped = tokio::select! {
            stopped = node.stopped() => stopped,
            () = interrupts.next() => {
                eprintln!("stopping: finishing steps, publishing, releasing; once more to stop at once");
                handle.stop().await;
                tokio::select! {
                    stopped = node.stopped() => stopped,
                    () = interrupts.next() => Ok(()),
                }
            }
        };
        api::close(&dir);
        Ok(stopped?)
    }
}
