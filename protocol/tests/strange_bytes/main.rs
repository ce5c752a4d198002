//! A fixed number of strange inputs through the entry points of the fuzz targets: random bytes, and records with bytes changed, cut and joined.

mod entry;

use paris_protocol::{
    checkpoint::{Blob, Checkpoint},
    claim::{Claim, ClaimId, Vote},
    codec::Wire,
    hash::Hash,
    identity::Keypair,
    invitation::{Invitation, InvitedRecords},
    manifest::RunId,
    message::{Gossip, Presence},
    mixture::Mixture,
    part::Part,
    register::{Digest, Records},
    signed::Verified,
};

/// Inputs of an ordinary run; `PARIS_FUZZ_INPUTS` asks for more.
const INPUTS: u64 = 100_000;

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Wire forms to start from. They are signed for a run that nobody is in.
fn seeds() -> Vec<Vec<u8>> {
    let (keypair, run) = (Keypair::from_secret(&[9; 32]), RunId(Hash::of(b"another run")));
    let claim = Claim { part: Part::Expert(1), term: 1, previous: None, evidence: Vec::new(), boot: 1, seq: 300 };
    let claim = Verified::sign(&keypair, run, claim).signed().clone();
    let vote = Vote { part: Part::Router, claim: None, heir: Some(keypair.id()) };
    let vote = Verified::sign(&keypair, run, vote).signed().clone();
    let beat = Gossip::Beat { presence: Presence { capacity: 1, ..Presence::default() }, claims: vec![claim.clone()] };
    let blob = Blob { hash: Hash::of(b"weights"), bytes: 1 };
    let checkpoint = Checkpoint {
        part: Part::Expert(1),
        claim: ClaimId(Hash::of(b"claim")),
        term: 1,
        parent: None,
        step: 9,
        held_out_loss: 0.5,
        weights: blob,
        state: blob,
    };
    let checkpoint = Verified::sign(&keypair, run, checkpoint);
    let digest = Digest([(Part::Expert(0), Hash::of(b"a")), (Part::Router, Hash::of(b"b"))].into());
    let invitation = Invitation { invitee: keypair.id(), number: 1 };
    let invitation = Verified::sign(&keypair, run, invitation).signed().clone();
    vec![
        beat.to_bytes().unwrap(),
        Gossip::Vote(vote).to_bytes().unwrap(),
        Records { claims: vec![claim.clone(), claim], checkpoints: Vec::new() }.to_bytes().unwrap(),
        digest.to_bytes().unwrap(),
        Gossip::Invitation(invitation.clone()).to_bytes().unwrap(),
        InvitedRecords { invitations: vec![invitation], records: Records::default() }.to_bytes().unwrap(),
        Mixture::of(run, [&checkpoint]).to_bytes().unwrap(),
        Vec::new(),
    ]
}

#[test]
fn no_bytes_from_a_stranger_do_harm() {
    let (seeds, seed) = (seeds(), 20_26);
    #[expect(clippy::disallowed_methods, reason = "a test, not the protocol")]
    let inputs = std::env::var("PARIS_FUZZ_INPUTS").ok().and_then(|inputs| inputs.parse().ok()).unwrap_or(INPUTS);
    println!("seed {seed}, {inputs} inputs");
    let mut numbers = Numbers(seed);
    for _ in 0..inputs {
        let mut bytes = seeds[numbers.below(seeds.len())].clone();
        for _ in 0..=numbers.below(4) {
            match numbers.below(4) {
                0 if !bytes.is_empty() => {
                    let at = numbers.below(bytes.len());
                    bytes[at] = [0, 1, 250, 251, 252, 253, 255, numbers.below(256) as u8][numbers.below(8)];
                }
                1 => bytes.truncate(numbers.below(bytes.len() + 1)),
                2 => bytes.extend_from_slice(&seeds[numbers.below(seeds.len())]),
                _ => {
                    let at = numbers.below(bytes.len() + 1);
                    bytes.insert(at, numbers.below(256) as u8);
                }
            }
        }
        entry::decode(&bytes);
        entry::hear(&bytes);
    }
}
