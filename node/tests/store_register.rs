//! The register as it comes back from disk: chains of claims in any order, and records that the register lists no more.

use paris_node::store::{DataDir, Database};
use paris_protocol::{
    checkpoint::{Blob, Checkpoint},
    claim::{Claim, Previous, Vote},
    hash::Hash,
    identity::Keypair,
    part::Part,
    register::CHECKPOINTS_OF_A_CLAIM_MAX,
    signed::Verified,
};

#[path = "../../protocol/tests/common/mod.rs"]
mod common;

/// As many as make it all but sure that the order by hash is not the order by term.
const TERMS: u64 = 12;

#[test]
fn a_chain_of_claims_is_whole_again_and_surplus_checkpoints_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::new(folder.path());
    Database::init(&dir).unwrap();
    let database = Database::open(&dir).unwrap();
    let manifest = common::shared(common::manifest(1, 1));
    let (run, part) = (manifest.id().unwrap(), Part::Expert(0));
    let keys = [common::key(1), common::key(2)];

    // Two nodes that hand a part to each other, again and again.
    let mut before: Option<(Previous, &Keypair)> = None;
    for term in 1..=TERMS {
        let owner = &keys[term as usize % 2];
        let heir = Some(owner.id());
        let release = |(previous, owner): (Previous, &Keypair)| {
            Verified::sign(owner, run, Vote { part, claim: Some(previous.claim), heir }).signed().clone()
        };
        let (previous, evidence) = (before.map(|it| it.0), before.map(release).into_iter().collect());
        let claim = Claim { part, term, previous, evidence, boot: 1, seq: 1 };
        let id = claim.id(run, owner.id());
        database.remember_claim(run, Verified::sign(owner, run, claim).signed()).unwrap();
        for step in 1..=2 * CHECKPOINTS_OF_A_CLAIM_MAX as u64 {
            let blob = Blob { hash: Hash::of(&step.to_le_bytes()), bytes: 10 };
            let step = 100 * term + step;
            let (weights, state) = (blob, blob);
            let record = Checkpoint { part, claim: id, term, parent: None, step, held_out_loss: 1.0, weights, state };
            database.remember_checkpoint(run, Verified::sign(owner, run, record).signed()).unwrap();
        }
        before = Some((Previous { claim: id, owner: owner.id() }, owner));
    }

    let register = database.register(run, manifest.clone()).unwrap();
    assert_eq!(register.current(part).unwrap().term, TERMS);
    let steps = |register: &paris_protocol::register::Register| {
        register.checkpoints(part).iter().map(|checkpoint| checkpoint.step).collect::<Vec<_>>()
    };
    assert_eq!(steps(&register)[0], 100 * TERMS + 2 * CHECKPOINTS_OF_A_CLAIM_MAX as u64);

    database.prune_checkpoints(run, &register).unwrap();
    let memory = database.memory(run).unwrap();
    assert_eq!(memory.records.checkpoints.len(), steps(&register).len());
    assert_eq!(memory.records.claims.len() as u64, TERMS);
    assert_eq!(steps(&database.register(run, manifest).unwrap()), steps(&register));
}
