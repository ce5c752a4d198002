//! What nodes say to each other.
//!
//! **How it may change.** Nodes of one version and of the next speak with each other, because a wire form never changes; new ones are added.
//! - A kind of [`Gossip`] is added at the end. Who does not know it passes it over and blames nobody.
//! - A kind that replaces another is understood one version before it is sent, so that nobody falls silent to its neighbours of the version before.
//! - A new kind of request goes unanswered by who does not know it; its asker then asks as before.
//! - Names of hashes and signatures carry a version of their own ("paris-node 1 ...").

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, CheckpointId},
    claim::{Claim, Vote},
    codec::Wire,
    invitation::Invitation,
    part::Part,
    signed::Signed,
};

/// The most checkpoints a presence lists as held.
pub const HOLDS_MAX: usize = 512;
/// The most addresses a presence lists.
pub const ADDRESSES_MAX: usize = 8;

/// A message to everyone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Gossip {
    /// Regular sign of life, and the heartbeat of all claims the sender owns.
    Beat {
        /// What the sender is and has.
        presence: Presence,
        /// Its claims, with a greater `seq` than before.
        claims: Vec<Signed<Claim>>,
    },
    /// A claim is over, says the sender.
    Vote(Signed<Vote>),
    /// A new checkpoint.
    Checkpoint(Signed<Checkpoint>),
    /// A key may own parts, says an organiser.
    Invitation(Signed<Invitation>),
}

impl Wire for Gossip {
    const NAME: &'static str = "gossip message";
    const LIMIT: usize = 60 * 1024;
}

impl Gossip {
    /// Kinds of messages that this version knows.
    const KINDS: u8 = 4;
    /// The greatest kind that takes one byte on the wire.
    const KIND_MAX: u8 = 250;

    /// True for bytes that may be a kind of message added in a later version: no kind that is known here.
    pub fn is_of_a_later_version(bytes: &[u8]) -> bool {
        bytes.len() <= Self::LIMIT && bytes.first().is_some_and(|kind| (Self::KINDS..=Self::KIND_MAX).contains(kind))
    }
}

/// What a node says of itself. Not kept, not relayed: the gossip envelope's signature is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// Parts the sender is willing to own at once; 0 for one that only watches.
    pub capacity: u16,
    /// Where its blobs can be fetched.
    pub addresses: Vec<SocketAddr>,
    /// Checkpoints whose blobs it can serve.
    pub holds: Vec<CheckpointId>,
    /// How far the parts it trains have come.
    pub progress: Vec<Progress>,
}

/// How far a part's training has come: for people to read, nothing is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The part.
    pub part: Part,
    /// Optimiser steps done.
    pub step: u64,
    /// Training loss, smoothed.
    pub loss: f32,
    /// Held-out loss when it was last measured; not finite before that.
    pub held_out_loss: f32,
}
