//! The bytes of one value of every kind: whoever changes these breaks every run that exists.

use paris_protocol::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId, Previous, Vote},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    invitation::{Invitation, InvitedRecords, InvitedRequest},
    manifest::{Additions, Encoders, ImageCodec, Manifest, RunId, TextEncoder, TextFiles},
    message::{Gossip, Presence, Progress},
    mixture::Mixture,
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
    Vote { part: Part::Expert(300), claim: Some(ClaimId(Hash([2; 32]))), heir: Some(NodeId([3; 32])) }
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

/// A run on Stable Diffusion's latents and CLIP's captions, whose experts start from a base.
fn with_pretrained() -> Manifest {
    let text = TextEncoder::Clip(TextFiles { weights: Hash([10; 32]), tokenizer: Hash([11; 32]) });
    let encoders = Encoders { text, image: ImageCodec::Vae { weights: Hash([12; 32]) } };
    let base = Some(Blob { hash: Hash([13; 32]), bytes: 1000 });
    read_again(Additions { encoders, base, ..Additions::default() })
}

/// A run of three clusters, the experts of two of which predict noise.
fn with_noise() -> Manifest {
    read_again(Additions { epsilon_experts: vec![0, 2], ..Additions::default() })
}

fn read_again(additions: Additions) -> Manifest {
    let manifest = Manifest { version: additions.version(), additions, ..manifest(3, 1) };
    manifest.check().unwrap();
    assert_eq!(Manifest::read(&manifest.to_bytes().unwrap()).unwrap(), manifest);
    manifest
}

#[test]
fn the_wire_form_of_every_kind_is_what_it_was() {
    let claim_signed = Verified::sign(&key(1), run(), claim()).signed().clone();
    let vote_signed = Verified::sign(&key(1), run(), vote()).signed().clone();
    let checkpoint_signed = Verified::sign(&key(1), run(), checkpoint()).signed().clone();
    let beat = Gossip::Beat { presence: presence(), claims: vec![claim_signed.clone()] };
    let records = Records { claims: vec![claim_signed.clone()], checkpoints: vec![checkpoint_signed.clone()] };
    let digest = Digest([(Part::Router, Hash([9; 32]))].into());
    let invitation = Invitation { invitee: NodeId([3; 32]), number: 300 };
    let invited = Verified::sign(&key(1), run(), invitation).signed().clone();
    let seed = Seed { node: NodeId([3; 32]), gossip: vec!["/ip4/192.0.2.7/tcp/1".into()], blobs: vec![] };
    let found = [
        ("vote", hex(&vote())),
        ("claim", hex(&claim())),
        ("checkpoint", hex(&checkpoint())),
        ("digest", hex(&digest)),
        ("ticket", Ticket::new(run(), [seed]).to_string()),
        ("beat", hashed(&beat)),
        ("gossiped vote", hashed(&Gossip::Vote(vote_signed))),
        ("gossiped checkpoint", hashed(&Gossip::Checkpoint(checkpoint_signed))),
        ("invitation", hex(&invitation)),
        ("gossiped invitation", hashed(&Gossip::Invitation(invited.clone()))),
        ("invited request", hashed(&InvitedRequest { invitations: Hash([9; 32]), digest: digest.clone() })),
        ("invited records", hashed(&InvitedRecords { invitations: vec![invited], records: records.clone() })),
        ("records", hashed(&records)),
        ("mixture", Mixture::of(run(), [&Verified::sign(&key(1), run(), checkpoint())]).hash().unwrap().to_string()),
        ("manifest", manifest(1, 1).id().unwrap().0.to_string()),
        ("manifest with pretrained networks", with_pretrained().id().unwrap().0.to_string()),
        ("manifest with experts of noise", with_noise().id().unwrap().0.to_string()),
        ("claim id", claim().id(run(), NodeId([3; 32])).0.to_string()),
        ("checkpoint id", Verified::sign(&key(1), run(), checkpoint()).id().0.to_string()),
    ];
    let expected = [
        (
            "vote",
            "00fb2c0101020202020202020202020202020202020202020202020202020202020202020201030303030303030303\
             0303030303030303030303030303030303030303030303",
        ),
        (
            "claim",
            "010201020202020202020202020202020202020202020202020202020202020202020203030303030303030303030303\
             0303030303030303030303030303030303030300fc7011010009",
        ),
        (
            "checkpoint",
            "000104040404040404040404040404040404040404040404040404040404040404040101050505050505050505050505\
             0505050505050505050505050505050505050505fbe8030000003f060606060606060606060606060606060606060606\
             0606060606060606060606fc000010000707070707070707070707070707070707070707070707070707070707070707\
             fd0000000002000000",
        ),
        ("digest", "01010909090909090909090909090909090909090909090909090909090909090909"),
        (
            "ticket",
            "paris14ms4jiqbaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqgaydambqgaydambqgaydambqgaydam\
             bqgaydambqgaydambqgaybcqxws4buf4ytsmrogaxdelrxf52gg4bpgeaa",
        ),
        ("beat", "e4ca28808a5a277b92c5bfa24f271579ab8cbc9f18f34f921355ba9dd71f68c7"),
        ("gossiped vote", "25725085dc3a05d6971ad88813f7dfca70c5b7c79de1d8e50381d55f22dc1a68"),
        ("gossiped checkpoint", "5728d69ca47e028890ad5b4b8e6c26f331195d2ff76723a6ffbbf85c896b1767"),
        ("invitation", "0303030303030303030303030303030303030303030303030303030303030303fb2c01"),
        ("gossiped invitation", "f8900da2dd5ff44aa489e27aec759dbebac71f8136c7bcf15451dacb56e1103a"),
        ("invited request", "e1d2bc16c2d46cffc1914a9f73df26065140cb52a48d5cd3af3549f1f75f8286"),
        ("invited records", "af67cd82108c07cb4fb3d08b59234e1d3254b49dfa7292de37d7bfeacd320340"),
        ("records", "35b164ad718e33dcefa91f5bce30e3aef323c1b51151f73eebd27ee17b72aa87"),
        ("mixture", "3c001af307eb9d3b696870f706e3c1940cf0e23c4fb80b00d2c2424d7949857e"),
        ("manifest", "a19dd389cb0b747b4340cb167548217bddcc2a427ca821285263a70b1d0838ea"),
        ("manifest with pretrained networks", "253f3a77bd0301459c5069e37644ba3717d64c6f115e16f422c34f12d7dc1b5e"),
        ("manifest with experts of noise", "a65e01cda71a164b5ffff39792cea05ea722dab0a79ef5d2f2e04a2cad1e589b"),
        ("claim id", "9c3914a1d5434e3b0799b60525fba0c65b2b72ce15867c1538e839393cd93bf8"),
        ("checkpoint id", "9a9433ff759b924add864a287496b11a667a1fc051bfc8894ab5dd9bf39f20ae"),
    ];
    for ((kind, found), (of, expected)) in found.iter().zip(expected) {
        assert_eq!((*kind, found.as_str()), (of, expected));
    }
    assert_eq!(found.len(), expected.len());
}
