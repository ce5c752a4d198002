//! Who may own parts, said to the operator of a node that may not.

use paris_protocol::{
    identity::NodeId,
    manifest::{Admission, Manifest},
    register::Register,
};

/// Why `node` may own no parts, and what to do about it; none if it may.
pub(crate) fn why_not(register: &Register, manifest: &Manifest, node: NodeId) -> Option<String> {
    if register.admits(node) {
        return None;
    }
    let key = node.key();
    Some(match manifest.admission {
        Admission::Invite(_) => format!("waiting for an invitation; give the organiser this key: {key}"),
        Admission::Open | Admission::AllowList(_) => {
            format!("this key is not on the run's list and will own no parts, though it may sample: {key}")
        }
    })
}
