//! Real processes, killed: no step is done twice, and the bits in the end are those of a node that nobody disturbed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use paris_model::snapshot::files::KEPT;
use paris_node::{
    api::Client,
    history::{Line, PartHistory},
    status::{PartStatus, Status},
};
use paris_testnet::process::{BUNDLED_PICTURES, NodeProcess};

/// Generous, since the machine may be busy: a condition is waited for, never a time.
const PATIENCE: Duration = Duration::from_secs(180);
/// Steps at which the run's parts are finished.
const STEPS: &str = "1000";
const PART: &str = "expert-0";
const KILLS_MAX: usize = 4;
/// Between two looks at a folder.
const POLL: Duration = Duration::from_millis(100);

/// A run of one tiny expert and a router in node `organiser`'s directory, before any node ran.
fn organise(folder: &Path, checkpoint_ms: &str) -> NodeProcess {
    let organiser = node(folder, "organiser");
    let prepared = folder.join("prepared");
    let prepared = prepared.to_str().unwrap();
    organiser
        .answer(["data", "prepare", BUNDLED_PICTURES, "--out", prepared, "--size", "8", "--clusters", "1"])
        .unwrap();
    let mut new = vec!["manifest", "new", "--data", prepared, "--steps", STEPS, "--batch", "8"];
    new.extend(["--width", "16", "--depth", "1", "--heads", "2", "--router-width", "16", "--router-depth", "1"]);
    new.extend(["--heartbeat-ms", "500", "--ttl-ms", "4000", "--checkpoint-ms", checkpoint_ms]);
    organiser.answer(new).unwrap();
    organiser
}

fn node(root: &Path, name: &str) -> NodeProcess {
    NodeProcess::new(Path::new(env!("CARGO_BIN_EXE_paris-testnet")), root, name).unwrap()
}

/// A node with a copy of another's directory; the two never run at the same time.
fn copied(folder: &Path, from: &NodeProcess, name: &str) -> NodeProcess {
    let copy = node(folder, name);
    copy_folder(from.dir().root(), copy.dir().root());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &place),
            false => drop(fs::copy(entry.path(), place).unwrap()),
        }
    }
}

fn finished(status: &Status) -> bool {
    let steps = STEPS.parse().ok();
    status.parts.iter().all(|part| part.checkpoint.as_ref().map(|checkpoint| checkpoint.step) == steps)
}

/// The hash of each part's weights, by the part's name.
fn weights(node: &NodeProcess) -> Vec<(String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let assembly = runtime.block_on(Client::of(node.dir()).unwrap().assembly()).unwrap();
    assembly.parts.into_iter().map(|part| (part.part, part.weights)).collect()
}

fn undisturbed(folder: &Path, organiser: &NodeProcess) -> Vec<(String, String)> {
    let mut node = copied(folder, organiser, "undisturbed");
    node.run(&["--capacity", "2"]).unwrap();
    node.wait_until("all parts are finished", PATIENCE, finished).unwrap();
    weights(&node)
}

/// The snapshot files in a node's directory.
fn snapshots(root: &Path) -> Vec<PathBuf> {
    let runs = fs::read_dir(root.join("snapshots")).into_iter().flatten().flatten();
    let files = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten()).map(|it| it.path());
    files.filter(|path| path.to_string_lossy().ends_with(".snapshot")).collect()
}

#[test]
fn a_node_that_is_killed_goes_on_where_it_was_and_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    // No checkpoint is published before the end, so all that a killed node can go on from is its snapshots.
    let mut organiser = organise(folder.path(), "3600000");
    let expected = undisturbed(folder.path(), &organiser);
    let root = organiser.dir().root().to_owned();
    let (mut reached, mut kills) = (0, 0);
    while kills < KILLS_MAX && reached < STEPS.parse::<u64>().unwrap() / 2 {
        organiser.run(&["--capacity", "2", "--snapshot-every", "0"]).unwrap();
        let further = |status: &Status| {
            let further = |part: &PartStatus| part.step.is_some_and(|step| step > reached);
            status.parts.iter().all(further) && snapshots(&root).len() >= 2 * KEPT
        };
        let status = organiser.wait_until("it trains beyond where it was", PATIENCE, further).unwrap();
        reached = status.parts.iter().filter_map(|part| part.step).min().unwrap();
        organiser.kill().unwrap();
        kills += 1;
    }
    organiser.run(&["--capacity", "2"]).unwrap();
    organiser.wait_until("all parts are finished", PATIENCE, finished).unwrap();
    assert_eq!(weights(&organiser), expected);

    // Its history says so, whether it runs or not, and so does the status.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = runtime.block_on(Client::of(organiser.dir()).unwrap().history(PART)).unwrap();
    organiser.stop().unwrap();
    let text = organiser.answer(["history", PART, "--json"]).unwrap();
    let kept: PartHistory = serde_json::from_str(&text).unwrap();
    let events = |lines: &[Line], says: &str| {
        let says = |line: &&Line| matches!(line, Line::Event(event) if event.message.contains(says));
        lines.iter().filter(says).count()
    };
    assert_eq!(events(&kept.lines, "own snapshot"), kills, "{text}");
    assert_eq!(events(&served.lines, "own snapshot"), kills);
    let plot = folder.path().join("plot.svg");
    organiser.answer(["history", PART, "--plot", plot.to_str().unwrap()]).unwrap();
    assert!(fs::read_to_string(plot).unwrap().contains("held out"));
    let text = organiser.answer(["status"]).unwrap();
    assert!(text.contains("Trained on this machine") && text.contains("snapshot of step"), "{text}");
    let unknown = organiser.call(["history", "expert-7"]).unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("these were: expert-0, router"));

    // What was published supersedes the snapshots, and they go.
    organiser.run(&["--capacity", "2"]).unwrap();
    organiser.wait_until("it answers", PATIENCE, finished).unwrap();
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && !snapshots(&root).is_empty() {
        std::thread::sleep(POLL);
    }
    assert!(snapshots(&root).is_empty());
}

#[test]
fn a_successor_ends_with_the_bits_that_the_owner_would_have_had() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = organise(folder.path(), "500");
    let expected = undisturbed(folder.path(), &owner);
    owner.run(&["--capacity", "2"]).unwrap();
    let ticket = owner.wait_until("it has a ticket", PATIENCE, |status| status.ticket.is_some()).unwrap().ticket;
    let mut successor = node(folder.path(), "successor");
    successor.answer(["join", &ticket.unwrap()]).unwrap();
    successor.run(&["--capacity", "2"]).unwrap();
    let held = |status: &Status| {
        let held = |part: &PartStatus| part.checkpoint.as_ref().is_some_and(|it| it.held_here);
        status.parts.iter().all(held)
    };
    let status = successor.wait_until("it holds every part's checkpoint", PATIENCE, held).unwrap();
    owner.kill().unwrap();
    let steps: Vec<_> = status.parts.iter().map(|part| part.checkpoint.as_ref().map(|it| it.step)).collect();
    println!("taken over at steps {steps:?}");
    successor.wait_until("all parts are finished", PATIENCE, finished).unwrap();
    assert_eq!(weights(&successor), expected);
}
