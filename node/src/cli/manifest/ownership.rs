//! The options of `paris-node manifest new` that say when parts change hands, and who may own them.

use anyhow::bail;
use clap::{Args, ValueEnum, builder::ArgPredicate};
use paris_protocol::{
    identity::NodeId,
    manifest::{Admission, Manifest, Ownership},
    part::Part,
};

use crate::runtime::recipe;

/// Weights and resumable state: bytes of a checkpoint for each parameter.
const BYTES_A_PARAMETER: f64 = 16.0;
/// Bytes of a checkpoint that a second of CPU time publishes: stored, hashed, and sent once (docs/performance.md).
const BYTES_PUBLISHED_A_SECOND: f64 = 150e6;
/// Between two losses of one node, seconds: a machine at home that is turned off every night.
const SECONDS_BETWEEN_LOSSES: f64 = 24.0 * 3600.0;
/// However small the model: peers fetch, check and assemble each checkpoint.
const CHECKPOINT_MIN_MS: u32 = 60_000;

/// Times, counts and admission.
#[derive(Args)]
pub(super) struct OwnershipOptions {
    /// Between two heartbeats of an owner, milliseconds.
    #[arg(long, default_value_t = 5_000, help_heading = "Ownership")]
    heartbeat_ms: u32,
    /// Silence after which an owner is suspected, milliseconds.
    #[arg(long, default_value_t = 30_000, help_heading = "Ownership")]
    ttl_ms: u32,
    /// Between two checkpoints of a part, milliseconds. By the size of an expert if not given: what publishing takes is weighed against what is lost with a
    /// node. A trainer's first comes sooner.
    #[arg(long, help_heading = "Ownership")]
    checkpoint_ms: Option<u32>,
    /// Distinct nodes that must suspect a silent owner before its part may be claimed.
    #[arg(long, default_value_t = 1, help_heading = "Ownership")]
    quorum: u16,
    /// Nodes besides the owner that keep a part's latest checkpoint.
    #[arg(long, default_value_t = 2, help_heading = "Ownership")]
    replicas: u16,
    /// Who may own parts and publish. By invitation, this node's key and those of --allow are the organisers' (`paris-node invite`).
    #[arg(
        long,
        default_value = "open",
        default_value_if("allowed", ArgPredicate::IsPresent, "allow-list"),
        help_heading = "Ownership"
    )]
    admission: Policy,
    /// With an allow-list, the key of a node that may own parts besides this one; by invitation, of one that invites. May be repeated. `paris-node init`
    /// prints a key.
    #[arg(long = "allow", value_name = "KEY", help_heading = "Ownership")]
    allowed: Vec<NodeId>,
}

/// Who may own parts and publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Everyone.
    Open,
    /// The organisers, and whom they invite.
    Invite,
    /// The keys that the manifest names.
    AllowList,
}

impl OwnershipOptions {
    /// The times and counts, given or usual.
    pub(super) fn ownership(&self) -> Ownership {
        Ownership {
            heartbeat_ms: self.heartbeat_ms,
            ttl_ms: self.ttl_ms,
            intent_ms: self.heartbeat_ms / 2,
            listen_ms: 2 * self.heartbeat_ms,
            rank_delay_ms: self.heartbeat_ms / 2,
            checkpoint_ms: self.checkpoint_ms.unwrap_or(CHECKPOINT_MIN_MS),
            quorum: self.quorum,
            replicas: self.replicas,
        }
    }

    /// Sets the time that follows from the size of an expert where none was given. The manifest is one that [`Manifest::check`] passed.
    pub(super) fn fit(&self, manifest: &mut Manifest) {
        if self.checkpoint_ms.is_none() {
            let parameters = recipe::part_config(manifest, Part::Expert(0)).parameter_count();
            manifest.ownership.checkpoint_ms = checkpoint_interval_ms(parameters);
        }
    }

    /// Who may own parts, besides `organiser`.
    pub(super) fn admission(&self, organiser: NodeId) -> anyhow::Result<Admission> {
        if self.admission == Policy::Open && !self.allowed.is_empty() {
            bail!("--allow names keys, and with --admission open everyone may own parts: leave one of the two out");
        }
        let mut keys = self.allowed.clone();
        keys.push(organiser);
        keys.sort_unstable();
        keys.dedup();
        Ok(match self.admission {
            Policy::Open => Admission::Open,
            Policy::Invite => Admission::Invite(keys),
            Policy::AllowList => Admission::AllowList(keys),
        })
    }
}

/// Between two checkpoints of an expert of so many parameters, milliseconds: √(2CM), where C is what one costs and M the time between two losses, which
/// makes cost and loss together least (Young, "A first order approximation to the optimum checkpoint interval", 1974).
fn checkpoint_interval_ms(parameters: usize) -> u32 {
    let cost = parameters as f64 * BYTES_A_PARAMETER / BYTES_PUBLISHED_A_SECOND;
    let interval = (2.0 * cost * SECONDS_BETWEEN_LOSSES).sqrt();
    // In whole seconds, for people.
    (interval as u32).saturating_mul(1000).max(CHECKPOINT_MIN_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_larger_models_are_further_apart() {
        let minutes = |parameters| f64::from(checkpoint_interval_ms(parameters)) / 60_000.0;
        assert_eq!(minutes(10_000), 1.0);
        // 192x6, and DiT-XL/2.
        assert!((4.0..6.0).contains(&minutes(4_000_000)), "{}", minutes(4_000_000));
        assert!((50.0..80.0).contains(&minutes(606_000_000)), "{}", minutes(606_000_000));
    }
}
