//! What the tests of several rooms begin with.

use std::{net::Ipv4Addr, sync::Arc};

use paris_model::device::DeviceChoice;
use paris_protocol::{
    checkpoint::{Blob, Checkpoint},
    claim::Claim,
    manifest::Manifest,
    part::Part,
    signed::Verified,
    ticket::Ticket,
};

use super::{Compute, blob_work::BlobWork};
use crate::{
    blobs::{Blobs, BlobsConfig},
    store::{DataDir, Database},
};

#[path = "../../../protocol/tests/common/mod.rs"]
mod common;

use common::key;
pub(super) use common::{manifest, shared};

/// A blob store on loopback, in the directory of a node that was initialised.
pub(super) async fn blobs(dir: &DataDir) -> Blobs {
    let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    Blobs::start(BlobsConfig { bind, ..BlobsConfig::new(dir.secret().unwrap(), dir.blobs_path()) }).await.unwrap()
}

/// What a node does with blobs that trains nothing, in a directory that is new.
pub(super) async fn blob_work(dir: &DataDir, manifest: &Arc<Manifest>) -> BlobWork {
    Database::init(dir).unwrap();
    let ticket = Ticket::new(manifest.id().unwrap(), []);
    let compute = Compute { device: DeviceChoice::Cpu, recompute: false };
    BlobWork::new(blobs(dir).await, manifest.clone(), ticket, dir, compute, None)
}

/// The claim under which parts are trained.
pub(super) fn claim(manifest: &Manifest, part: Part) -> Verified<Claim> {
    let claim = Claim { part, term: 1, previous: None, evidence: Vec::new(), boot: 1, seq: 1 };
    Verified::sign(&key(1), manifest.id().unwrap(), claim)
}

/// The record of a checkpoint of these weights and state.
pub(super) fn checkpoint(
    manifest: &Manifest,
    part: Part,
    step: u64,
    (weights, state): (Blob, Blob),
) -> Verified<Checkpoint> {
    let (run, owner) = (manifest.id().unwrap(), key(1));
    let claim = claim(manifest, part).id(run, owner.id());
    let record = Checkpoint { part, claim, term: 1, parent: None, step, held_out_loss: 1.0, weights, state };
    Verified::sign(&owner, run, record)
}
