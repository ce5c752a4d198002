//! A running node: the agent's driver, its trainers and its blobs.

mod addresses;
mod blob_work;
mod driver;
mod fit;
mod keeping;
mod manifest;
mod mixtures;
pub mod recipe;
mod reconcile;
pub(crate) mod tags;
#[cfg(test)]
mod testing;
mod trainer;

use std::{net::IpAddr, panic::resume_unwind, path::PathBuf, sync::Arc, time::Duration};

use paris_model::{
    config::PartConfig,
    device::DeviceError,
    text::{OwnThreadText, TextEncoder},
};
use paris_protocol::{
    agent::{Agent, InviteError, Mirror, Settings},
    checkpoint::{Checkpoint, CheckpointId},
    identity::NodeId,
    manifest::{Manifest, ManifestError, RunId},
    signed::Verified,
    ticket::Ticket,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

pub use self::keeping::SNAPSHOT_EVERY;
pub use self::mixtures::KeepError;
pub use self::trainer::Compute;
use self::{
    blob_work::{BlobWork, size_limits},
    driver::Driver,
    keeping::{Keeping, Places},
};
use crate::{
    blobs::{self, Blobs, BlobsConfig, BlobsError},
    encoders::{self, EncoderError},
    history::History,
    memory::Memory,
    network::{Network, NetworkConfig, NetworkError},
    status::Status,
    store::{DataDir, Database, DatabaseError, DirLock, DirectoryError, free_bytes},
};

/// Calls that may wait for the driver at once.
const CALLS_MAX: usize = 64;
/// How long a node that starts waits for the data directory: a command may have it for a moment, another node has it for good.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its data directory.
    pub dir: DataDir,
    /// The address to listen on.
    pub host: IpAddr,
    /// The libp2p port, UDP and TCP; blobs take the UDP port above it, so it is not the last. 0 lets the system choose both.
    pub port: u16,
    /// Parts to own at once; none for as many as the run has; 0 only watches.
    pub capacity: Option<u16>,
    /// Find peers on the local network.
    pub mdns: bool,
    /// Bytes of memory that training may take; none for most of what is available.
    pub memory_limit: Option<u64>,
    /// Bytes of the disk that are left free: below it and the room that the next checkpoints take, the node stops.
    pub disk_reserve: u64,
    /// How its parts are trained.
    pub compute: Compute,
    /// Between two snapshots of a part in training.
    pub snapshot_every: Duration,
}

/// A node that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The device to train on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The gossip network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The blob store or its endpoint.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// An encoder of the run.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The thread that encodes captions.
    #[error("no thread to encode captions: {0}. The machine has too many")]
    EncoderThread(std::io::Error),
    /// The run's manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest reads, but asks for a model that cannot be.
    #[error(
        "the run's manifest asks for a model of {part} that cannot be built: {reason}. Whoever made the run must make another"
    )]
    Model {
        /// The part.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody delivered the manifest in time.
    #[error(
        "nothing is known of run {run} here yet, and none of the {seeds} peers that its ticket names answers: is anyone of the run online, and can \
         this machine reach them? A fresh ticket from a running node (`paris-node status`) names peers that are there now"
    )]
    NoManifest {
        /// The run.
        run: RunId,
        /// Peers that the ticket names.
        seeds: usize,
    },
    /// Too little room to go on.
    #[error(
        "the disk of {path} has {} MiB free, and {} MiB are needed for the next checkpoints and the reserve: make room and start the node again. \
         Nothing is lost: its parts were released, and go on from their last checkpoints",
        .free >> 20,
        (.needed >> 20) + 1
    )]
    DiskFull {
        /// The data directory.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// No run was joined.
    #[error("{0} belongs to no run yet: `paris-node join TICKET`, or `paris-node manifest new` for a run of your own")]
    NoRun(PathBuf),
    /// The protocol says that going on would harm the run.
    #[error(transparent)]
    Halt(#[from] paris_protocol::agent::Halt),
    /// The driver is gone.
    #[error("the node has stopped")]
    Stopped,
}

/// Checkpoints to draw with, one a part: those of a mixture that was asked for, or else the best of every part that has one (the best that is here
/// while that one is being fetched).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assembly {
    /// The run's id.
    pub run: String,
    /// The manifest's bytes, in hexadecimal: whoever samples needs the shapes.
    pub manifest: String,
    /// The mixture of these checkpoints: its wire form, in hexadecimal.
    pub mixture: String,
    /// Parts with a checkpoint.
    pub parts: Vec<AssembledPart>,
}

/// A part of a mixture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AssembledPart {
    /// `expert-3` or `router`.
    pub part: String,
    /// Optimiser steps.
    pub step: u64,
    /// Those of the best checkpoint known.
    pub best_step: u64,
    /// Who trained it, short.
    pub author: String,
    /// BLAKE3 of the weights, in hexadecimal.
    pub weights: String,
    /// Where the weights lie on this machine; none while they are being fetched.
    pub path: Option<PathBuf>,
}

impl AssembledPart {
    /// A checkpoint whose weights have not been exported yet.
    fn of(checkpoint: &Verified<Checkpoint>, best_step: u64) -> Self {
        Self {
            part: checkpoint.part.name(),
            step: checkpoint.step,
            best_step,
            author: checkpoint.author().to_string(),
            weights: checkpoint.weights.hash.to_string(),
            path: None,
        }
    }
}

/// What the API and the commands ask of the driver.
pub(crate) enum Call {
    Status(oneshot::Sender<Status>),
    Assembly(oneshot::Sender<Assembly>),
    /// True if the key was not admitted before.
    Invite(NodeId, oneshot::Sender<Result<bool, InviteError>>),
    /// Live peers, those that say they hold the checkpoint first.
    Holders(Option<CheckpointId>, oneshot::Sender<Vec<NodeId>>),
    Stop,
}

/// Talks to a running node; cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    calls: mpsc::Sender<Call>,
    work: BlobWork,
    history: History,
}

impl NodeHandle {
    /// The node's view of the run.
    pub async fn status(&self) -> Result<Status, NodeError> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Status(answer)).await.map_err(|_| NodeError::Stopped)?;
        answered.await.map_err(|_| NodeError::Stopped)
    }

    /// The run's manifest, as its bytes in hexadecimal.
    pub fn manifest_hex(&self) -> String {
        self.work.manifest_hex()
    }

    /// How the training of the run's parts went on this machine.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Keeps the weights of every part from now on, and says which are here. Ask again while some are being fetched.
    pub async fn assembly(&self) -> Result<Assembly, NodeError> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Assembly(answer)).await.map_err(|_| NodeError::Stopped)?;
        let mut assembly = answered.await.map_err(|_| NodeError::Stopped)?;
        self.work.export_all(&mut assembly.parts).await;
        Ok(assembly)
    }

    /// Lets a key own parts, in a run by invitation whose organiser this node is; false if it may already.
    pub async fn invite(&self, node: NodeId) -> Result<Result<bool, InviteError>, NodeError> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Invite(node, answer)).await.map_err(|_| NodeError::Stopped)?;
        answered.await.map_err(|_| NodeError::Stopped)
    }

    /// Asks the node to finish its steps, publish, release its parts and stop.
    pub async fn stop(&self) {
        // A driver that is gone has stopped already.
        let _ = self.calls.send(Call::Stop).await;
    }
}

/// A node in this process.
pub struct Node {
    handle: NodeHandle,
    driver: JoinHandle<Result<(), NodeError>>,
    run: RunId,
    _lock: DirLock,
}

impl Node {
    /// Starts a node on its data directory's current run. The manifest is fetched from the ticket's seeds if it is not here yet, as long as
    /// `give_up` has not come: an unreachable seed alone is no reason to.
    pub async fn start(config: NodeConfig, give_up: impl Future<Output = ()>) -> Result<Self, NodeError> {
        if config.capacity != Some(0) {
            // A device that is not to be had is said now, not when a part is to be trained.
            config.compute.device.open_to_train()?;
        }
        let lock = config.dir.lock_within(LOCK_PATIENCE).await?;
        let secret = config.dir.secret()?;
        let database = Database::open(&config.dir)?;
        let run = database.current_run()?.ok_or_else(|| NodeError::NoRun(config.dir.root().to_owned()))?;
        let ticket = database.ticket(run)?.unwrap_or(Ticket::new(run, []));

        let blob_port = if config.port == 0 { 0 } else { config.port + 1 };
        let blobs_config = BlobsConfig {
            bind: vec![(config.host, blob_port).into()],
            ..BlobsConfig::new(secret, config.dir.blobs_path())
        };
        let blobs = Blobs::start(blobs_config).await?;
        let started = Self::start_with(config, secret, database, ticket, blobs.clone(), give_up).await;
        match started {
            Ok((handle, driver)) => Ok(Self { handle, driver, run, _lock: lock }),
            Err(error) => {
                blobs.shutdown().await;
                Err(error)
            }
        }
    }

    /// The rest of the start, when the blob store is open and must be closed should anything fail.
    async fn start_with(
        config: NodeConfig,
        secret: [u8; 32],
        database: Database,
        ticket: Ticket,
        blobs: Blobs,
        give_up: impl Future<Output = ()>,
    ) -> Result<(NodeHandle, JoinHandle<Result<(), NodeError>>), NodeError> {
        let run = ticket.run();
        for seed in ticket.seeds() {
            blobs.learn(seed.node, seed.blobs.clone());
        }
        let manifest = tokio::select! {
            manifest = manifest::of_run(&database, &blobs, &ticket) => Arc::new(manifest?),
            () = give_up => return Err(NodeError::NoManifest { run, seeds: ticket.seeds().len() }),
        };
        for part in manifest.parts() {
            let valid = recipe::part_config(&manifest, part).validate();
            valid.map_err(|error| NodeError::Model { part: part.name(), reason: error.to_string() })?;
        }
        let capacity = config.capacity.unwrap_or(manifest.clusters.len() as u16 + 1);
        let text = match capacity {
            0 => None,
            _ => Some(read_text_encoder(&manifest, &config).await?),
        };
        let room = Room { path: config.dir.root().to_owned(), reserve: config.disk_reserve };
        // One part will do to begin with: the driver looks again as parts come.
        room.check(manifest.parts().take(capacity.min(1).into()).map(|part| recipe::part_config(&manifest, part)))?;

        let listen = addresses::listen_on(config.host, config.port);
        let seeds = addresses::of_seeds(&ticket);
        let known = database.known_addresses(run)?.iter().filter_map(|text| text.parse().ok()).collect();
        let network_config = NetworkConfig { secret, run: run.0.0, listen, seeds, known, mdns: config.mdns };
        let memory = reconcile::reconcile(&database, &blobs, run, &manifest).await?;
        for folder in [config.dir.weights_path(), config.dir.shards_path()] {
            blobs::remove_unfinished_exports(&folder);
        }
        let settings = Settings { capacity, mirror: Mirror::Replicas };
        let boot = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        let keypair = config.dir.keypair()?;
        let agent = Agent::new(Duration::ZERO, keypair, manifest.clone(), settings, boot, memory)?;
        let (network, network_events) = Network::start(network_config)?;

        let (calls, call_queue) = mpsc::channel(CALLS_MAX);
        let work = BlobWork::new(blobs, manifest, ticket, &config.dir, config.compute, text);
        let places = Places::new(config.dir, run, config.snapshot_every);
        let history = places.history();
        let keeping = Keeping::new(places, agent.manifest().parts());
        let machine = Machine { room, memory: Memory::new(config.memory_limit), keeping };
        let driver = Driver::new(agent, database, network, network_events, work.clone(), call_queue, machine)?;
        Ok((NodeHandle { calls, work, history }, tokio::spawn(driver.run())))
    }

    /// Talks to the node.
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Waits until the node stops.
    pub async fn stopped(&mut self) -> Result<(), NodeError> {
        match (&mut self.driver).await {
            Ok(outcome) => outcome,
            Err(panic) => resume_unwind(panic.into_panic()),
        }
    }
}

/// What training may use of this machine, and what it keeps here.
struct Machine {
    room: Room,
    memory: Memory,
    keeping: Keeping,
}

/// How much of the disk may be used.
struct Room {
    path: PathBuf,
    reserve: u64,
}

impl Room {
    /// An error if the disk has not room for a checkpoint and a snapshot of each of these parts above the reserve.
    fn check(&self, parts: impl Iterator<Item = PartConfig>) -> Result<(), NodeError> {
        let checkpoints = parts.map(|config| size_limits(&config)).map(|(weights, state)| weights + 2 * state);
        let needed = self.reserve.saturating_add(checkpoints.sum());
        match free_bytes(&self.path) {
            Some(free) if free < needed => Err(NodeError::DiskFull { path: self.path.clone(), free, needed }),
            _ => Ok(()),
        }
    }
}

/// The run's text encoder, so that missing files are said now, not when a part is to be trained. CLIP takes a second or two.
async fn read_text_encoder(manifest: &Manifest, config: &NodeConfig) -> Result<Arc<dyn TextEncoder>, NodeError> {
    let (named, shape) = (manifest.additions.encoders.text, manifest.text);
    let (folder, choice) = (config.dir.encoders_path(), config.compute.device);
    let load = move || Ok::<_, NodeError>(encoders::text_encoder(named, shape, &folder, &choice.open_to_train()?)?);
    // Several parts' trainers and readers ask it, each from a thread of its own.
    let started = tokio::task::spawn_blocking(|| OwnThreadText::start(load).map_err(NodeError::EncoderThread));
    match started.await {
        Ok(encoder) => Ok(Arc::new(encoder??)),
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => Err(NodeError::Stopped),
    }
}
