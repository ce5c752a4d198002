//! Inviting: in a run by invitation an organiser's node lets others in.

use super::{Action, Agent};
use crate::{
    identity::NodeId,
    invitation::{INVITATIONS_MAX, Invitation},
    message::Gossip,
    register::Merged,
    signed::Verified,
};

/// Why a key was not invited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The manifest has another policy.
    #[error("this run is not by invitation: its manifest says who may own parts, and cannot change")]
    NotByInvitation,
    /// This node's key is no organiser's.
    #[error("this node's key is none of the organisers' that the run's manifest names: ask one of them to invite")]
    NotAnOrganiser,
    /// It does not know yet whom it has invited before.
    #[error("this node has just started and still listens to the others: try again in a moment")]
    Listening,
    /// All numbers are used.
    #[error(
        "this organiser has invited {INVITATIONS_MAX} keys, the most there may be: another organiser can invite more"
    )]
    Full,
}

impl Agent {
    /// True if this node's key may own parts, as far as it knows.
    pub fn is_admitted(&self) -> bool {
        self.register.admits(self.id())
    }

    /// Lets `node` own parts from now on, and tells everyone. False if it may already.
    pub fn invite(&mut self, node: NodeId) -> Result<bool, InviteError> {
        if !self.manifest.is_by_invitation() {
            return Err(InviteError::NotByInvitation);
        }
        if !self.manifest.admits(self.id()) {
            return Err(InviteError::NotAnOrganiser);
        }
        if !self.listened {
            return Err(InviteError::Listening);
        }
        if self.register.admits(node) {
            return Ok(false);
        }
        let number = self.register.next_invitation(self.id()).ok_or(InviteError::Full)?;
        let invitation = Verified::sign(&self.keypair, self.run, Invitation { invitee: node, number });
        self.merge_invitation(invitation.clone());
        self.publish(&Gossip::Invitation(invitation.signed().clone()));
        Ok(true)
    }

    /// Keeps an invitation. Whoever it admits may have claimed, or wish to.
    pub(super) fn merge_invitation(&mut self, invitation: Verified<Invitation>) -> Merged {
        let signed = invitation.signed().clone();
        let merged = self.register.merge_invitation(invitation);
        if merged == Merged::New {
            (self.quiet_until, self.stirred) = (crate::lease::Time::ZERO, true);
            self.act(Action::RememberInvitation(signed));
        }
        merged
    }
}
