//! The first gate: a gossip message that any peer of the run would call valid.
//!
//! Whether a record is *valid* is a pure question of its bytes, answered here and by the [`register`](crate::register); the answer is the same for
//! everyone. Whether this node *admits* it, relays it or acts on it may depend on what it saw itself: that is the agent's
//! [`Verdict`](crate::agent::Verdict). The two are kept apart by type: the agent takes in only what was [`Heard`].

use std::sync::Arc;

use crate::{
    checkpoint::Checkpoint,
    claim::{Claim, Vote},
    codec::Wire,
    identity::NodeId,
    invitation::Invitation,
    manifest::RunId,
    message::{ADDRESSES_MAX, Gossip, HOLDS_MAX, Presence},
    signed::{Record, Signed, Verified},
};

/// A gossip message within its bounds, all of whose signatures fit the run and the sender.
#[derive(Clone, Debug)]
pub struct Heard {
    pub(crate) from: NodeId,
    pub(crate) said: Said,
}

/// What was heard.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Beat { presence: Arc<Presence>, claims: Vec<Verified<Claim>> },
    Vote(Verified<Vote>),
    Checkpoint(Verified<Checkpoint>),
    Invitation(Verified<Invitation>),
}

impl Heard {
    /// The claims it carries.
    pub fn claims(&self) -> &[Verified<Claim>] {
        match &self.said {
            Said::Beat { claims, .. } => claims.as_slice(),
            Said::Vote(_) | Said::Checkpoint(_) | Said::Invitation(_) => &[],
        }
    }

    /// The vote that it is, if it is one.
    pub fn vote(&self) -> Option<&Verified<Vote>> {
        match &self.said {
            Said::Vote(vote) => Some(vote),
            Said::Beat { .. } | Said::Checkpoint(_) | Said::Invitation(_) => None,
        }
    }

    /// The checkpoint that it announces, if it does.
    pub fn checkpoint(&self) -> Option<&Verified<Checkpoint>> {
        match &self.said {
            Said::Checkpoint(checkpoint) => Some(checkpoint),
            Said::Beat { .. } | Said::Vote(_) | Said::Invitation(_) => None,
        }
    }

    /// Reads a gossip message whose envelope `from` signed, in a run of `parts` parts. None for what no honest peer sends.
    pub fn read(run: RunId, parts: usize, from: NodeId, bytes: &[u8]) -> Option<Self> {
        Self::read_with(parts, from, bytes, &Signatures::Check(run))
    }

    /// Reads a message that this very process signed a moment ago, and believes its signatures unseen. For a simulator of so many agents that
    /// checking them would be most of its work; never for bytes that came from anywhere else.
    pub fn read_own(parts: usize, from: NodeId, bytes: &[u8]) -> Option<Self> {
        Self::read_with(parts, from, bytes, &Signatures::Believe)
    }

    fn read_with(parts: usize, from: NodeId, bytes: &[u8], signatures: &Signatures) -> Option<Self> {
        let said = match Gossip::from_bytes(bytes).ok()? {
            Gossip::Beat { presence, claims } => {
                let bounded = presence.holds.len() <= HOLDS_MAX
                    && presence.addresses.len() <= ADDRESSES_MAX
                    && presence.progress.len() <= parts
                    && claims.len() <= parts;
                if !bounded {
                    return None;
                }
                let claims = claims.into_iter().map(|claim| signatures.of(from, claim)).collect::<Option<_>>()?;
                Said::Beat { presence: Arc::new(presence), claims }
            }
            Gossip::Vote(vote) => Said::Vote(signatures.of(from, vote)?),
            Gossip::Checkpoint(checkpoint) => Said::Checkpoint(signatures.of(from, checkpoint)?),
            Gossip::Invitation(invitation) => Said::Invitation(signatures.of(from, invitation)?),
        };
        Some(Self { from, said })
    }
}

/// What to do about signatures.
enum Signatures {
    Check(RunId),
    Believe,
}

impl Signatures {
    /// The record, if it is `from`'s.
    fn of<T: Record>(&self, from: NodeId, record: Signed<T>) -> Option<Verified<T>> {
        // Whose record it is costs nothing to see; a signature does.
        match self {
            _ if record.unverified().0 != from => None,
            Self::Check(run) => record.verify(*run).ok(),
            Self::Believe => Some(Verified::assume(record)),
        }
    }
}
