//! Where training begins: at the named state, or at the snapshot that has gone further from it.

use paris_model::{
    durable::{Durable, Origin, SUPERSEDED_MAX},
    snapshot::Snapshots,
    state::Published,
};

use super::part::{PART, RUN, advance, begin, setup, step};

fn steps_and_origin(snapshots: &Snapshots, published: Option<&Published>) -> (u64, bool) {
    let durable = begin(snapshots, published.cloned());
    (durable.trainer().step_count(), matches!(durable.origin(), Origin::Snapshot { .. }))
}

#[test]
fn a_snapshot_is_used_for_the_states_that_it_went_on_from_and_for_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let mut owner = begin(&snapshots, None);
    advance(&mut owner, 2);
    let first = owner.publish().unwrap();
    advance(&mut owner, 2);
    // Published, and the process died before it was signed: nobody will ever name this one.
    let second = owner.publish().unwrap();
    advance(&mut owner, 2);
    drop(owner);
    for named in [None, Some(&first), Some(&second)] {
        assert_eq!(steps_and_origin(&snapshots, named), (6, true));
    }

    // A stranger took over from the first, and has published less than the snapshot has: what it published counts all the same.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut successor = begin(&Snapshots::new(elsewhere.path(), PART), Some(first));
    assert_eq!(successor.origin(), Origin::Published);
    step(&mut successor, &Default::default());
    let theirs = successor.publish().unwrap();
    assert_eq!(steps_and_origin(&snapshots, Some(&theirs)), (3, false));
    // That beginning has a snapshot of its own now, which is the one to go on from.
    assert_eq!(steps_and_origin(&snapshots, Some(&theirs)), (3, true));
    // And the older one is still there for whoever is told to go on from the older state.
    assert_eq!(steps_and_origin(&snapshots, Some(&second)), (6, true));
}

/// As a node without a quorum does, which publishes and signs nothing.
#[test]
fn a_snapshot_is_used_however_much_was_published_in_vain() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let mut owner = begin(&snapshots, None);
    let named = owner.publish().unwrap();
    for _ in 0..2 * SUPERSEDED_MAX {
        step(&mut owner, &Default::default());
        owner.publish().unwrap();
    }
    advance(&mut owner, 1);
    let reached = owner.trainer().step_count();
    drop(owner);
    assert_eq!(steps_and_origin(&snapshots, Some(&named)), (reached, true));
}

#[test]
fn a_snapshot_of_another_run_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    advance(&mut begin(&snapshots, None), 2);
    let other = Durable::begin(setup(), "another run", snapshots.clone(), None).unwrap();
    assert_eq!((other.trainer().step_count(), other.origin()), (0, Origin::Beginning));
    drop(other);
    assert_eq!(Durable::begin(setup(), RUN, snapshots, None).unwrap().trainer().step_count(), 2);
}

#[test]
fn a_damaged_published_state_is_refused_and_not_trained_from() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let whole = begin(&snapshots, None).trainer().published().unwrap();
    let refused = |published| Durable::begin(setup(), RUN, snapshots.clone(), Some(published)).is_err();
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    assert!(refused(Published { state: cut(&whole.state), ..whole.clone() }));
    assert!(refused(Published { weights: cut(&whole.weights), ..whole.clone() }));
    let Published { weights, state } = whole.clone();
    assert!(refused(Published { weights: state, state: weights }));
    assert!(!refused(whole));
}
