//! Claims: signed statements of owning a part, and the votes that end them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    codec::Wire,
    hash::{Fields, Hash},
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
        Names::following(run, part, term, previous).of(owner)
    }
}

/// The names that the claims after one claim would have, one for every possible owner: all but the owner is hashed once.
#[derive(Clone, Debug)]
pub(crate) struct Names(Fields);

impl Names {
    /// Names of claims on `part` in `term` after `previous`.
    pub(crate) fn following(run: RunId, part: Part, term: u64, previous: Option<Previous>) -> Self {
        let (before, owner_before) = previous.map_or(([0; 32], [0; 32]), |it| (it.claim.0.0, it.owner.0));
        let mut fields = Fields::of("paris-node 1 claim id");
        let known: [&[u8]; 5] = [&run.0.0, &part.key(), &term.to_le_bytes(), &before, &owner_before];
        known.iter().for_each(|field| fields.add(field));
        Self(fields)
    }

    /// The name of `owner`'s claim.
    pub(crate) fn of(&self, owner: NodeId) -> ClaimId {
        let mut fields = self.0.clone();
        fields.add(&owner.0);
        ClaimId(fields.hash())
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
    /// Votes that name this claim's owner as heir: that of the owner before (a release), or those of a quorum, the owner's own word included.
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

    /// True if the evidence makes `author` the heir: the vote of the owner before, or votes of so many distinct others that they and
    /// the author are `quorum` keys (the register looks whether they are admitted). A pure check of this record alone. Every vote names its heir, so nobody can use later what was said
    /// for another; and an owner's own word does not let that same `author` claim again, or one key could count up terms by itself.
    pub fn is_founded(&self, run: RunId, author: NodeId, quorum: usize) -> bool {
        let term_fits = match self.previous {
            None => self.term == 1,
            Some(_) => self.term >= 2,
        };
        if !term_fits || self.evidence.len() > quorum.saturating_sub(1).clamp(1, VOTES_MAX) {
            return false;
        }
        let over = self.previous.map(|it| it.claim);
        let mut voters = BTreeSet::new();
        for vote in &self.evidence {
            match vote.clone().verify(run) {
                Ok(vote) if vote.part == self.part && vote.claim == over && vote.heir == Some(author) => {
                    voters.insert(vote.author())
                }
                _ => return false,
            };
        }
        voters.remove(&author);
        self.previous.is_some_and(|it| voters.contains(&it.owner)) || voters.len() + 1 >= quorum
    }
}

impl Wire for Claim {
    const NAME: &'static str = "claim";
    const LIMIT: usize = 12 * 1024;
}

impl Record for Claim {
    const DOMAIN: &'static str = "claim";
}

/// "That claim is over, and that one may follow." From its owner it is a release, from anyone else a suspicion; without an heir only the first half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The part, so that a vote can be filed before its claim is known.
    pub part: Part,
    /// The claim that is over; none where nobody ever owned the part.
    pub claim: Option<ClaimId>,
    /// Who may claim the part next.
    pub heir: Option<NodeId>,
}

impl Wire for Vote {
    const NAME: &'static str = "vote";
    const LIMIT: usize = 96;
}

impl Record for Vote {
    const DOMAIN: &'static str = "vote";
}
