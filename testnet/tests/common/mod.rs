//! A small run for tests, and what they ask of it.

// Each test program uses a part of it.
#![allow(dead_code, reason = "each test program uses a part of this module")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use paris_node::status::{PartStatus, Status};
use paris_testnet::process::{BUNDLED_PICTURES, NodeProcess};

/// Generous, since the machine may be busy: a condition is waited for, never a time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A run with two tiny experts, and nodes that do not run yet; the first is the organiser.
pub(crate) struct Network {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) nodes: Vec<NodeProcess>,
}

impl Network {
    /// With times that suit a test.
    pub(crate) fn new(count: usize) -> Self {
        Self::with(count, |_| Vec::new(), |_, node| node)
    }

    /// With more arguments for `manifest new`, which may follow from the nodes, and each node as `place` makes it.
    pub(crate) fn with(
        count: usize,
        arguments: impl FnOnce(&[NodeProcess]) -> Vec<String>,
        place: impl Fn(usize, NodeProcess) -> NodeProcess,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes: Vec<_> =
            (0..count).map(|number| place(number, node(folder.path(), &format!("node-{number}")))).collect();
        let prepared = folder.path().join("prepared");
        let prepared = prepared.to_str().unwrap();
        nodes[0]
            .answer(["data", "prepare", BUNDLED_PICTURES, "--out", prepared, "--size", "8", "--clusters", "2"])
            .unwrap();
        let models = ["--width", "32", "--depth", "2", "--heads", "2", "--router-width", "32", "--router-depth", "1"];
        let times = ["--heartbeat-ms", "500", "--checkpoint-ms", "1000"];
        let arguments = arguments(&nodes);
        let mut new = vec!["manifest", "new", "--data", prepared];
        new.extend(models.into_iter().chain(times).chain(["--batch", "16", "--ema", "0.99"]));
        if !arguments.iter().any(|it| it == "--ttl-ms") {
            new.extend(["--ttl-ms", "4000"]);
        }
        new.extend(arguments.iter().map(String::as_str));
        nodes[0].answer(new).unwrap();
        Self { folder, nodes }
    }

    /// Starts the organiser, then lets the others join by its ticket and start.
    pub(crate) fn start(&mut self) {
        self.nodes[0].run(&[]).unwrap();
        let ticket = self.ticket();
        for node in &mut self.nodes[1..] {
            node.answer(["join", &ticket]).unwrap();
            node.run(&[]).unwrap();
        }
    }

    pub(crate) fn ticket(&mut self) -> String {
        self.wait_until("it has a ticket", |status| status.ticket.is_some()).ticket.unwrap()
    }

    /// Waits for the organiser to see what is asked for.
    pub(crate) fn wait_until(&mut self, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
        self.nodes[0].wait_until(what, PATIENCE, condition).unwrap()
    }

    /// Waits until every node names the same owner and term of every part, that owner lives, and it alone holds the part its own.
    pub(crate) fn wait_until_all_agree(&mut self) -> Vec<Status> {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let seen: Vec<_> = self.nodes.iter().filter_map(NodeProcess::status).collect();
            if seen.len() == self.nodes.len() && agree(&seen) {
                return seen;
            }
            if std::time::Instant::now() > until {
                let said: String = seen.iter().map(ToString::to_string).collect();
                panic!("the nodes do not agree within {PATIENCE:?}:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn id(&self, index: usize) -> String {
        self.nodes[index].dir().keypair().unwrap().id().to_string()
    }

    /// The node with this id.
    pub(crate) fn find(&self, id: &str) -> usize {
        (0..self.nodes.len()).find(|index| self.id(*index) == id).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(crate) fn node(root: &Path, name: &str) -> NodeProcess {
    NodeProcess::new(Path::new(env!("CARGO_BIN_EXE_paris-testnet")), root, name).unwrap()
}

pub(crate) fn all_owned(status: &Status) -> bool {
    status.parts.iter().all(|part| part.owner.is_some() && part.owner_is_live)
}

pub(crate) fn owners(status: &Status) -> Vec<Option<String>> {
    status.parts.iter().map(|part| part.owner.clone()).collect()
}

/// The number of distinct owners of live parts.
pub(crate) fn owners_count(status: &Status) -> usize {
    let owners: std::collections::BTreeSet<_> = status.parts.iter().filter_map(|part| part.owner.as_ref()).collect();
    owners.len()
}

pub(crate) fn part<'a>(status: &'a Status, name: &str) -> &'a PartStatus {
    status.parts.iter().find(|part| part.part == name).unwrap()
}

pub(crate) fn is_replicated(part: &PartStatus) -> bool {
    part.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.holders >= 2 && checkpoint.step > 0)
}

fn agree(seen: &[Status]) -> bool {
    let claims = |status: &Status| -> Vec<_> { status.parts.iter().map(|it| (it.owner.clone(), it.term)).collect() };
    let owned_once = (0..seen[0].parts.len()).all(|part| {
        let mine: Vec<_> = seen.iter().filter(|status| status.parts[part].is_mine).collect();
        mine.len() == 1 && mine[0].parts[part].owner.as_ref() == Some(&mine[0].node)
    });
    seen.iter().all(|status| all_owned(status) && claims(status) == claims(&seen[0])) && owned_once
}
