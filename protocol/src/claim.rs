//! Claims: signed statements of owning a part, and the votes that end them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    manifest::RunId,
    part::Part,
    signed::{Record, Signed},
};

/// The most votes a claim may bring as evidence.
pub const VOTES_MAX: usize = 64;

/// A claim's name. It is also its rendezvous hash: it follows from run, part, term, predecessor and owner alone, so every peer can
/// compute which of several claims would win before anyone has made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClaimId(pub Hash);

impl ClaimId {
    /// The name of the claim that `owner` would make.
    pub fn of(run: RunId, part: Part, term: u64, previous: Option<Previous>, owner: NodeId) -> Self {
        let (before, owner_before) = previous.map_or(([0; 32], [0; 32]), |it| (it.claim.0.0, it.owner.0));
        let fields: [&[u8]; 6] = [&run.0.0, &part.key(), &term.to_le_bytes(), &before, &owner_before, &owner.0];
        Self(Hash::of_fields("paris-node 1 claim id", &fields))
    }
}

/// The claim that a claim follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its name.
    pub claim: ClaimId,
    /// Its owner, so that evidence can be checked without it.
    pub owner: NodeId,
}

/// "I own this part." Repeated with a greater `seq` it is the owner's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What is owned.
    pub part: Part,
    /// The fencing number: 1, or one more than the predecessor's.
    pub term: u64,
    /// The claim before; none in term 1.
    pub previous: Option<Previous>,
    /// Why the claim before is over: its owner's vote (a release), or a quorum of others (suspicions).
    pub evidence: Vec<Signed<Vote>>,
    /// Drawn anew at every start of the owner: two machines with one key show.
    pub boot: u64,
    /// Grows with every heartbeat, and across restarts.
    pub seq: u64,
}

impl Claim {
    /// The claim's name if `owner` signed it.
    pub fn id(&self, run: RunId, owner: NodeId) -> ClaimId {
        ClaimId::of(run, self.part, self.term, self.previous, owner)
    }

    /// True if the evidence ends the claim before: the vote of its owner, or those of `quorum` distinct keys that `admits`. A pure check of
    /// this record alone. An owner's own word does not let that same `author` claim again, or one key could count up terms by itself.
    pub fn is_founded(&self, run: RunId, author: NodeId, quorum: usize, admits: impl Fn(NodeId) -> bool) -> bool {
        let Some(previous) = self.previous else { return self.term == 1 && self.evidence.is_empty() };
        if self.term < 2 || self.evidence.len() > VOTES_MAX.min(quorum) {
            return false;
        }
        let mut voters = BTreeSet::new();
        for vote in &self.evidence {
            match vote.clone().verify(run) {
                Ok(vote) if vote.claim == previous.claim && admits(vote.author()) => voters.insert(vote.author()),
                _ => return false,
            };
        }
        (voters.contains(&previous.owner) && previous.owner != author) || voters.len() >= quorum
    }
}

impl Wire for Claim {
    const NAME: &'static str = "claim";
    const LIMIT: usize = 12 * 1024;
}

impl Record for Claim {
    const DOMAIN: &'static str = "claim";
}

/// "That claim is over." From its owner it is a release, from anyone else a suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The part, so that a vote can be filed before its claim is known.
    pub part: Part,
    /// The claim that is over.
    pub claim: ClaimId,
}

impl Wire for Vote {
    const NAME: &'static str = "vote";
    const LIMIT: usize = 64;
}

impl Record for Vote {
    const DOMAIN: &'static str = "vote";
}
