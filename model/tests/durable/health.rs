//! Steps that fail: tried again, then passed over, and given up in the end.

use std::{fs, sync::atomic::Ordering::Relaxed};

use paris_model::{
    durable::{Durable, DurableError, FALLBACKS_MAX, FORGIVEN_AFTER_STEPS, Fallback, Origin, Outcome},
    snapshot::Snapshots,
};

use super::part::{PART, Pictures, advance, begin, step, successor};

/// Pictures of which one is broken so often.
fn broken(picture: usize, times: u32) -> Pictures {
    let pictures = Pictures::default();
    pictures.broken[picture].store(times, Relaxed);
    pictures
}

/// Steps until training goes back.
fn until_it_goes_back(durable: &mut Durable, data: &Pictures) -> Fallback {
    loop {
        if let Outcome::WentBack(fallback) = durable.step(data).unwrap() {
            return fallback;
        }
    }
}

/// Steps until training cannot go on.
fn until_it_cannot(durable: &mut Durable, data: &Pictures) -> DurableError {
    loop {
        if let Err(error) = durable.step(data) {
            return error;
        }
    }
}

fn trained(steps: usize) -> (tempfile::TempDir, Durable) {
    let folder = tempfile::tempdir().unwrap();
    let mut durable = begin(&Snapshots::new(folder.path(), PART), None);
    advance(&mut durable, steps);
    (folder, durable)
}

#[test]
fn a_failure_that_does_not_repeat_costs_no_bit() {
    let (_folder, mut durable) = trained(1);
    // Any machine computes wrong once: the picture is whole the second time.
    let data = broken(3, 1);
    let fallback = until_it_goes_back(&mut durable, &data);
    assert_eq!((fallback.step, fallback.skipped, fallback.number), (1, 0, 1));
    while durable.trainer().step_count() < 8 {
        step(&mut durable, &data);
    }
    let (_other, uninterrupted) = trained(8);
    assert_eq!(durable.trainer().state().unwrap(), uninterrupted.trainer().state().unwrap());
}

#[test]
fn a_batch_that_fails_twice_is_passed_over_and_the_state_says_so() {
    let (_folder, mut durable) = trained(1);
    let data = broken(3, 2);
    let failed = until_it_goes_back(&mut durable, &data);
    let again = until_it_goes_back(&mut durable, &data);
    assert!(failed.reason.to_string().contains("NaN") && failed.skipped == 0, "{failed:?}");
    assert!(again.step == 1 && again.skipped > 0 && again.number == 2, "{again:?}");
    assert_eq!(durable.trainer().cursor(), 1 + again.skipped);
    for _ in 0..3 {
        step(&mut durable, &data);
    }
    // Whoever takes over from the published state draws the same batches.
    let mut heir = successor(&durable.publish().unwrap());
    assert_eq!((heir.step_count(), heir.cursor()), (4, 4 + again.skipped));
    assert_eq!(heir.step(&data).unwrap().loss.to_bits(), step(&mut durable, &data).loss.to_bits());
    assert_eq!(heir.state().unwrap(), durable.trainer().state().unwrap());
}

#[test]
fn a_failure_between_the_first_publication_and_the_next_snapshot_goes_back_before_it() {
    let (folder, mut durable) = trained(2);
    let published = durable.publish().unwrap();
    let fallback = until_it_goes_back(&mut durable, &broken(3, 1));
    assert_eq!((fallback.step, fallback.number), (2, 1));
    drop(durable);
    // Whoever began at what was published is of another history than the snapshots from before it, even where it could write none of its own.
    fs::create_dir(folder.path().join(format!("{PART}.writing"))).unwrap();
    let mut durable = begin(&Snapshots::new(folder.path(), PART), Some(published));
    assert_eq!(durable.origin(), Origin::Published);
    let error = until_it_cannot(&mut durable, &broken(3, 1));
    assert!(matches!(error, DurableError::NoSnapshot(_)), "{error}");
}

#[test]
fn a_part_that_goes_on_failing_is_given_up_with_the_reason() {
    let (_folder, mut durable) = trained(2);
    let data = Pictures::default();
    data.broken.iter().for_each(|broken| broken.store(u32::MAX, Relaxed));
    for number in 1..=FALLBACKS_MAX {
        assert_eq!(until_it_goes_back(&mut durable, &data).number, number);
    }
    let error = durable.step(&data).unwrap_err();
    assert!(matches!(error, DurableError::GivenUp(_)), "{error}");
    let said = error.to_string();
    assert!(said.contains("loss NaN") && said.contains("gone back") && said.contains("3 times"), "{said}");
}

#[test]
fn failures_far_apart_are_not_added_up() {
    let (_folder, mut durable) = trained(0);
    for number in [1, 2] {
        assert_eq!(until_it_goes_back(&mut durable, &broken(5, 1)).number, number);
        advance(&mut durable, 10);
    }
    advance(&mut durable, FORGIVEN_AFTER_STEPS as usize);
    assert_eq!(until_it_goes_back(&mut durable, &broken(5, 1)).number, 1);
}

#[test]
fn without_a_snapshot_a_failure_says_that_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshots");
    fs::write(&place, b"").unwrap();
    let mut durable = begin(&Snapshots::new(&place, PART), None);
    let error = until_it_cannot(&mut durable, &broken(0, u32::MAX));
    assert!(matches!(error, DurableError::NoSnapshot(_)), "{error}");
}
