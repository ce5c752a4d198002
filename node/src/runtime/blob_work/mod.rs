//! What the driver has done with blobs in the background: checkpoints stored, fetched, checked and exported, shards gathered.

mod checkpoints;
mod exports;
mod gathering;

use std::{net::SocketAddr, path::Path, sync::Arc};

use libp2p::Multiaddr;
use paris_model::{config::PartConfig, text::TextEncoder};
use paris_protocol::{
    codec::Wire,
    identity::NodeId,
    manifest::{Manifest, RunId},
    ticket::Ticket,
};

pub(super) use self::checkpoints::CheckError;
use super::{Compute, addresses};
use crate::{blobs::Blobs, hex, store::DataDir};

/// Cheap to clone; every clone works on the same store.
#[derive(Clone)]
pub(super) struct BlobWork {
    blobs: Blobs,
    manifest: Arc<Manifest>,
    ticket: Arc<Ticket>,
    weights_dir: Arc<Path>,
    shards_dir: Arc<Path>,
    compute: Compute,
    /// The run's text encoder; none where nothing is trained.
    text: Option<Arc<dyn TextEncoder>>,
}

impl BlobWork {
    pub(super) fn new(
        blobs: Blobs,
        manifest: Arc<Manifest>,
        ticket: Ticket,
        dir: &DataDir,
        compute: Compute,
        text: Option<Arc<dyn TextEncoder>>,
    ) -> Self {
        let (weights_dir, shards_dir) = (dir.weights_path().into(), dir.shards_path().into());
        Self { blobs, manifest, ticket: Arc::new(ticket), weights_dir, shards_dir, compute, text }
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.blobs.addresses()
    }

    /// Takes in where a peer says that it serves blobs. A seed may be reached where the ticket says as well.
    pub(super) fn learn(&self, peer: NodeId, mut addresses: Vec<SocketAddr>) {
        let seeds = self.ticket.seeds().iter().filter(|seed| seed.node == peer);
        addresses.extend(seeds.flat_map(|seed| &seed.blobs));
        self.blobs.learn(peer, addresses);
    }

    pub(super) async fn shutdown(&self) {
        self.blobs.shutdown().await;
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn run(&self) -> RunId {
        self.ticket.run()
    }

    /// Peers that the ticket names.
    pub(super) fn seeds(&self) -> impl Iterator<Item = NodeId> {
        self.ticket.seeds().iter().map(|seed| seed.node)
    }

    /// A ticket that names this node first, then the seeds it joined with.
    pub(super) fn ticket(&self, node: NodeId, listening: &[Multiaddr]) -> Ticket {
        let this = addresses::as_seed(node, listening, self.blobs.addresses());
        let others = self.ticket.seeds().iter().filter(|seed| seed.node != node).cloned();
        Ticket::new(self.ticket.run(), [this].into_iter().chain(others).take(3))
    }

    pub(super) fn manifest_hex(&self) -> String {
        hex::encode(&self.manifest.to_bytes().unwrap_or_default())
    }
}

/// The most bytes that the weights and the resumable state of a part can have: averages; parameters and moments; and some header each.
pub(super) fn size_limits(config: &PartConfig) -> (u64, u64) {
    let parameters = 4 * config.parameter_count() as u64;
    (parameters + (1 << 20), 3 * parameters + (2 << 20))
}
