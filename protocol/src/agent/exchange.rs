//! Register exchanges: what this node asks peers with, answers them, and takes in of their answers.

use super::Agent;
use crate::{
    codec::Wire,
    identity::NodeId,
    invitation::{Invitation, InvitedRecords, InvitedRequest},
    lease::Time,
    register::{Digest, Merged, Records},
    signed::Signed,
};

impl Agent {
    /// What to ask a peer with, for [`Action::Pull`](super::Action::Pull).
    pub fn request(&self) -> Option<Vec<u8>> {
        let digest = self.register.digest();
        match self.manifest.is_by_invitation() {
            false => digest.to_bytes().ok(),
            true => InvitedRequest { invitations: self.register.invitations_digest(), digest }.to_bytes().ok(),
        }
    }

    /// Answers a peer's register exchange. None for a request that no honest peer sends, and for more of them than one peer needs.
    pub fn answer(&mut self, now: Time, from: NodeId, request: &[u8]) -> Option<Vec<u8>> {
        if !self.requests.allow(now, from, 0) {
            return None;
        }
        if !self.manifest.is_by_invitation() {
            return self.register.differing(&Digest::from_bytes(request).ok()?).to_bytes().ok();
        }
        let InvitedRequest { invitations, digest } = InvitedRequest::from_bytes(request).ok()?;
        self.register.differing_with_invitations(invitations, &digest).to_bytes().ok()
    }

    /// Takes in a peer's answer. False if no honest peer answers so.
    pub fn pulled(&mut self, now: Time, from: NodeId, answer: &[u8]) -> bool {
        let read = match self.manifest.is_by_invitation() {
            false => Records::from_bytes(answer).map(|records| InvitedRecords { invitations: Vec::new(), records }),
            true => InvitedRecords::from_bytes(answer),
        };
        let honest = match read {
            Ok(InvitedRecords { invitations, records }) => {
                // Invitations first: who they admit may be the author of the rest.
                let honest = self.take_in_invitations(invitations);
                self.take_in(now, Some(from), records) && honest
            }
            Err(_) => false,
        };
        self.note_answer(now, from, honest);
        honest
    }

    /// Merges records from a peer, or from the local store.
    pub(super) fn take_in(&mut self, now: Time, from: Option<NodeId>, records: Records) -> bool {
        let Records { mut claims, mut checkpoints } = records;
        // Peers repeat whole parts where anything differs: most of it is known, and checking signatures is what costs.
        claims.retain(|claim| !self.register.has_claim(claim));
        checkpoints.retain(|checkpoint| !self.register.has_checkpoint(checkpoint));
        let news = claims.len();
        let mut claims: Vec<_> = claims.into_iter().flat_map(|claim| claim.verify(self.run)).collect();
        let mut honest = claims.len() == news;
        // Predecessors first, whatever the order they came in.
        claims.sort_by_key(|claim| claim.term);
        for claim in claims {
            honest &= !matches!(self.merge_claim(now, claim), Merged::Invalid(_));
        }
        for checkpoint in checkpoints {
            match checkpoint.verify(self.run) {
                Ok(checkpoint) => honest &= !matches!(self.merge_checkpoint(checkpoint), Merged::Invalid(_)),
                Err(_) => honest = false,
            }
        }
        honest || from.is_none()
    }

    /// The same for invitations.
    pub(super) fn take_in_invitations(&mut self, mut invitations: Vec<Signed<Invitation>>) -> bool {
        invitations.retain(|invitation| !self.register.has_invitation(invitation));
        let mut honest = true;
        for invitation in invitations {
            match invitation.verify(self.run) {
                Ok(invitation) => honest &= !matches!(self.merge_invitation(invitation), Merged::Invalid(_)),
                Err(_) => honest = false,
            }
        }
        honest
    }
}
