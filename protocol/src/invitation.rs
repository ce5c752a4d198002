//! Invitations: in a run by invitation an organiser's signed word lets a key own parts.
//!
//! The manifest names the organisers. An invitation is a record like any other: checked purely, kept in every register, spread by gossip and brought by register
//! exchanges. Each has a number below [`INVITATIONS_MAX`], so that no organiser's key, however it came to be misused, can fill anybody's memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    register::{Digest, Records},
    signed::{Record, Signed, Verified},
};

/// How many keys one organiser may invite.
pub const INVITATIONS_MAX: u16 = 512;

/// "This key may own parts." It holds for the run, and cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Who may.
    pub invitee: NodeId,
    /// Which of its author's invitations it is, below [`INVITATIONS_MAX`].
    pub number: u16,
}

impl Wire for Invitation {
    const NAME: &'static str = "invitation";
    const LIMIT: usize = 48;
}

impl Record for Invitation {
    const DOMAIN: &'static str = "invitation";
}

/// The request of a register exchange in a run by invitation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitedRequest {
    /// Hash over the invitations that the asker knows.
    pub invitations: Hash,
    /// Its registers.
    pub digest: Digest,
}

impl Wire for InvitedRequest {
    const NAME: &'static str = "register digest with invitations";
    const LIMIT: usize = Digest::LIMIT;
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InvitedRecords {
    /// All invitations, if the asker's differ.
    pub invitations: Vec<Signed<Invitation>>,
    /// The records that differ.
    pub records: Records,
}

impl Wire for InvitedRecords {
    const NAME: &'static str = "register exchange with invitations";
    const LIMIT: usize = Records::LIMIT;
}

/// All invitations known of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Invitations {
    /// By author and number.
    known: BTreeMap<(NodeId, u16), Verified<Invitation>>,
    /// How many invitations each invitee has.
    invitees: BTreeMap<NodeId, u32>,
}

impl Invitations {
    /// Adds one whose author and number were found good. Of two under one number, which only an organiser that lost its register signs, the greater key
    /// stands, whatever the order in which they came. True if something changed.
    pub(crate) fn add(&mut self, invitation: Verified<Invitation>) -> bool {
        let slot = (invitation.author(), invitation.number);
        let before = self.known.get(&slot).map(|known| known.invitee);
        if before >= Some(invitation.invitee) {
            return false;
        }
        if let Some(count) = before.and_then(|before| self.invitees.get_mut(&before)) {
            *count -= 1;
        }
        *self.invitees.entry(invitation.invitee).or_default() += 1;
        self.known.insert(slot, invitation);
        true
    }

    /// True if some organiser invited the key.
    pub(crate) fn invites(&self, node: NodeId) -> bool {
        self.invitees.get(&node).is_some_and(|count| *count > 0)
    }

    /// True if this very invitation is known.
    pub(crate) fn has(&self, signed: &Signed<Invitation>) -> bool {
        let (author, invitation) = signed.unverified();
        self.known.get(&(author, invitation.number)).is_some_and(|known| known.signed() == signed)
    }

    /// The least number that `organiser` has not used.
    pub(crate) fn next_number(&self, organiser: NodeId) -> Option<u16> {
        (0..INVITATIONS_MAX).find(|number| !self.known.contains_key(&(organiser, *number)))
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Signed<Invitation>> {
        self.known.values().map(Verified::signed)
    }

    /// Equal hashes, equal invitations.
    pub(crate) fn digest(&self) -> Hash {
        let mut bytes = Vec::with_capacity(self.known.len() * 66);
        for ((author, number), invitation) in &self.known {
            bytes.extend_from_slice(&author.0);
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&invitation.invitee.0);
        }
        Hash::of_fields("paris-node 1 invitations digest", &[&bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Keypair, manifest::RunId};

    fn invitation(organiser: u8, invitee: u8, number: u16) -> Verified<Invitation> {
        let record = Invitation { invitee: NodeId([invitee; 32]), number };
        Verified::sign(&Keypair::from_secret(&[organiser; 32]), RunId(Hash([1; 32])), record)
    }

    #[test]
    fn what_stands_does_not_depend_on_the_order_in_which_invitations_come() {
        // Two under one number, and one key invited twice.
        let all = [invitation(1, 7, 0), invitation(1, 9, 0), invitation(1, 8, 1), invitation(2, 8, 0)];
        let merged = |order: [usize; 4]| {
            let mut invitations = Invitations::default();
            for at in order {
                invitations.add(all[at].clone());
            }
            let invited = [7, 8, 9].map(|key| invitations.invites(NodeId([key; 32])));
            (invitations.digest(), invited, invitations.next_number(all[0].author()))
        };
        let first = merged([0, 1, 2, 3]);
        assert_eq!((first.1, first.2), ([false, true, true], Some(2)));
        for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 1, 0, 3]] {
            assert_eq!(merged(order), first, "{order:?}");
        }
    }

    #[test]
    fn a_number_is_used_once() {
        let mut invitations = Invitations::default();
        for number in 0..INVITATIONS_MAX {
            assert_eq!(invitations.next_number(invitation(1, 0, 0).author()), Some(number));
            assert!(invitations.add(invitation(1, 1, number)));
            assert!(!invitations.add(invitation(1, 1, number)), "it is known");
        }
        assert_eq!(invitations.next_number(invitation(1, 0, 0).author()), None);
    }
}
