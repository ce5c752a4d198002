//! A mixture names its checkpoints for good, and is believed of anyone or of nobody.

use paris_protocol::{
    checkpoint::Checkpoint,
    claim::ClaimId,
    codec::Wire,
    hash::Hash,
    manifest::{Manifest, RunId},
    mixture::{Mixture, MixtureError},
    part::Part,
    signed::Verified,
};

use crate::common::{key, manifest};

fn checkpoint(run: RunId, part: Part, step: u64) -> Verified<Checkpoint> {
    let blob = paris_protocol::checkpoint::Blob { hash: Hash::of(&step.to_le_bytes()), bytes: step };
    let claim = ClaimId(Hash::of(b"claim"));
    let (term, parent, held_out_loss) = (1, None, 0.5);
    Verified::sign(
        &key(1),
        run,
        Checkpoint { part, claim, term, parent, step, held_out_loss, weights: blob, state: blob },
    )
}

/// A run of two experts and a router, and a checkpoint of each.
fn run() -> (Manifest, RunId, [Verified<Checkpoint>; 3]) {
    let manifest = manifest(2, 1);
    let run = manifest.id().unwrap();
    let parts = [Part::Expert(0), Part::Expert(1), Part::Router];
    let made = [1, 2, 3].map(|step| checkpoint(run, parts[step as usize - 1], step));
    (manifest, run, made)
}

fn read(mixture: &Mixture, run: RunId, manifest: &Manifest) -> Result<Vec<Verified<Checkpoint>>, MixtureError> {
    Mixture::read(&mixture.to_bytes().unwrap(), run, manifest)
}

#[test]
fn equal_checkpoints_are_one_mixture_in_whatever_order_they_come() {
    let (manifest, run, made) = run();
    let mixture = Mixture::of(run, &made);
    assert_eq!(mixture.hash().unwrap(), Mixture::of(run, made.iter().rev()).hash().unwrap());
    assert_eq!(read(&mixture, run, &manifest).unwrap(), made);
    let other = checkpoint(run, Part::Router, 4);
    assert_ne!(Mixture::of(run, made.iter().take(2).chain([&other])).hash().unwrap(), mixture.hash().unwrap());
}

#[test]
fn a_mixture_may_lack_parts() {
    let (manifest, run, made) = run();
    let experts = Mixture::of(run, &made).only(|part| part != Part::Router);
    assert_eq!(read(&experts, run, &manifest).unwrap(), made[..2]);
    assert_eq!(experts.hash().unwrap(), Mixture::of(run, &made[..2]).hash().unwrap());
}

#[test]
fn a_mixture_of_another_run_is_told_apart_from_a_forged_one() {
    let (ours, run, made) = run();
    let theirs = manifest(3, 1).id().unwrap();
    assert!(matches!(read(&Mixture::of(theirs, &made), run, &ours), Err(MixtureError::OtherRun { .. })));
    // Records of another run under this run's name.
    let foreign = checkpoint(theirs, Part::Router, 3);
    let mixed = Mixture::of(run, made.iter().take(2).chain([&foreign]));
    assert!(matches!(read(&mixed, run, &ours), Err(MixtureError::Signature(Part::Router))));
}

#[test]
fn a_part_that_the_run_lacks_or_that_comes_twice_is_refused() {
    let (manifest, run, made) = run();
    let beyond = checkpoint(run, Part::Expert(2), 1);
    assert!(matches!(read(&Mixture::of(run, [&beyond]), run, &manifest), Err(MixtureError::Part(Part::Expert(2)))));
    // Twice the same record, spliced on the wire: one after the list's length, which follows the version and the run.
    let mut bytes = Mixture::of(run, &made[..1]).to_bytes().unwrap();
    let (count, record) = (33, bytes[34..].to_vec());
    assert_eq!(bytes[count], 1);
    bytes[count] = 2;
    bytes.extend(record);
    assert!(matches!(Mixture::read(&bytes, run, &manifest), Err(MixtureError::Part(Part::Expert(0)))));
}

#[test]
fn a_newer_mixture_is_called_newer_and_not_garbage() {
    let (manifest, run, made) = run();
    let mut bytes = Mixture::of(run, &made).to_bytes().unwrap();
    bytes[0] = 2;
    assert!(matches!(Mixture::read(&bytes, run, &manifest), Err(MixtureError::Version(2))));
    assert!(matches!(Mixture::read(&[], run, &manifest), Err(MixtureError::Codec(_))));
}

#[test]
fn the_largest_run_has_a_mixture() {
    let run = RunId(Hash::of(b"a run"));
    let largest = |part| {
        let mut record: Checkpoint = (*checkpoint(run, part, u64::MAX)).clone();
        record.parent = Some(paris_protocol::checkpoint::CheckpointId(Hash([9; 32])));
        record.term = u64::MAX;
        Verified::sign(&key(1), run, record)
    };
    let all: Vec<_> = (0..1024).map(Part::Expert).chain([Part::Router]).map(largest).collect();
    let len = Mixture::of(run, &all).to_bytes().unwrap().len();
    assert!(len < Mixture::LIMIT * 2 / 3, "{len} bytes");
}
