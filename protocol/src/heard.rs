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
    manifest::RunId,
    message::{ADDRESSES_MAX, Gossip, HOLDS_MAX, Presence},
    part::Part,
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
}

impl Heard {
    /// The parts whose claims it carries.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let claims = match &self.said {
            Said::Beat { claims, .. } => claims.as_slice(),
            Said::Vote(_) | Said::Checkpoint(_) => &[],
        };
        claims.iter().map(|claim| claim.part)
    }

    /// Reads a gossip message whose envelope `from` signed, in a run of `parts` parts. None for what no honest peer sends.
    pub fn read(run: RunId, parts: usize, from: NodeId, bytes: &[u8]) -> Option<Self> {
        fn own<T: Record>(run: RunId, from: NodeId, record: Signed<T>) -> Option<Verified<T>> {
            // Whose record it is costs nothing to see; a signature does.
            (record.unverified().0 == from).then(|| record.verify(run).ok()).flatten()
        }
        let said = match Gossip::from_bytes(bytes).ok()? {
            Gossip::Beat { presence, claims } => {
                let bounded = presence.holds.len() <= HOLDS_MAX
                    && presence.addresses.len() <= ADDRESSES_MAX
                    && presence.progress.len() <= parts
                    && claims.len() <= parts;
                if !bounded {
                    return None;
                }
                let claims = claims.into_iter().map(|claim| own(run, from, claim)).collect::<Option<_>>()?;
                Said::Beat { presence: Arc::new(presence), claims }
            }
            Gossip::Vote(vote) => Said::Vote(own(run, from, vote)?),
            Gossip::Checkpoint(checkpoint) => Said::Checkpoint(own(run, from, checkpoint)?),
        };
        Some(Self { from, said })
    }
}
