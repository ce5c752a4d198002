//! What a node says of itself to its operator: one structure for the API, `status --json` and the screen.

use std::fmt::{self, Display, Write};

use paris_protocol::{
    checkpoint::{Checkpoint, CheckpointId},
    identity::NodeId,
    part::Part,
    register::Register,
    signed::Verified,
};
use serde::{Deserialize, Serialize};

use crate::{history::summary::Summary, store::HeldOutLoss};

/// A node's view of its run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of this structure.
    pub version: u32,
    /// This node's name.
    pub node: String,
    /// The run's id.
    pub run: String,
    /// What people call the run.
    pub run_name: String,
    /// True while a node runs on the data directory; else the rest is what was last known.
    pub running: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Direct connections.
    pub connections: usize,
    /// Peers heard of lately.
    pub peers: usize,
    /// A ticket that names this node.
    pub ticket: Option<String>,
    /// Why this node owns no parts, and what to do about it, if it is not admitted.
    #[serde(default)]
    pub not_admitted: Option<String>,
    /// Every part of the run, experts first.
    pub parts: Vec<PartStatus>,
}

/// A part, as this node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartStatus {
    /// `expert-3` or `router`.
    pub part: String,
    /// The node that owns it, short.
    pub owner: Option<String>,
    /// The owner was heard within the ttl.
    pub owner_is_live: bool,
    /// This node is the owner.
    pub is_mine: bool,
    /// The claim's fencing number.
    pub term: u64,
    /// Optimiser steps as the owner last said.
    pub step: Option<u64>,
    /// Smoothed training loss as the owner last said.
    pub loss: Option<f32>,
    /// The earliest held-out loss that this node knows of, to compare with.
    pub held_out_first: Option<HeldOutLoss>,
    /// The latest: the owner's last measurement, or else the best checkpoint's.
    pub held_out_loss: Option<f32>,
    /// The best checkpoint known.
    pub checkpoint: Option<CheckpointStatus>,
    /// The best checkpoint whose weights are here: what a picture would be drawn with now. Behind `checkpoint` while a newer one is being
    /// fetched, or where this node does not keep the part.
    pub held: Option<CheckpointStatus>,
    /// How training went on this machine, if the part is or was trained here.
    pub training: Option<Summary>,
}

/// A checkpoint, as this node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Its id.
    pub id: String,
    /// Optimiser steps.
    pub step: u64,
    /// The term of the claim it was trained under.
    pub term: u64,
    /// Its author, short.
    pub author: String,
    /// Loss on the cluster's held-out shards, as its author measured it.
    pub held_out_loss: f32,
    /// Nodes that hold it, this one included.
    pub holders: usize,
    /// This node holds its weights.
    pub held_here: bool,
}

impl PartStatus {
    /// What the register says of a part, to node `me`; what only a running node knows is left empty.
    pub(crate) fn of_register(register: &Register, part: Part, me: NodeId) -> Self {
        let claim = register.current(part);
        Self {
            part: part.name(),
            owner: claim.map(|claim| claim.author().to_string()),
            owner_is_live: false,
            is_mine: claim.is_some_and(|claim| claim.author() == me),
            term: claim.map_or(0, |claim| claim.term),
            step: None,
            loss: None,
            held_out_first: None,
            held_out_loss: None,
            checkpoint: None,
            held: None,
            training: None,
        }
    }
}

impl CheckpointStatus {
    /// `holders` counts the nodes that hold a checkpoint, this one included; `holds` is true for what is held here.
    pub(crate) fn of(
        checkpoint: &Verified<Checkpoint>,
        holders: impl Fn(CheckpointId) -> usize,
        holds: impl Fn(CheckpointId) -> bool,
    ) -> Self {
        let id = checkpoint.id();
        Self {
            id: id.0.to_string(),
            step: checkpoint.step,
            term: checkpoint.term,
            author: checkpoint.author().to_string(),
            held_out_loss: checkpoint.held_out_loss,
            holders: holders(id),
            held_here: holds(id),
        }
    }
}

impl Status {
    /// The version of the structure.
    pub const VERSION: u32 = 3;
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.running {
            true => format!("running for {}", duration(self.uptime_s)),
            false => "not running (this is what it knew when it stopped)".to_owned(),
        };
        writeln!(f, "node {}  {state}", self.node)?;
        writeln!(f, "run  {} {:?}", self.run, self.run_name)?;
        writeln!(f, "net  peers: {}, connections: {}", self.peers, self.connections)?;
        if let Some(why) = &self.not_admitted {
            writeln!(f, "     {why}")?;
        }
        writeln!(f)?;
        f.write_str(&parts_table(&self.parts))?;
        let names = |select: fn(&PartStatus) -> bool| -> Vec<&str> {
            self.parts.iter().filter(|part| select(part)).map(|part| part.part.as_str()).collect()
        };
        let (owned, mine) = (names(|part| part.owner_is_live).len(), names(|part| part.is_mine && part.owner_is_live));
        let mine = if mine.is_empty() { "none".to_owned() } else { mine.join(", ") };
        match self.running {
            true => {
                writeln!(f, "\n{owned} of {} parts have a live owner; this node's own (*): {mine}.", self.parts.len())?
            }
            false => writeln!(f, "\nWho owns a part now shows once the node runs: paris-node run")?,
        }
        let trained = self.parts.iter().filter_map(|part| Some((&part.part, part.training.as_ref()?)));
        for (number, (part, training)) in trained.enumerate() {
            if number == 0 {
                writeln!(f, "\nTrained on this machine (paris-node history PART shows more):")?;
            }
            writeln!(f, "  {part:<10} {training}")?;
        }
        if let Some(ticket) = &self.ticket {
            writeln!(f, "To join from another machine: paris-node join {ticket}")?;
        }
        Ok(())
    }
}

/// The parts as a table for a terminal. `held out` is the held-out loss, first known and latest; `here` is the checkpoint held on this machine.
pub fn parts_table(parts: &[PartStatus]) -> String {
    let mut table = String::new();
    let number = |value: Option<f32>| value.filter(|it| it.is_finite()).map_or("-".into(), |it| format!("{it:.4}"));
    let step = |step: Option<u64>| step.map_or("-".into(), |it: u64| it.to_string());
    let mut row = |cells: [&str; 9]| {
        let [part, owner, term, step, loss, held_out, checkpoint, holders, here] = cells;
        let _ = writeln!(
            table,
            "{part:<12} {owner:<12} {term:>4} {step:>8} {loss:>8}  {held_out:<16} {checkpoint:>10} {holders:>8} {here:>8}"
        );
    };
    row(["part", "owner", "term", "step", "loss", "held out", "checkpoint", "held by", "here"]);
    for part in parts {
        let owner = match (&part.owner, part.owner_is_live) {
            (None, _) => "-".to_owned(),
            (Some(owner), true) => format!("{owner}{}", if part.is_mine { "*" } else { "" }),
            (Some(_), false) => "(silent)".to_owned(),
        };
        let held_out = match (part.held_out_first.map(|first| first.loss), part.held_out_loss) {
            (Some(first), now @ Some(_)) => format!("{first:.4} > {}", number(now)),
            (first, now) => number(now.or(first)),
        };
        let checkpoint = part.checkpoint.as_ref();
        let holders = checkpoint.map_or(0, |it| it.holders);
        row([
            &part.part,
            &owner,
            &part.term.to_string(),
            &step(part.step),
            &number(part.loss),
            &held_out,
            &checkpoint.map_or("-".into(), |it| format!("step {}", it.step)),
            &format!("{holders} node{}", if holders == 1 { "" } else { "s" }),
            &step(part.held.as_ref().map(|it| it.step)),
        ]);
    }
    table
}

/// Seconds for people.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
