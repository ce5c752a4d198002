//! A world of agents with virtual time: delays, loss, partitions, kills and restarts, trainers and fetches, all drawn from one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use paris_protocol::{
    agent::{Action, Agent, FetchFailure, Halt, LogEntry, Made, Memory, Mirror, Settings},
    checkpoint::{Blob, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    invitation::Invitation,
    lease::Time,
    manifest::{Manifest, RunId},
    message::Gossip,
    part::Part,
    register::Records,
    signed::Signed,
};

use crate::common::{key, shared};

const STEPS_A_SECOND: u64 = 10;
const FETCH: Duration = Duration::from_millis(300);
const LAST_CHECKPOINT: Duration = Duration::from_millis(100);

/// What outlives a kill.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) log: BTreeMap<ClaimId, u64>,
    claims: Vec<Signed<Claim>>,
    checkpoints: Vec<Signed<Checkpoint>>,
    invitations: Vec<Signed<Invitation>>,
    pub(crate) held: BTreeMap<CheckpointId, bool>,
}

struct Trainer {
    from_step: u64,
    began: Time,
    generation: u64,
}

pub(crate) struct Node {
    key: u8,
    settings: Settings,
    boots: u64,
    agent: Option<Agent>,
    pub(crate) disk: Disk,
    trainers: BTreeMap<Part, Trainer>,
    island: u8,
    next_tick: Time,
    pub(crate) halted: Option<Halt>,
    /// Gossip neither reaches nor leaves it.
    pub(crate) deaf: bool,
    /// Its blobs cannot be fetched.
    pub(crate) mute_blobs: bool,
    /// What it fetches never comes, and never fails.
    pub(crate) mute_fetches: bool,
    /// Its trainers leave no last checkpoint.
    pub(crate) mute_trainers: bool,
    /// Whose blobs it knows where to fetch.
    pub(crate) learnt: BTreeSet<NodeId>,
}

impl Node {
    /// True while a part is not in training here.
    pub(crate) fn is_idle(&self, part: Part) -> bool {
        !self.trainers.contains_key(&part)
    }
}

enum Event {
    Tick,
    Gossip {
        from: NodeId,
        bytes: Vec<u8>,
    },
    Request {
        from: usize,
        request: Vec<u8>,
    },
    Answer {
        from: NodeId,
        answer: Vec<u8>,
    },
    Fetch {
        id: CheckpointId,
        state: bool,
        providers: Vec<NodeId>,
    },
    Checkpoint {
        part: Part,
        generation: u64,
    },
    /// A trainer is gone, and has left a last checkpoint of a step or nothing.
    Gone {
        part: Part,
        step: Option<u64>,
    },
}

/// Training that began, for the tests to look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Begun {
    pub(crate) node: usize,
    pub(crate) part: Part,
    pub(crate) step: u64,
}

/// A fetch that began.
pub(crate) struct Asked {
    pub(crate) node: usize,
    pub(crate) id: CheckpointId,
    pub(crate) providers: Vec<NodeId>,
}

pub(crate) struct World {
    seed: u64,
    drawn: u64,
    pub(crate) now: Time,
    manifest: Arc<Manifest>,
    run: RunId,
    pub(crate) nodes: Vec<Node>,
    /// To whom, in which life of it, and what; ordered by time, then by when it was queued.
    queue: BTreeMap<(Time, u64), (usize, u64, Event)>,
    queued: u64,
    /// Of a thousand gossip messages to one receiver.
    pub(crate) lost_of_thousand: u64,
    steps: BTreeMap<CheckpointId, u64>,
    pub(crate) begun: Vec<Begun>,
    pub(crate) asked: Vec<Asked>,
    /// Who asked whom for records.
    pub(crate) pulled: Vec<(usize, NodeId)>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world had seed {} and stopped at {:?}", self.seed, self.now);
        }
    }
}

/// A node that owns up to `capacity` parts and keeps replicas.
pub(crate) fn owner(capacity: u16) -> Settings {
    Settings { capacity, mirror: Mirror::Replicas }
}

impl World {
    pub(crate) fn new(seed: u64, manifest: Manifest) -> Self {
        let run = manifest.id().unwrap();
        let manifest = shared(manifest);
        Self {
            seed,
            drawn: 0,
            now: Time::ZERO,
            manifest,
            run,
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            queued: 0,
            lost_of_thousand: 0,
            steps: BTreeMap::new(),
            begun: Vec::new(),
            asked: Vec::new(),
            pulled: Vec::new(),
        }
    }

    /// A world of `nodes` owners started at once.
    pub(crate) fn of(seed: u64, manifest: Manifest, nodes: usize, capacity: u16) -> Self {
        let mut world = Self::new(seed, manifest);
        for _ in 0..nodes {
            world.add(owner(capacity));
        }
        world
    }

    /// Adds and starts a node with a key of its own.
    pub(crate) fn add(&mut self, settings: Settings) -> usize {
        self.add_with_key(self.nodes.len() as u8 + 1, settings)
    }

    /// Adds and starts a node on an island of its choice.
    pub(crate) fn add_on(&mut self, settings: Settings, island: u8) -> usize {
        self.push(self.nodes.len() as u8 + 1, settings, island)
    }

    pub(crate) fn add_with_key(&mut self, key: u8, settings: Settings) -> usize {
        self.push(key, settings, 0)
    }

    fn push(&mut self, key: u8, settings: Settings, island: u8) -> usize {
        self.nodes.push(Node {
            key,
            settings,
            boots: 0,
            agent: None,
            disk: Disk::default(),
            trainers: BTreeMap::new(),
            island,
            next_tick: Time::MAX,
            halted: None,
            deaf: false,
            mute_blobs: false,
            mute_fetches: false,
            mute_trainers: false,
            learnt: BTreeSet::new(),
        });
        let node = self.nodes.len() - 1;
        self.start(node);
        node
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        self.manifest.parts().collect()
    }

    pub(crate) fn agent(&self, node: usize) -> &Agent {
        self.nodes[node].agent.as_ref().expect("a living node")
    }

    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].agent.is_some()).collect()
    }

    /// The nodes that own a part, as they think.
    pub(crate) fn owners(&self, part: Part) -> Vec<usize> {
        self.living().into_iter().filter(|node| self.agent(*node).owned().any(|it| it == part)).collect()
    }

    /// The one owner of a part.
    pub(crate) fn owner(&self, part: Part) -> usize {
        let owners = self.owners(part);
        assert_eq!(owners.len(), 1, "{part} is owned by {owners:?}");
        owners[0]
    }

    pub(crate) fn load(&self, node: usize) -> usize {
        self.agent(node).owned().count()
    }

    /// A part that a node trains right now.
    pub(crate) fn trained(&self, node: usize) -> Option<Part> {
        self.nodes[node].trainers.keys().next().copied()
    }

    /// The step of the best checkpoint of a part as a node sees it; 0 without one.
    pub(crate) fn best_step(&self, node: usize, part: Part) -> u64 {
        self.agent(node).best(part).map_or(0, |best| best.step)
    }

    /// How many living nodes hold the resumable state of a checkpoint.
    pub(crate) fn holders(&self, id: CheckpointId) -> Vec<usize> {
        self.living().into_iter().filter(|node| self.nodes[*node].disk.held.get(&id) == Some(&true)).collect()
    }

    /// Runs until nothing is left to do before `span` is over.
    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(next) = self.queue.first_entry()
            && next.key().0 <= end
        {
            self.now = next.key().0;
            let (node, boot, event) = next.remove();
            if self.nodes[node].boots == boot && self.nodes[node].agent.is_some() {
                self.deliver(node, event);
            }
        }
        self.now = end;
    }

    pub(crate) fn run_secs(&mut self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    /// Stops a node as kill -9 does.
    pub(crate) fn kill(&mut self, node: usize) {
        let id = self.agent(node).id();
        self.nodes[node].agent = None;
        self.nodes[node].trainers.clear();
        for other in self.living() {
            self.input(other, |agent, _| agent.disconnected(id));
        }
    }

    /// Starts a node from what its disk kept.
    pub(crate) fn start(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.boots += 1;
        let memory = Memory {
            log: it.disk.log.iter().map(|(claim, seq)| LogEntry { claim: *claim, seq_reserved: *seq }).collect(),
            records: Records { claims: it.disk.claims.clone(), checkpoints: it.disk.checkpoints.clone() },
            invitations: it.disk.invitations.clone(),
            held: it.disk.held.iter().map(|(id, state)| (*id, *state)).collect(),
        };
        let boot = u64::from(it.key) << 32 | (node as u64) << 16 | it.boots;
        let mut agent = Agent::new(self.now, key(it.key), self.manifest.clone(), it.settings, boot, memory).unwrap();
        agent.set_addresses(vec![([127, 0, 0, 1], it.key.into()).into()]);
        it.agent = Some(agent);
        it.learnt.clear();
        self.input(node, |_, _| ());
        for other in self.living() {
            if other != node && self.nodes[other].island == self.nodes[node].island {
                self.connect(node, other);
            }
        }
    }

    fn connect(&mut self, one: usize, other: usize) {
        let (id, other_id) = (self.agent(one).id(), self.agent(other).id());
        self.input(one, |agent, now| agent.connected(now, other_id));
        self.input(other, |agent, now| agent.connected(now, id));
    }

    /// Cuts the network: every node moves to the island with its number.
    pub(crate) fn partition(&mut self, islands: &[u8]) {
        let living = self.living();
        let before: Vec<u8> = self.nodes.iter().map(|node| node.island).collect();
        for (node, island) in islands.iter().enumerate() {
            self.nodes[node].island = *island;
        }
        let pairs = living.iter().flat_map(|a| living.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
        for (a, b) in pairs.collect::<Vec<_>>() {
            let (were, are) = (before[a] == before[b], self.nodes[a].island == self.nodes[b].island);
            let (id_a, id_b) = (self.agent(a).id(), self.agent(b).id());
            match (were, are) {
                (true, false) => {
                    self.input(a, |agent, _| agent.disconnected(id_b));
                    self.input(b, |agent, _| agent.disconnected(id_a));
                }
                (false, true) => self.connect(a, b),
                _ => {}
            }
        }
    }

    /// Suspends a node: what is sent to it meanwhile is lost.
    pub(crate) fn suspend(&mut self, node: usize, seconds: u64) {
        let agent = self.nodes[node].agent.take();
        self.run_secs(seconds);
        self.nodes[node].agent = agent;
        self.nodes[node].next_tick = Time::MAX;
        self.input(node, |_, _| ());
    }

    /// A trainer dies, and its node is told.
    pub(crate) fn trainer_failed(&mut self, node: usize, part: Part) {
        self.nodes[node].trainers.remove(&part).expect("a trainer to fail");
        self.input(node, |agent, now| agent.trainer_failed(now, part));
    }

    /// An input to an agent, and all that follows from it at once.
    pub(crate) fn input<R>(&mut self, node: usize, input: impl FnOnce(&mut Agent, Time) -> R) -> R {
        let agent = self.nodes[node].agent.as_mut().expect("a living node");
        let result = input(agent, self.now);
        agent.tick(self.now);
        let (actions, deadline, id): (Vec<_>, _, _) = (agent.take_actions().collect(), agent.deadline(), agent.id());
        assert!(deadline > self.now, "an agent that is due again at once would spin");
        for action in actions {
            self.carry_out(node, id, action);
        }
        if self.nodes[node].next_tick != deadline {
            self.nodes[node].next_tick = deadline;
            self.queue(deadline - self.now, node, Event::Tick);
        }
        result
    }

    /// Sends a stranger's gossip to everyone.
    pub(crate) fn inject(&mut self, from: NodeId, message: &Gossip) {
        let bytes = message.to_bytes().unwrap();
        for node in self.living() {
            self.input(node, |agent, now| agent.receive(now, from, &bytes));
        }
    }

    fn queue(&mut self, after: Duration, node: usize, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), (node, self.nodes[node].boots, event));
    }

    /// A number below `bound`, by counter and seed.
    pub(crate) fn draw(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        let hash = Hash::of_fields("world", &[&self.seed.to_le_bytes(), &self.drawn.to_le_bytes()]);
        u64::from_le_bytes(hash.0[..8].try_into().unwrap()) % bound
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(20 + self.draw(180))
    }

    fn find(&self, id: NodeId) -> Option<usize> {
        self.living().into_iter().find(|node| self.agent(*node).id() == id)
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        self.nodes[one].island == self.nodes[other].island
    }

    fn carry_out(&mut self, node: usize, id: NodeId, action: Action) {
        if self.nodes[node].halted.is_some() {
            return;
        }
        match action {
            Action::Log(entry) => {
                let before = self.nodes[node].disk.log.insert(entry.claim, entry.seq_reserved);
                assert!(before.is_none_or(|before| before < entry.seq_reserved), "reservations grow");
            }
            Action::RememberInvitation(invitation) => self.nodes[node].disk.invitations.push(invitation),
            Action::RememberClaim(claim) => self.nodes[node].disk.claims.push(claim),
            Action::RememberCheckpoint(checkpoint) => self.nodes[node].disk.checkpoints.push(checkpoint),
            Action::Publish(bytes) => self.publish(node, id, bytes),
            Action::Pull(peer) => {
                self.pulled.push((node, peer));
                let request = self.agent(node).request().expect("a register's digest fits");
                let Some(peer) = self.find(peer).filter(|peer| self.reaches(node, *peer)) else { return };
                let delay = self.delay();
                self.queue(delay, peer, Event::Request { from: node, request });
            }
            Action::Learn { peer, addresses } => {
                match addresses.is_empty() {
                    true => self.nodes[node].learnt.remove(&peer),
                    false => self.nodes[node].learnt.insert(peer),
                };
            }
            Action::Fetch { checkpoint, state, providers } => {
                assert!(!providers.is_empty() && !providers.contains(&id));
                self.asked.push(Asked { node, id: checkpoint.id(), providers: providers.clone() });
                if !self.nodes[node].mute_fetches {
                    self.queue(FETCH, node, Event::Fetch { id: checkpoint.id(), state, providers });
                }
            }
            Action::Forget(id) => {
                self.nodes[node].disk.held.remove(&id);
            }
            Action::Train { part, from } => self.train(node, part, from),
            Action::Stop(part) => {
                let trainer = self.nodes[node].trainers.remove(&part);
                assert!(trainer.is_some() || self.steps_of(part) < u64::MAX, "only what is in training is stopped");
                let left = trainer.filter(|_| !self.nodes[node].mute_trainers);
                let step = left.map(|trainer| self.step_of(part, &trainer));
                self.queue(LAST_CHECKPOINT, node, Event::Gone { part, step });
            }
            Action::Halt(why) => {
                self.nodes[node].halted = Some(why);
                self.kill(node);
            }
        }
    }

    /// No claim is published that the disk does not allow for.
    fn publish(&mut self, node: usize, id: NodeId, bytes: Vec<u8>) {
        if let Gossip::Beat { claims, .. } = Gossip::from_bytes(&bytes).expect("own gossip reads") {
            for claim in claims {
                let claim = claim.verify(self.run).expect("own claims verify");
                let reserved = self.nodes[node].disk.log.get(&claim.id(self.run, id)).copied();
                assert!(reserved >= Some(claim.seq), "seq {} published, {reserved:?} durable", claim.seq);
            }
        }
        for other in self.living() {
            let deaf = self.nodes[node].deaf || self.nodes[other].deaf;
            if other == node || deaf || !self.reaches(node, other) || self.draw(1000) < self.lost_of_thousand {
                continue;
            }
            let delay = self.delay();
            self.queue(delay, other, Event::Gossip { from: id, bytes: bytes.clone() });
        }
    }

    fn train(&mut self, node: usize, part: Part, from: Option<CheckpointId>) {
        let step = from.map_or(0, |id| {
            assert_eq!(self.nodes[node].disk.held.get(&id), Some(&true), "trained from what is not there");
            self.steps[&id]
        });
        self.begun.push(Begun { node, part, step });
        let generation = self.queued;
        let trainer = Trainer { from_step: step, began: self.now, generation };
        assert!(self.nodes[node].trainers.insert(part, trainer).is_none(), "two trainers of one part");
        let every = Duration::from_millis(self.manifest.ownership.checkpoint_ms.into());
        self.queue(every, node, Event::Checkpoint { part, generation });
    }

    fn step_of(&self, part: Part, trainer: &Trainer) -> u64 {
        let steps = (self.now - trainer.began).as_millis() as u64 * STEPS_A_SECOND / 1000;
        (trainer.from_step + steps).min(self.steps_of(part))
    }

    /// The last step of a part's training.
    fn steps_of(&self, part: Part) -> u64 {
        Some(self.manifest.training(part).steps).filter(|steps| *steps > 0).unwrap_or(u64::MAX)
    }

    fn checkpoint(&mut self, node: usize, part: Part, step: u64) {
        // Whoever goes on from the last step publishes what it began with.
        let made_by = if step < self.steps_of(part) { node as u8 } else { u8::MAX };
        let blob = |kind: u8| Blob { hash: Hash::of(&[made_by, kind, step as u8]), bytes: 1 };
        let made = Made { step, held_out_loss: 1.0, weights: blob(0), state: blob(1) };
        let id = self.input(node, |agent, now| agent.checkpointed(now, part, made));
        if let Some(id) = id {
            self.steps.insert(id, step);
            if self.nodes[node].agent.as_ref().is_some_and(|agent| agent.holds(id)) {
                self.nodes[node].disk.held.insert(id, true);
            }
        }
    }

    fn deliver(&mut self, node: usize, event: Event) {
        match event {
            Event::Tick if self.nodes[node].next_tick != self.now => {}
            Event::Tick => self.input(node, |_, _| ()),
            Event::Gossip { from, bytes } => {
                self.input(node, |agent, now| agent.receive(now, from, &bytes));
            }
            Event::Request { from, request } => {
                let asker = key(self.nodes[from].key).id();
                let answer = self.input(node, |agent, now| agent.answer(now, asker, &request));
                let answer = answer.expect("honest requests are answered");
                let (id, delay) = (self.agent(node).id(), self.delay());
                if self.reaches(node, from) {
                    self.queue(delay, from, Event::Answer { from: id, answer });
                }
            }
            Event::Answer { from, answer } => {
                assert!(self.input(node, |agent, now| agent.pulled(now, from, &answer)), "honest answers are taken");
            }
            Event::Fetch { id, state, providers } => {
                let providers: BTreeSet<_> = providers.into_iter().filter_map(|id| self.find(id)).collect();
                let has = |provider: &usize| {
                    let it = &self.nodes[*provider];
                    self.reaches(node, *provider)
                        && !it.mute_blobs
                        && it.disk.held.get(&id).is_some_and(|has| *has || !state)
                };
                match providers.iter().any(has) {
                    true => {
                        *self.nodes[node].disk.held.entry(id).or_default() |= state;
                        self.input(node, |agent, now| agent.fetched(now, id, state));
                    }
                    false => self.input(node, |agent, now| agent.fetch_failed(now, id, FetchFailure::Unavailable)),
                }
            }
            Event::Checkpoint { part, generation } => {
                let Some(trainer) = self.nodes[node].trainers.get(&part) else { return };
                if trainer.generation == generation {
                    let step = self.step_of(part, trainer);
                    let every = Duration::from_millis(self.manifest.ownership.checkpoint_ms.into());
                    self.queue(every, node, Event::Checkpoint { part, generation });
                    if step == self.steps_of(part) {
                        self.nodes[node].trainers.remove(&part);
                    }
                    self.checkpoint(node, part, step);
                }
            }
            Event::Gone { part, step } => {
                if let Some(step) = step {
                    self.checkpoint(node, part, step);
                }
                self.input(node, |agent, _| agent.trainer_gone(part));
            }
        }
    }
}
