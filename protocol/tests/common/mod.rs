//! A small run for tests.

use std::sync::Arc;

use paris_protocol::{
    hash::Hash,
    identity::Keypair,
    manifest::{
        Additions, Admission, Cluster, Image, MANIFEST_VERSION, Manifest, Ownership, Shard, TextShape, Training,
        Transformer,
    },
};

/// A valid manifest with this many clusters.
pub(crate) fn manifest(clusters: u8, quorum: u16) -> Manifest {
    let transformer = Transformer { width: 64, depth: 2, heads: 4, patch: 2 };
    let training = Training {
        batch: 16,
        learning_rate: 1e-4,
        warmup_steps: 10,
        clip: 1.0,
        ema_decay: 0.999,
        caption_drop: 0.1,
        steps: 0,
    };
    let shard = |text: &[u8]| Shard { hash: Hash::of(text), bytes: 1000, samples: 10 };
    let cluster = |number| Cluster { train: vec![shard(&[number, 0])], held_out: vec![shard(&[number, 1])] };
    Manifest {
        version: MANIFEST_VERSION,
        name: "test".into(),
        image: Image { channels: 3, size: 16 },
        text: TextShape { tokens: 8, width: 32 },
        expert: transformer,
        router: transformer,
        router_reads_caption: false,
        clusters: (0..clusters).map(cluster).collect(),
        expert_training: training,
        router_training: training,
        ownership: Ownership {
            heartbeat_ms: 2000,
            ttl_ms: 8000,
            intent_ms: 500,
            listen_ms: 3000,
            rank_delay_ms: 500,
            checkpoint_ms: 10_000,
            quorum,
            replicas: 2,
        },
        admission: Admission::Open,
        additions: Additions::default(),
    }
}

/// The key with this number.
pub(crate) fn key(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

/// For whoever shares it.
#[allow(dead_code, reason = "each test crate uses a part of this module")]
pub(crate) fn shared(manifest: Manifest) -> Arc<Manifest> {
    manifest.check().expect("a valid manifest");
    Arc::new(manifest)
}
