//! Where training begins: at the named state, or at the snapshot that has gone further from it.

use paris_model::{
    durable::{Durable, Origin, SUPERSEDED_MAX},
    snapshot::Snapshots,
};

use super::part::{PART, RUN, advance, begin, setup, step};

/// Publishes this moment's state.
fn publish(durable: &mut Durable) -> Vec<u8> {
    let state = durable.trainer().state().unwrap();
    durable.published(&state);
    state
}

fn steps_and_origin(snapshots: &Snapshots, published: Option<&[u8]>) -> (u64, bool) {
    let durable = begin(snapshots, published.map(<[u8]>::to_vec));
    (durable.trainer().step_count(), matches!(durable.origin(), Origin::Snapshot { .. }))
}

#[test]
fn a_snapshot_is_used_for_the_states_that_it_went_on_from_and_for_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let mut owner = begin(&snapshots, None);
    advance(&mut owner, 2);
    let first = publish(&mut owner);
    advance(&mut owner, 2);
    // Published, and the process died before it was signed: nobody will ever name this one.
    let second = publish(&mut owner);
    advance(&mut owner, 2);
    drop(owner);
    for named in [None, Some(&first[..]), Some(&second)] {
        assert_eq!(steps_and_origin(&snapshots, named), (6, true));
    }

    // A stranger took over from the first, and has published less than the snapshot has: what it published counts all the same.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut successor = begin(&Snapshots::new(elsewhere.path(), PART), Some(first));
    assert_eq!(successor.origin(), Origin::Published);
    step(&mut successor, &Default::default());
    let theirs = publish(&mut successor);
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
    let named = publish(&mut owner);
    for _ in 0..2 * SUPERSEDED_MAX {
        step(&mut owner, &Default::default());
        publish(&mut owner);
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
    let mut state = begin(&snapshots, None).trainer().state().unwrap();
    state.truncate(state.len() - 1);
    assert!(Durable::begin(setup(), RUN, snapshots, Some(state)).is_err());
}
