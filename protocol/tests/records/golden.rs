//! The bytes of one value of every kind: whoever changes these breaks every run that exists.

use paris_protocol::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId, Previous, Vote},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    manifest::RunId,
    message::{Gossip, Presence, Progress},
    part::Part,
    register::{Digest, Records},
    signed::Verified,
    ticket::{Seed, Ticket},
};

use crate::common::{key, manifest};

fn hex<T: Wire>(value: &T) -> String {
    let bytes = value.to_bytes().unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Long wire forms are pinned by their hash.
fn hashed<T: Wire>(value: &T) -> String {
    Hash::of(&value.to_bytes().unwrap()).to_string()
}

fn run() -> RunId {
    RunId(Hash([1; 32]))
}

fn vote() -> Vote {
    Vote { part: Part::Expert(300), claim: ClaimId(Hash([2; 32])) }
}

fn claim() -> Claim {
    let previous = Previous { claim: ClaimId(Hash([2; 32])), owner: NodeId([3; 32]) };
    Claim { part: Part::Router, term: 2, previous: Some(previous), evidence: Vec::new(), boot: 70_000, seq: 9 }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        part: Part::Expert(1),
        claim: ClaimId(Hash([4; 32])),
        term: 1,
        parent: Some(CheckpointId(Hash([5; 32]))),
        step: 1000,
        held_out_loss: 0.5,
        weights: Blob { hash: Hash([6; 32]), bytes: 1 << 20 },
        state: Blob { hash: Hash([7; 32]), bytes: 1 << 33 },
    }
}

fn presence() -> Presence {
    Presence {
        capacity: 2,
        addresses: vec!["192.0.2.7:4002".parse().unwrap()],
        holds: vec![CheckpointId(Hash([8; 32]))],
        progress: vec![Progress { part: Part::Router, step: 5, loss: 1.0, held_out_loss: 2.0 }],
    }
}

#[test]
fn the_wire_form_of_every_kind_is_what_it_was() {
    let signed = |text: &str| text.to_owned();
    let claim_signed = Verified::sign(&key(1), run(), claim()).signed().clone();
    let vote_signed = Verified::sign(&key(1), run(), vote()).signed().clone();
    let checkpoint_signed = Verified::sign(&key(1), run(), checkpoint()).signed().clone();
    let beat = Gossip::Beat { presence: presence(), claims: vec![claim_signed.clone()] };
    let records = Records { claims: vec![claim_signed.clone()], checkpoints: vec![checkpoint_signed.clone()] };
    let seed = Seed { node: NodeId([3; 32]), gossip: vec!["/ip4/192.0.2.7/tcp/1".into()], blobs: vec![] };
    let found = [
        ("vote", hex(&vote())),
        ("claim", hex(&claim())),
        ("checkpoint", hex(&checkpoint())),
        ("digest", hex(&Digest([(Part::Router, Hash([9; 32]))].into()))),
        ("ticket", Ticket { run: run(), seeds: vec![seed] }.to_string()),
        ("beat", hashed(&beat)),
        ("gossiped vote", hashed(&Gossip::Vote(vote_signed))),
        ("gossiped checkpoint", hashed(&Gossip::Checkpoint(checkpoint_signed))),
        ("records", hashed(&records)),
        ("manifest", manifest(1, 1).id().unwrap().0.to_string()),
        ("claim id", claim().id(run(), NodeId([3; 32])).0.to_string()),
        ("checkpoint id", Verified::sign(&key(1), run(), checkpoint()).id().0.to_string()),
    ];
    let expected = [];
    let expected: Vec<_> = expected.into_iter().map(|(kind, text): (&str, &str)| (kind, signed(text))).collect();
    assert_eq!(found.to_vec(), expected);
}
