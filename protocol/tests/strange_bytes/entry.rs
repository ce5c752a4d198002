//! What a stranger's bytes can reach. Fuzzing (`protocol/fuzz`) and the test beside enter here.

use std::{cell::RefCell, sync::Arc, time::Duration};

use paris_protocol::{
    agent::{Action, Agent, Memory, Mirror, Settings},
    checkpoint::Checkpoint,
    claim::{Claim, Vote},
    codec::Wire,
    hash::Hash,
    identity::{Keypair, NodeId},
    invitation::{Invitation, InvitedRecords, InvitedRequest},
    manifest::{
        Additions, Admission, Cluster, Image, MANIFEST_VERSION, Manifest, Ownership, Shard, TextShape, Training,
        Transformer,
    },
    message::Gossip,
    mixture::Mixture,
    register::{Digest, Records},
    ticket::Ticket,
};

fn canonical<T: Wire>(bytes: &[u8]) {
    if let Ok(value) = T::from_bytes(bytes) {
        assert_eq!(value.to_bytes().unwrap(), bytes, "{} has two wire forms", T::NAME);
    }
}

/// Reads the bytes as every kind of record.
pub(crate) fn decode(bytes: &[u8]) {
    canonical::<Gossip>(bytes);
    canonical::<Records>(bytes);
    canonical::<Digest>(bytes);
    canonical::<Manifest>(bytes);
    canonical::<Claim>(bytes);
    canonical::<Vote>(bytes);
    canonical::<Checkpoint>(bytes);
    canonical::<Ticket>(bytes);
    canonical::<Mixture>(bytes);
    canonical::<Invitation>(bytes);
    canonical::<InvitedRequest>(bytes);
    canonical::<InvitedRecords>(bytes);
    let _ = Manifest::read(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Ticket>();
        let _ = text.parse::<Hash>();
    }
}

thread_local! {
    static AGENT: RefCell<Agent> = RefCell::new(agent());
}

/// Hands the bytes to an agent as gossip, as a register exchange and as an answer to one.
pub(crate) fn hear(bytes: &[u8]) {
    // A stranger for each input: one alone would soon be over its quota, and read no more.
    let (stranger, now) = (NodeId(Hash::of(bytes).0), Duration::from_secs(1));
    AGENT.with_borrow_mut(|agent| {
        let before = agent.register().digest();
        agent.receive(now, stranger, bytes);
        if let Some(answer) = agent.answer(now, stranger, bytes) {
            assert!(answer.len() <= Records::LIMIT);
        }
        agent.pulled(now, stranger, bytes);
        let _ = Mixture::read(bytes, agent.run(), agent.manifest());
        agent.tick(now);
        let acts = |action: Action| matches!(action, Action::Train { .. } | Action::Fetch { .. } | Action::Halt(_));
        assert!(!agent.take_actions().any(acts), "moved by what nobody signed");
        assert_eq!(agent.register().digest(), before, "changed by what nobody signed");
    });
}

fn agent() -> Agent {
    let transformer = Transformer { width: 64, depth: 1, heads: 4, patch: 2 };
    let training = Training {
        batch: 1,
        learning_rate: 1e-4,
        warmup_steps: 0,
        clip: 1.0,
        ema_decay: 0.9,
        caption_drop: 0.1,
        steps: 0,
    };
    let shard = Shard { hash: Hash::of(b"shard"), bytes: 1, samples: 1 };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        name: "strange bytes".into(),
        image: Image { channels: 3, size: 16 },
        text: TextShape { tokens: 8, width: 32 },
        expert: transformer,
        router: transformer,
        router_reads_caption: false,
        clusters: vec![Cluster { train: vec![shard], held_out: vec![shard] }; 3],
        expert_training: training,
        router_training: training,
        // It never stops listening, so nothing it does is of its own accord.
        ownership: Ownership {
            heartbeat_ms: 1000,
            ttl_ms: 5000,
            intent_ms: 500,
            listen_ms: u32::MAX,
            rank_delay_ms: 500,
            checkpoint_ms: 1000,
            quorum: 2,
            replicas: 1,
        },
        admission: Admission::Open,
        additions: Additions::default(),
    };
    let settings = Settings { capacity: 1, mirror: Mirror::Replicas };
    let keypair = Keypair::from_secret(&[1; 32]);
    Agent::new(Duration::ZERO, keypair, Arc::new(manifest), settings, 1, Memory::default()).expect("a valid manifest")
}
