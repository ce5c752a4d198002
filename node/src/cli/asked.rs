//! The node that a command asks for checkpoints: the one that runs on the data directory, or else one that joins the run for as long as the command takes.

use std::{
    collections::{HashMap, HashSet},
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use paris_model::device::DeviceChoice;
use paris_protocol::{hash::Hash, mixture::Mixture};

use crate::{
    api::{ApiError, Client},
    runtime::{AssembledPart, Assembly, Compute, KeepError, Node, NodeConfig, SNAPSHOT_EVERY},
    sampling::{is_here, manifest_from_hex},
    store::DataDir,
};

/// Between two looks at what has arrived.
const POLL: Duration = Duration::from_millis(250);

/// The node that answers.
pub(super) enum Asked {
    /// It runs on the data directory, whoever asks.
    Running(Client),
    /// It runs in this process, for this command alone.
    Own(Box<Node>),
}

impl Asked {
    /// The node on a data directory. One that has yet to join has so long to find a peer.
    pub(super) async fn of(dir: &DataDir, wait: Duration) -> anyhow::Result<Self> {
        if let Some(client) = Client::of(dir) {
            return Ok(Self::Running(client));
        }
        let config = NodeConfig {
            dir: dir.clone(),
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 0,
            capacity: Some(0),
            mdns: false,
            memory_limit: None,
            disk_reserve: 0,
            compute: Compute { device: DeviceChoice::Cpu, recompute: false },
            snapshot_every: SNAPSHOT_EVERY,
        };
        Ok(Self::Own(Box::new(Node::start(config, tokio::time::sleep(wait)).await?)))
    }

    /// Ends what [`Asked::of`] began.
    pub(super) async fn leave(self) -> anyhow::Result<()> {
        if let Self::Own(mut node) = self {
            node.handle().stop().await;
            node.stopped().await?;
        }
        Ok(())
    }

    /// The run's best checkpoints on this machine, as far as they can be had within the wait.
    pub(super) async fn assemble(&self, wait: Duration) -> anyhow::Result<Assembly> {
        let until = Instant::now() + wait;
        let mut assembly = self.assembly().await?;
        let parts = manifest_from_hex(&assembly.manifest)?.parts().count();
        let bar = bar("fetching checkpoints {wide_bar} {pos}/{len} parts", parts as u64)?;
        // What was best at the beginning, or better, will do: owners publish faster than a slow line fetches.
        let mut wanted: HashMap<String, u64> = HashMap::new();
        let mut checked = HashSet::new();
        loop {
            believe_what_is_here(&mut assembly, &mut checked);
            let is_enough = |part: &&AssembledPart| {
                let step = *wanted.entry(part.part.clone()).or_insert(part.best_step);
                part.path.is_some() && part.step >= step
            };
            let here = assembly.parts.iter().filter(is_enough).count();
            bar.set_position(here as u64);
            if here == parts || Instant::now() >= until {
                bar.finish_and_clear();
                return Ok(assembly);
            }
            tokio::time::sleep(POLL).await;
            assembly = self.assembly().await?;
        }
    }

    /// A mixture by its name, whole. Peers may come within the wait that have what is missing.
    pub(super) async fn mixture(&self, hash: Hash, wait: Duration) -> anyhow::Result<Assembly> {
        let until = Instant::now() + wait;
        loop {
            let missing = match self.fetched(hash).await {
                Ok(mut assembly) => {
                    believe_what_is_here(&mut assembly, &mut HashSet::new());
                    match assembly.parts.iter().find(|part| part.path.is_none()) {
                        None => return Ok(assembly),
                        Some(part) => anyhow::anyhow!("the weights of {} are damaged on disk", part.part),
                    }
                }
                Err(error) if may_pass(&error) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() >= until {
                return Err(missing);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Keeps a mixture whose weights are here, and returns its name.
    pub(super) async fn keep(&self, mixture: &Mixture) -> anyhow::Result<Hash> {
        Ok(match self {
            Self::Running(client) => client.keep_mixture(mixture).await?.parse()?,
            Self::Own(node) => node.handle().keep_mixture(mixture).await?,
        })
    }

    /// The names of the mixtures that are kept.
    pub(super) async fn mixtures(&self) -> anyhow::Result<Vec<Hash>> {
        match self {
            Self::Running(client) => client.mixtures().await?.iter().map(|hash| Ok(hash.parse()?)).collect(),
            Self::Own(node) => Ok(node.handle().mixtures()),
        }
    }

    /// Lets go of a mixture; false if it was not kept.
    pub(super) async fn forget(&self, hash: Hash) -> anyhow::Result<bool> {
        Ok(match self {
            Self::Running(client) => client.drop_mixture(hash).await?,
            Self::Own(node) => node.handle().drop_mixture(hash).await?,
        })
    }

    async fn assembly(&self) -> anyhow::Result<Assembly> {
        Ok(match self {
            Self::Running(client) => client.assembly().await?,
            Self::Own(node) => node.handle().assembly().await?,
        })
    }

    async fn fetched(&self, hash: Hash) -> anyhow::Result<Assembly> {
        Ok(match self {
            Self::Running(client) => client.mixture(hash).await?,
            Self::Own(node) => node.handle().mixture(hash).await?,
        })
    }
}

/// True for what another try may cure.
fn may_pass(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ApiError::NotYet(_)))
        || matches!(error.downcast_ref(), Some(KeepError::Unavailable { .. }))
}

/// Forgets the paths of files that are not what their records say. `checked` holds the hashes of those that are.
fn believe_what_is_here(assembly: &mut Assembly, checked: &mut HashSet<String>) {
    for part in &mut assembly.parts {
        if !checked.contains(&part.weights) {
            match is_here(part) {
                true => drop(checked.insert(part.weights.clone())),
                false => part.path = None,
            }
        }
    }
}

/// A bar on stderr, if a person can see it.
pub(super) fn bar(template: &str, len: u64) -> anyhow::Result<ProgressBar> {
    match std::io::stderr().is_terminal() {
        true => Ok(ProgressBar::new(len).with_style(ProgressStyle::with_template(template)?)),
        false => Ok(ProgressBar::hidden()),
    }
}
