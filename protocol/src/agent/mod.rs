//! The agent: decides what this node claims, trains, fetches and publishes.
//!
//! Inputs are messages, facts and ticks, with the time as an argument; outputs are [`Action`]s, taken with [`Agent::take_actions`] and carried out
//! *in order*, and the moment of the next tick, [`Agent::deadline`]. After every input the driver calls [`Agent::tick`].
//!
//! Rooms: `ownership` begins and ends owning; `claiming` waits for its turn and claims; `voting` files and gives votes; `doubting` says when a claim is
//! over; `shadow` trains below a quorum; `beating` signs heartbeats; `holding` fetches, mirrors and forgets checkpoints; `hearing` takes in
//! what peers say, `quota` how much of it; `pulling` decides whom to ask for what gossip lost, `exchange` asks and answers; `inviting` lets others in; `peers` keeps who they are, `orders` who of them goes first; `sharing` lets many agents of one process hear as one.

mod beating;
mod claiming;
mod doubting;
mod exchange;
mod fetching;
mod hearing;
mod holding;
mod inviting;
mod orders;
mod ownership;
mod peers;
mod pulling;
mod quota;
mod shadow;
mod sharing;
mod voting;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use self::{
    claiming::Free,
    doubting::Advance,
    holding::Holding,
    orders::Orders,
    ownership::Owned,
    peers::Peers,
    pulling::Pull,
    quota::Quotas,
    voting::{Filed, Word},
};
pub use self::{
    hearing::Verdict,
    holding::{FetchFailure, Made, Mirror},
    inviting::InviteError,
    peers::{PEERS_MAX, Peer},
};
use crate::{
    checkpoint::{Checkpoint, CheckpointId},
    claim::{Claim, ClaimId},
    codec::{CodecError, Wire},
    identity::{Keypair, NodeId},
    invitation::Invitation,
    lease::{Leases, Time},
    manifest::{Manifest, ManifestError, Ownership, RunId},
    message::{Gossip, Progress},
    part::Part,
    part_map::PartMap,
    register::{Records, Register},
    signed::{Signed, Verified},
};

/// What this node is willing to do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Parts to own at once; 0 only watches.
    pub capacity: u16,
    /// Which checkpoints of other owners to keep.
    pub mirror: Mirror,
}

/// A claim of this node and the heartbeats it may sign: durable before anything is signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The claim.
    pub claim: ClaimId,
    /// No greater `seq` was ever signed.
    pub seq_reserved: u64,
}

/// What outlived the last stop.
#[derive(Debug, Default)]
pub struct Memory {
    /// Every claim this key ever made in the run.
    pub log: Vec<LogEntry>,
    /// Claims and checkpoints that were known.
    pub records: Records,
    /// Invitations that were known.
    pub invitations: Vec<Signed<Invitation>>,
    /// Checkpoints whose blobs are in the local store, and whether the resumable state is.
    pub held: Vec<(CheckpointId, bool)>,
}

/// What the driver must do, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make the entry durable *before* carrying out anything that follows. If that fails, stop.
    Log(LogEntry),
    /// Keep a claim for the next start.
    RememberClaim(Signed<Claim>),
    /// Keep a checkpoint for the next start.
    RememberCheckpoint(Signed<Checkpoint>),
    /// Keep an invitation for the next start.
    RememberInvitation(Signed<Invitation>),
    /// Gossip these bytes.
    Publish(Vec<u8>),
    /// Ask a peer for what this register lacks, with [`Agent::request`]; hand the answer to [`Agent::pulled`], or call [`Agent::pull_failed`].
    Pull(NodeId),
    /// A peer's blobs can be fetched there, and nowhere else any more.
    Learn {
        /// The peer.
        peer: NodeId,
        /// Its blob addresses; none of one that was forgotten.
        addresses: Vec<SocketAddr>,
    },
    /// Fetch and check a checkpoint's blobs; then call [`Agent::fetched`] or [`Agent::fetch_failed`].
    Fetch {
        /// The record.
        checkpoint: Verified<Checkpoint>,
        /// Whether the resumable state is wanted beside the weights.
        state: bool,
        /// Who has it.
        providers: Vec<NodeId>,
    },
    /// A checkpoint's blobs are needed no more.
    Forget(CheckpointId),
    /// Train a part, from a checkpoint in the local store or from the beginning.
    Train {
        /// The part.
        part: Part,
        /// Where to go on.
        from: Option<CheckpointId>,
    },
    /// Finish the step, write a last checkpoint, and end training of the part.
    Stop(Part),
    /// Stop the node: going on would harm the run.
    Halt(Halt),
}

/// Why a node must not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The network shows claims signed with this key that its log does not know.
    #[error(
        "the network shows a claim on {0} signed with this node's key that its claim log does not know: another machine runs with this key, or \
         this data directory is an old copy. Stop the other one, or start here with a new key (a new --data-dir)"
    )]
    KeyInUse(Part),
    /// This node's key signed two claims on one part and term: it is barred for the run.
    #[error(
        "this node's key is barred from the run: two claims on one part and term carry its signature, so another machine ran with it. Stop that one, and \
         start here with a new key (a new --data-dir)"
    )]
    Barred,
}

/// The state machine of one node in one run.
pub struct Agent {
    keypair: Keypair,
    run: RunId,
    manifest: Arc<Manifest>,
    settings: Settings,
    boot: u64,
    register: Register,
    leases: Leases,
    /// Votes on each part's current claim, by voter and heir.
    votes: PartMap<BTreeMap<(NodeId, Option<NodeId>), Filed>>,
    /// What this node last said of who may follow in each part.
    words: BTreeMap<Part, Word>,
    /// How far each part's owner has come.
    advances: PartMap<Advance>,
    peers: Peers,
    orders: Orders,
    /// Before this moment no part becomes free by silence alone.
    quiet_until: Time,
    connected: BTreeSet<NodeId>,
    /// What each key may still say by gossip.
    quotas: Quotas,
    /// What each peer may still ask.
    requests: Quotas,
    /// Peers to ask, or not to ask for now.
    pulls: BTreeMap<NodeId, Pull>,
    /// Greatest `seq` that may be signed, for every claim ever made.
    log: BTreeMap<ClaimId, u64>,
    /// The same as it stood at the start: whatever this key signed beyond it came from another machine, or from this process.
    log_at_start: BTreeMap<ClaimId, u64>,
    owned: BTreeMap<Part, Owned>,
    /// The claim under which each part given up was last trained: until its trainer is gone, what it made is still signed under it.
    former: BTreeMap<Part, (ClaimId, u64, Option<CheckpointId>)>,
    /// Parts trained without owning them, and from where.
    shadows: BTreeMap<Part, Option<CheckpointId>>,
    /// Parts free to claim.
    free: BTreeMap<Part, Free>,
    /// Parts not to claim before a moment: given up, or failed here.
    avoid_until: BTreeMap<Part, Time>,
    holding: Holding,
    /// When to look again which checkpoints fall to this node.
    next_look: Time,
    progress: BTreeMap<Part, Progress>,
    addresses: Vec<SocketAddr>,
    listen_until: Time,
    listened: bool,
    leaving: bool,
    next_beat: Time,
    next_pull: Time,
    /// The peer pulled from last, so that all have their turn.
    last_pulled: Option<NodeId>,
    last_tick: Time,
    /// When to tick for what this node alone has to do.
    wake: Time,
    /// When to tick for what everyone watches: silence, lack of progress, and what gossip lost.
    watch: Time,
    /// Something came in that may be due before `wake`.
    stirred: bool,
    /// Heartbeats are not signed anew; see `sharing`.
    repeats_unsigned: bool,
    actions: VecDeque<Action>,
}

impl Agent {
    /// An agent that begins to listen at `now`. `boot` must differ from that of every earlier start.
    pub fn new(
        now: Time,
        keypair: Keypair,
        manifest: Arc<Manifest>,
        settings: Settings,
        boot: u64,
        memory: Memory,
    ) -> Result<Self, ManifestError> {
        let run = manifest.id()?;
        let times = manifest.ownership;
        let (quotas, requests) = (Quotas::of_gossip(&manifest), Quotas::of_requests(&manifest));
        let log: BTreeMap<_, _> = memory.log.into_iter().map(|entry| (entry.claim, entry.seq_reserved)).collect();
        let mut agent = Self {
            register: Register::new(run, manifest.clone()),
            keypair,
            run,
            manifest,
            settings,
            boot,
            leases: Leases::default(),
            votes: PartMap::default(),
            words: BTreeMap::new(),
            advances: PartMap::default(),
            peers: Peers::default(),
            orders: Orders::default(),
            quiet_until: Time::ZERO,
            connected: BTreeSet::new(),
            quotas,
            requests,
            pulls: BTreeMap::new(),
            log_at_start: log.clone(),
            log,
            owned: BTreeMap::new(),
            former: BTreeMap::new(),
            shadows: BTreeMap::new(),
            free: BTreeMap::new(),
            avoid_until: BTreeMap::new(),
            holding: Holding::new(memory.held),
            next_look: now,
            progress: BTreeMap::new(),
            addresses: Vec::new(),
            listen_until: now + millis(times.listen_ms),
            listened: false,
            leaving: false,
            next_beat: now,
            next_pull: now,
            last_pulled: None,
            last_tick: now,
            wake: now,
            watch: now,
            stirred: true,
            repeats_unsigned: false,
            actions: VecDeque::new(),
        };
        agent.take_in_invitations(memory.invitations);
        agent.take_in(now, None, memory.records);
        // What is remembered need not be remembered again; a claim beyond the log is as alarming here as on the network.
        agent.actions.retain(|action| matches!(action, Action::Halt(_)));
        Ok(agent)
    }

    /// Does all that is due. To be called after every input and at [`Agent::deadline`].
    pub fn tick(&mut self, now: Time) {
        self.listen_after_a_gap(now);
        // Most of what comes in is a heartbeat that puts off a doubt: nothing can be due before the moment asked for.
        if !self.stirred && now < self.deadline() {
            return;
        }
        self.stirred = false;
        (self.wake, self.watch) = (Time::MAX, Time::MAX);
        self.forget_silent_peers(now);
        match now < self.listen_until {
            true => self.wake_at(self.listen_until),
            false => self.attend_parts(now),
        }
        if now >= self.next_look {
            // Who comes and who goes moves replicas, and not in a hurry.
            self.next_look = now + self.ttl() * self.crowding();
            self.attend_checkpoints(now);
        }
        self.wake_at(self.next_look);
        self.beat(now);
        self.pull(now);
    }

    /// After a suspended machine or a stalled thread all owners seem silent, and this node was the silent one: it listens first.
    fn listen_after_a_gap(&mut self, now: Time) {
        if now.saturating_sub(self.last_tick) > self.ttl() {
            let Ownership { listen_ms, heartbeat_ms, .. } = self.manifest.ownership;
            self.listen_until = self.listen_until.max(now + millis(listen_ms).max(2 * millis(heartbeat_ms)));
            self.doubt_nobody(now);
            self.pull_from_several();
            self.stirred = true;
        }
        self.last_tick = now;
    }

    /// When to tick next, at the latest.
    pub fn deadline(&self) -> Time {
        self.wake.min(self.watch)
    }

    /// The actions since the last call.
    pub fn take_actions(&mut self) -> impl Iterator<Item = Action> + use<> {
        std::mem::take(&mut self.actions).into_iter()
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.keypair.id()
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The run's manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Everything known of owners and checkpoints.
    pub fn register(&self) -> &Register {
        &self.register
    }

    /// Peers heard of lately.
    pub fn peers(&self) -> &BTreeMap<NodeId, Peer> {
        self.peers.all()
    }

    /// Peers but for this node, which is among them where it shares its hearing.
    fn others(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        let me = self.id();
        self.peers.all().iter().filter(move |(node, _)| **node != me)
    }

    /// Where this node's blobs can be fetched, to be told to the others.
    pub fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.addresses = addresses;
    }

    /// How far a part trained here has come, to be told to the others.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress.insert(progress.part, progress);
    }

    /// How far a part has come: by this node's trainer, or as its owner says.
    pub fn progress(&self, part: Part) -> Option<Progress> {
        if let Some(progress) = self.progress.get(&part) {
            return Some(*progress);
        }
        let owner = self.register.current(part)?.author();
        self.peers.all().get(&owner)?.presence.progress.iter().find(|it| it.part == part).copied()
    }

    /// Asks for a tick no later than `at`.
    fn wake_at(&mut self, at: Time) {
        self.wake = self.wake.min(at);
    }

    /// The same for what everyone watches.
    fn watch_at(&mut self, at: Time) {
        self.watch = self.watch.min(at);
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn publish(&mut self, message: &Gossip) {
        match message.to_bytes() {
            Ok(bytes) => self.act(Action::Publish(bytes)),
            Err(CodecError::TooLong { .. } | CodecError::Malformed { .. }) => debug_assert!(false, "own messages fit"),
        }
    }

    fn ttl(&self) -> Time {
        millis(self.manifest.ownership.ttl_ms)
    }
}

/// Milliseconds of the manifest as a span of time.
fn millis(value: u32) -> Time {
    Time::from_millis(value.into())
}
