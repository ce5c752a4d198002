//! Snapshots on the disk: whole, or known to be broken.

use std::{fs, path::PathBuf};

use paris_model::{
    config::{ExpertConfig, PartConfig},
    snapshot::{Header, SnapshotError, Snapshots, files::KEPT, format},
    state::State,
    trainer::Trainer,
};
use proptest::prelude::*;

use super::part::{PART, RUN, advance, begin, config, setup, step};

/// A snapshot of a part so small that it can be damaged in every place: its header, its state, and all of it.
fn snapshot() -> (Header, State, Vec<u8>) {
    let state = state(tiny());
    let header = Header {
        run: RUN.to_owned(),
        part: PART.to_owned(),
        step: 3,
        cursor: 5,
        threads: 2,
        supersedes: vec!["ab".to_owned()],
    };
    let mut bytes = Vec::new();
    format::write(&header, &state, &mut bytes).unwrap();
    (header, state, bytes)
}

/// The state of an expert at its beginning.
fn state(config: ExpertConfig) -> State {
    let setup = setup();
    let trainer = Trainer::new(PartConfig::Expert(config), setup.settings, &setup.key, &setup.null_text, &setup.device);
    let mut state = State::default();
    trainer.unwrap().copy_state(&mut state).unwrap();
    state
}

fn tiny() -> ExpertConfig {
    ExpertConfig { channels: 1, size: 2, patch: 2, width: 4, depth: 1, heads: 1, text_tokens: 1, text_width: 1 }
}

fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|it| it == "snapshot")).collect();
    files.sort();
    files
}

#[test]
fn every_cut_and_every_flipped_bit_is_detected() {
    let (header, state, bytes) = snapshot();
    let (read, body) = format::read(&bytes).unwrap();
    assert_eq!((read, body), (header, &state.to_bytes().unwrap()[..]));
    for end in 0..bytes.len() {
        assert!(matches!(format::read(&bytes[..end]), Err(SnapshotError::Damaged(_))), "cut off at {end}");
    }
    let mut damaged = bytes.clone();
    for position in 0..bytes.len() {
        let bit = 1 << (position % 8);
        damaged[position] ^= bit;
        assert!(matches!(format::read(&damaged), Err(SnapshotError::Damaged(_))), "a bit of byte {position}");
        damaged[position] ^= bit;
    }
}

proptest! {
    #[test]
    fn strange_bytes_are_met_with_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), signed in any::<bool>()) {
        let mut bytes = [&b"parissnp\x01\0\0\0"[..], &bytes].concat();
        if signed {
            let checksum = blake3::hash(&bytes);
            bytes.extend(checksum.as_bytes());
        }
        prop_assert!(format::read(&bytes).is_err());
    }
}

#[test]
fn a_broken_snapshot_is_passed_over_and_only_so_many_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let mut durable = begin(&snapshots, None);
    for _ in 0..KEPT + 3 {
        advance(&mut durable, 2);
    }
    let latest = || snapshots.latest(&config(), |_| true).map(|(header, _)| header.step);
    let files = files(folder.path());
    assert_eq!((files.len(), latest()), (KEPT, Some(10)));
    drop(durable);

    // What a process leaves that dies while it writes, at any point: a part of the file, under the other name.
    let whole = fs::read(&files[1]).unwrap();
    for share in [0, 1, 2, 3] {
        fs::write(folder.path().join(format!("{PART}.writing")), &whole[..whole.len() * share / 3]).unwrap();
        assert_eq!(latest(), Some(10));
    }
    fs::write(&files[1], &whole[..whole.len() / 2]).unwrap();
    assert_eq!(latest(), Some(8));
    let mut durable = begin(&snapshots, None);
    assert_eq!(durable.trainer().step_count(), 8);
    advance(&mut durable, 1);
    assert_eq!(latest(), Some(9), "the next one is written after the broken one");
    drop(durable);
    for file in self::files(folder.path()) {
        fs::write(file, b"").unwrap();
    }
    assert_eq!(latest(), None);
    assert_eq!(begin(&snapshots, None).trainer().step_count(), 0);
}

#[test]
fn a_later_versions_snapshot_is_refused_with_words_and_left_alone() {
    let (_, _, mut later) = snapshot();
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    later.truncate(later.len() - 32);
    later[8..12].copy_from_slice(&(format::VERSION + 1).to_le_bytes());
    let checksum = blake3::hash(&later);
    later.extend(checksum.as_bytes());
    let said = format::read(&later).unwrap_err().to_string();
    assert!(said.contains("format version 2") && said.contains("left as it is"), "{said}");

    let path = folder.path().join(format!("{PART}.0000000007.snapshot"));
    fs::write(&path, &later).unwrap();
    let mut durable = begin(&snapshots, None);
    assert_eq!(durable.trainer().step_count(), 0);
    for _ in 0..KEPT + 1 {
        advance(&mut durable, 1);
    }
    drop(durable);
    snapshots.discard_unless(|_| false);
    assert_eq!(fs::read(&path).unwrap(), later);
    assert_eq!(files(folder.path()), [path]);
}

#[test]
fn what_is_needed_no_more_is_removed_unless_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), PART);
    let mut durable = begin(&snapshots, None);
    advance(&mut durable, 1);
    let unfinished = folder.path().join(format!("{PART}.writing"));
    fs::write(&unfinished, b"of a process that was killed").unwrap();
    snapshots.discard_unless(|_| false);
    assert_eq!(files(folder.path()).len(), KEPT, "the trainer runs");
    assert!(unfinished.exists(), "the trainer may be writing it");
    drop(durable);
    snapshots.discard_unless(|header| header.run == RUN && header.step == 1);
    assert_eq!(files(folder.path()).len(), KEPT, "one of them counts");
    assert!(!unfinished.exists(), "that of nobody never does");
    Snapshots::new(folder.path(), "expert-00").discard_unless(|_| false);
    assert_eq!(Snapshots::parts(folder.path()), [PART], "another part's are another's");
    snapshots.discard_unless(|header| header.step == 2);
    assert!(files(folder.path()).is_empty() && Snapshots::parts(folder.path()).is_empty());
    fs::write(&unfinished, b"").unwrap();
    assert_eq!(Snapshots::parts(folder.path()), [PART]);
}

#[test]
fn a_disk_that_refuses_stops_nothing_and_is_reported_until_it_works_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshots");
    // A file where the folder should be: refused for root, too.
    fs::write(&place, b"").unwrap();
    let mut durable = begin(&Snapshots::new(&place, PART), None);
    assert!(durable.snapshot_problem().unwrap().contains("snapshots"), "{:?}", durable.snapshot_problem());
    step(&mut durable, &Default::default());
    assert!(!durable.snapshot().unwrap());
    fs::remove_file(&place).unwrap();
    advance(&mut durable, 1);
    // And gone again under the writer.
    fs::remove_dir_all(&place).unwrap();
    assert!(durable.snapshot().unwrap());
    durable.settle();
    assert!(durable.snapshot_problem().unwrap().contains("disk"), "{:?}", durable.snapshot_problem());
    step(&mut durable, &Default::default());
    advance(&mut durable, 1);
    assert_eq!(Snapshots::new(&place, PART).latest(&config(), |_| true).unwrap().0.step, 4);
}

/// Through a link to the device that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_with_the_file_and_what_to_do_and_nothing_is_left_there() {
    let folder = tempfile::tempdir().unwrap();
    let unfinished = folder.path().join(format!("{PART}.writing"));
    std::os::unix::fs::symlink("/dev/full", &unfinished).unwrap();
    let (header, _, _) = snapshot();
    // Larger than what is written at once, so that it is not the last write that fails.
    let large = state(ExpertConfig { width: 128, heads: 2, ..tiny() });
    let error = Snapshots::new(folder.path(), PART).write(&header, &large).unwrap_err();
    assert!(matches!(&error, SnapshotError::Io { path, .. } if *path == unfinished), "{error}");
    assert!(error.to_string().contains("check the disk's room"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
