//! What a node says of itself to its operator: one structure for the API, `status --json` and the screen.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Serialize};

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
    /// The best checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
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

impl Status {
    /// The version of the structure.
    pub const VERSION: u32 = 1;
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.running {
            true => format!("running for {}", duration(self.uptime_s)),
            false => "not running (this is what it knew when it stopped)".to_owned(),
        };
        writeln!(f, "node {}  {state}", self.node)?;
        writeln!(f, "run  {} {:?}", self.run, self.run_name)?;
        writeln!(f, "net  {} peers, {} connections", self.peers, self.connections)?;
        writeln!(f)?;
        f.write_str(&parts_table(&self.parts))?;
        let mine = self.parts.iter().filter(|part| part.is_mine).count();
        let owned = self.parts.iter().filter(|part| part.owner_is_live).count();
        writeln!(f, "\n{owned} of {} parts have a live owner; this node owns {mine}.", self.parts.len())?;
        if let Some(ticket) = &self.ticket {
            writeln!(f, "To join from another machine: paris-node join {ticket}")?;
        }
        Ok(())
    }
}

/// The parts as a table for a terminal.
pub fn parts_table(parts: &[PartStatus]) -> String {
    let mut table = String::new();
    let number =
        |value: Option<f32>| value.filter(|value| value.is_finite()).map_or("-".into(), |it| format!("{it:.4}"));
    let _ = writeln!(
        table,
        "{:<12} {:<12} {:>4} {:>8} {:>8} {:>12} {:>10} {:>8}",
        "part", "owner", "term", "step", "loss", "checkpoint", "held-out", "held by"
    );
    for part in parts {
        let owner = match (&part.owner, part.owner_is_live) {
            (None, _) => "-".to_owned(),
            (Some(owner), true) => format!("{owner}{}", if part.is_mine { "*" } else { "" }),
            (Some(_), false) => "(silent)".to_owned(),
        };
        let checkpoint = part.checkpoint.as_ref();
        let _ = writeln!(
            table,
            "{:<12} {:<12} {:>4} {:>8} {:>8} {:>12} {:>10} {:>8}",
            part.part,
            owner,
            part.term,
            part.step.map_or("-".into(), |step| step.to_string()),
            number(part.loss),
            checkpoint.map_or("-".into(), |it| format!("step {}", it.step)),
            number(checkpoint.map(|it| it.held_out_loss)),
            checkpoint.map_or("-".into(), |it| format!(
                "{} node{}",
                it.holders,
                if it.holders == 1 { "" } else { "s" }
            )),
        );
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
