//! The driver: feeds the agent what happened and carries out what it decides, in order.

mod report;
mod training;

use std::{collections::HashMap, time::Instant};

use libp2p::Multiaddr;
use paris_protocol::{
    agent::{Action, Agent, FetchFailure, Made},
    checkpoint::{Checkpoint, CheckpointId},
    identity::NodeId,
    lease::Time,
    part::Part,
    signed::Verified,
};
use tokio::{sync::mpsc, task::JoinSet};
use training::Training;

use super::{
    Call, Machine, NodeError, Room,
    blob_work::BlobWork,
    keeping::Keeping,
    recipe,
    trainer::{Job, TrainerEvent},
};
use crate::{
    memory::Memory,
    network::{Network, NetworkEvent},
    store::{Database, DatabaseError, HeldOutLoss},
};

/// Trainer events that may wait for the driver.
const TRAINER_EVENTS_MAX: usize = 32;
/// How long trainers may take for their last checkpoint when the node stops.
const STOP_PATIENCE: Time = Time::from_secs(25);
/// Between two looks at what changes without an event: losses heard, damage found, peers met, room on the disk.
const LOOK_EVERY: Time = Time::from_secs(1);

/// What a background task brought.
enum Done {
    Pulled {
        peer: NodeId,
        answer: Option<Vec<u8>>,
    },
    Fetched {
        id: CheckpointId,
        state: bool,
        outcome: Result<(), FetchFailure>,
    },
    Stored {
        part: Part,
        made: Option<Made>,
    },
    /// With the checkpoint that training was to begin from, if it turned out not to be here.
    Prepared {
        part: Part,
        job: Result<Box<Job>, String>,
        lost: Option<CheckpointId>,
    },
}

pub(super) struct Driver {
    agent: Agent,
    database: Database,
    network: Network,
    network_events: mpsc::Receiver<NetworkEvent>,
    work: BlobWork,
    calls: mpsc::Receiver<Call>,
    trainer_events: mpsc::Receiver<TrainerEvent>,
    to_driver: mpsc::Sender<TrainerEvent>,
    training: HashMap<Part, Training>,
    /// The part of each checkpoint on its way into the store.
    storing: Vec<Part>,
    tasks: JoinSet<Done>,
    /// The earliest held-out loss known of each part.
    first_losses: HashMap<Part, HeldOutLoss>,
    /// When to look again; see [`LOOK_EVERY`].
    next_look: Time,
    /// Peers' addresses as they are kept.
    known: Vec<Multiaddr>,
    started: Instant,
    /// Since when the node is stopping.
    stopping: Option<Time>,
    room: Room,
    keeping: Keeping,
    memory: Memory,
    /// Why the node stops, if not because it was asked to.
    full: Option<NodeError>,
}

impl Driver {
    pub(super) fn new(
        agent: Agent,
        database: Database,
        network: Network,
        network_events: mpsc::Receiver<NetworkEvent>,
        work: BlobWork,
        calls: mpsc::Receiver<Call>,
        machine: Machine,
    ) -> Result<Self, DatabaseError> {
        let (to_driver, trainer_events) = mpsc::channel(TRAINER_EVENTS_MAX);
        let Machine { room, memory, keeping } = machine;
        let first_losses = database.first_losses(agent.run(), agent.manifest().parts())?;
        Ok(Self {
            agent,
            database,
            network,
            network_events,
            work,
            calls,
            trainer_events,
            to_driver,
            training: HashMap::new(),
            storing: Vec::new(),
            tasks: JoinSet::new(),
            first_losses,
            next_look: Time::ZERO,
            known: Vec::new(),
            started: Instant::now(),
            stopping: None,
            room,
            keeping,
            memory,
            full: None,
        })
    }

    /// Runs until the node is told to stop, or must.
    pub(super) async fn run(mut self) -> Result<(), NodeError> {
        let outcome = self.turn_until_stopped().await;
        self.network.shutdown().await;
        self.work.shutdown().await;
        outcome
    }

    async fn turn_until_stopped(&mut self) -> Result<(), NodeError> {
        self.agent.set_addresses(self.work.addresses());
        self.settle().await?;
        loop {
            let next_tick = self.started + self.agent.deadline().min(self.now() + Time::from_secs(60));
            tokio::select! {
                event = self.network_events.recv() => match event {
                    Some(event) => self.on_network(event),
                    None => return Err(NodeError::Stopped),
                },
                Some(event) = self.trainer_events.recv() => self.on_trainer(event),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.on_done(done)?,
                    Err(error) if error.is_cancelled() => {}
                    Err(panic) => tracing::error!("a background task panicked: {panic}"),
                },
                // Nobody can call any more once every handle is gone: that is to be heard once.
                call = self.calls.recv(), if self.stopping.is_none() || !self.calls.is_closed() => self.on_call(call),
                () = tokio::time::sleep_until(next_tick.into()) => {}
            }
            self.settle().await?;
            if self.has_stopped() {
                return self.full.take().map_or(Ok(()), Err);
            }
        }
    }

    /// The agent's time: since the start, monotonic.
    fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// Lets the agent do what is due and carries out its decisions.
    async fn settle(&mut self) -> Result<(), NodeError> {
        self.agent.tick(self.now());
        for action in self.agent.take_actions() {
            self.carry_out(action).await?;
        }
        if self.now() >= self.next_look {
            self.next_look = self.now() + LOOK_EVERY;
            self.note_losses()?;
            self.drop_damaged()?;
            self.drop_unlisted();
            self.remember_peers()?;
            self.heed_the_disk();
            let best = |part| self.agent.best(part).map(|best| best.state.hash);
            self.keeping.discard_overtaken(|part| self.training.contains_key(&part), best);
        }
        Ok(())
    }

    async fn carry_out(&mut self, action: Action) -> Result<(), NodeError> {
        let run = self.agent.run();
        match action {
            Action::Log(entry) => self.database.log(run, &entry)?,
            Action::RememberClaim(claim) => self.database.remember_claim(run, &claim)?,
            Action::RememberCheckpoint(checkpoint) => self.database.remember_checkpoint(run, &checkpoint)?,
            Action::RememberInvitation(invitation) => self.database.remember_invitation(run, &invitation)?,
            Action::Publish(bytes) => {
                if let Err(error) = self.network.publish(bytes) {
                    tracing::warn!("a message was not sent: {error}");
                }
            }
            Action::Pull(peer) => {
                let (network, request) = (self.network.clone(), self.agent.request());
                let asked = async move { network.request(peer, request?).await.ok() };
                self.tasks.spawn(async move { Done::Pulled { peer, answer: asked.await } });
            }
            Action::Learn { peer, addresses } => self.work.learn(peer, addresses),
            Action::Fetch { checkpoint, state, providers } => self.fetch(checkpoint, state, providers),
            Action::Forget(id) => {
                self.database.forget(run, id)?;
                self.work.forget(id);
            }
            Action::Train { part, from } => {
                if !self.end_training(part, Some(from)) {
                    self.prepare(part, from);
                }
            }
            Action::Stop(part) => {
                self.end_training(part, None);
                self.note_gone(part);
            }
            Action::Halt(halt) => return Err(halt.into()),
        }
        Ok(())
    }

    fn fetch(&mut self, checkpoint: Verified<Checkpoint>, state: bool, providers: Vec<NodeId>) {
        let work = self.work.clone();
        tracing::info!("fetching {} of step {} from {} peers", checkpoint.part, checkpoint.step, providers.len());
        self.tasks.spawn(async move {
            let id = checkpoint.id();
            Done::Fetched { id, state, outcome: work.fetch_checkpoint(&checkpoint, state, providers).await }
        });
    }

    fn on_network(&mut self, event: NetworkEvent) {
        let now = self.now();
        match event {
            NetworkEvent::Gossip { token, author, data } => {
                let verdict = self.agent.receive(now, author, &data);
                self.network.report(token, verdict);
            }
            NetworkEvent::Request { token, from, data } => {
                if let Some(answer) = self.agent.answer(now, from, &data) {
                    self.network.respond(token, answer);
                }
            }
            NetworkEvent::PeerConnected(peer) => self.agent.connected(now, peer),
            NetworkEvent::PeerDisconnected(peer) => self.agent.disconnected(peer),
            NetworkEvent::Listening(address) => tracing::info!("listening on {address}"),
        }
    }

    fn on_trainer(&mut self, event: TrainerEvent) {
        match event {
            TrainerEvent::Progress(progress) => {
                if self.training.contains_key(&progress.part) {
                    self.agent.set_progress(progress);
                }
            }
            TrainerEvent::Recorded(part, line) => self.keeping.note(part, line),
            TrainerEvent::Checkpoint { part, step, held_out_loss, published } => {
                self.storing.push(part);
                let work = self.work.clone();
                self.tasks.spawn(async move {
                    let stored = work.store_checkpoint(part, step, published).await;
                    let made =
                        stored.inspect_err(|error| tracing::error!("the checkpoint of {part} was not stored: {error}"));
                    let made = made.ok().map(|(weights, state)| Made { step, held_out_loss, weights, state });
                    Done::Stored { part, made }
                });
            }
            // A finished part stays owned: its owner goes on to serve its last checkpoint.
            TrainerEvent::Ended(part) => {
                self.training_ended(part);
            }
            TrainerEvent::Failed(part, error) => self.training_failed(part, &format!("training failed: {error}")),
        }
    }

    fn on_done(&mut self, done: Done) -> Result<(), NodeError> {
        let now = self.now();
        match done {
            Done::Pulled { peer, answer: Some(answer) } => {
                if !self.agent.pulled(now, peer, &answer) {
                    tracing::warn!(
                        "{peer} answered with records that no honest peer has: it is not asked again for a while"
                    );
                }
            }
            Done::Pulled { peer, answer: None } => self.agent.pull_failed(peer),
            Done::Fetched { id, state, outcome: Ok(()) } => {
                self.database.hold(self.agent.run(), id, state)?;
                self.agent.fetched(now, id, state);
            }
            Done::Fetched { id, outcome: Err(failure), .. } => self.agent.fetch_failed(now, id, failure),
            Done::Stored { part, made } => {
                if let Some(made) = made
                    && let Some(id) = self.agent.checkpointed(now, part, made)
                {
                    self.work.adopt(id, part, &made);
                    self.database.hold(self.agent.run(), id, true)?;
                    tracing::info!("{part}: checkpoint at step {}, held-out loss {:.4}", made.step, made.held_out_loss);
                }
                if let Some(index) = self.storing.iter().position(|it| *it == part) {
                    self.storing.swap_remove(index);
                }
                self.note_gone(part);
            }
            Done::Prepared { part, job, lost } => {
                if let Some(id) = lost {
                    self.lose(id)?;
                }
                self.start_training(part, job);
            }
        }
        Ok(())
    }

    fn on_call(&mut self, call: Option<Call>) {
        match call {
            Some(Call::Status(answer)) => drop(answer.send(self.status())),
            Some(Call::Assembly(answer)) => {
                self.agent.mirror_everything();
                drop(answer.send(self.assembly()));
            }
            Some(Call::Invite(node, answer)) => drop(answer.send(self.agent.invite(node))),
            Some(Call::Holders(id, answer)) => drop(answer.send(self.holders_first(id))),
            Some(Call::Stop) | None if self.stopping.is_none() => self.stop(),
            Some(Call::Stop) | None => {}
        }
    }

    /// A stopping node waits for the last checkpoints of its trainers, and until a peer has fetched them, but not for ever.
    fn has_stopped(&self) -> bool {
        let Some(since) = self.stopping else { return false };
        let idle = self.training.is_empty() && self.tasks.is_empty() && self.trainer_events.is_empty();
        (idle && self.has_handed_over()) || self.now() > since + STOP_PATIENCE
    }

    /// True if every part's best checkpoint that was made here is held by some other node too, or there is no other node.
    fn has_handed_over(&self) -> bool {
        let alone = self.agent.peers().values().all(|peer| peer.presence.capacity == 0);
        let mine = |checkpoint: &&Verified<Checkpoint>| checkpoint.author() == self.agent.id();
        let best = self.agent.manifest().parts().filter_map(|part| self.agent.best(part)).filter(mine);
        let held_elsewhere = |id| self.agent.holders(id) > usize::from(self.agent.holds(id));
        alone || best.map(|checkpoint| checkpoint.id()).all(held_elsewhere)
    }

    /// A checkpoint that turned out to be damaged on disk is held no more, so that the agent fetches it again.
    fn drop_damaged(&mut self) -> Result<(), NodeError> {
        let held = |it: &&Verified<Checkpoint>| self.work.is_damaged(it) && self.agent.holds(it.id());
        let checkpoints = |part| self.agent.register().checkpoints(part).into_iter().filter(held).map(|it| it.id());
        let damaged: Vec<_> = self.agent.manifest().parts().flat_map(checkpoints).collect();
        damaged.into_iter().try_for_each(|id| self.lose(id))
    }

    /// A checkpoint turned out not to be here, or not whole.
    fn lose(&mut self, id: CheckpointId) -> Result<(), NodeError> {
        self.database.forget(self.agent.run(), id)?;
        self.agent.lost(self.now(), id);
        Ok(())
    }

    /// What fetches that did not end have left of checkpoints that are listed no more is of use to nobody. Of any other it is what they go on from.
    fn drop_unlisted(&self) {
        let register = self.agent.register();
        let is_listed = |id| self.agent.manifest().parts().any(|part| register.checkpoint(part, id).is_some());
        let of_use = |id: &CheckpointId| is_listed(*id) || self.agent.holds(*id);
        for id in self.work.checkpoints().into_iter().filter(|id| !of_use(id)) {
            self.work.forget(id);
        }
    }

    /// Keeps where peers were met, so that the next start does not hang on the seeds.
    fn remember_peers(&mut self) -> Result<(), NodeError> {
        let known = self.network.known_addresses();
        if !known.is_empty() && known != self.known {
            let texts: Vec<_> = known.iter().map(ToString::to_string).collect();
            self.database.put_known_addresses(self.agent.run(), &texts)?;
            self.known = known;
        }
        Ok(())
    }

    /// While there is still room for the last checkpoints, the node stops in order; later it would have to stop in the middle.
    fn heed_the_disk(&mut self) {
        let manifest = self.agent.manifest().clone();
        let parts = self.training.keys().map(|part| recipe::part_config(&manifest, *part));
        if self.stopping.is_none()
            && let Err(full) = self.room.check(parts)
        {
            tracing::error!("stopping: {full}");
            self.full = Some(full);
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.stopping = Some(self.now());
        self.agent.leave(self.now());
    }
}
