//! A network of real processes on loopback: ownership, takeover, late joiners, and two nodes on one directory.

mod common;

use std::{collections::BTreeSet, process::Output};

use common::{Network, PATIENCE, all_owned, is_replicated, node, owners, part};
use paris_node::status::{PartStatus, Status};
use paris_protocol::{hash::Hash, manifest::RunId, ticket::Ticket};
use paris_testnet::process::NodeProcess;

#[test]
fn parts_are_owned_once_and_a_killed_owners_part_goes_on_from_its_checkpoint() {
    let mut network = Network::new(3);
    network.start();
    let seen = network.wait_until("every node owns one part", |status| {
        let mut owners = owners(status);
        owners.sort();
        owners.dedup();
        all_owned(status) && owners.len() == 3
    });
    for node in &mut network.nodes[1..] {
        node.wait_until("it sees the same owners", PATIENCE, |status| owners(status) == owners(&seen)).unwrap();
    }

    // Kill an owner that is not the organiser, once its work is held elsewhere.
    let replicated = |status: &Status| status.parts.iter().all(is_replicated);
    let status = network.wait_until("every checkpoint is replicated", replicated);
    let lost = status.parts.iter().find(|part| part.owner.as_deref() != Some(&network.id(0))).unwrap().clone();
    let victim = (1..3).find(|index| lost.owner.as_deref() == Some(&network.id(*index))).unwrap();
    network.nodes[victim].kill().unwrap();
    let before = lost.checkpoint.unwrap();

    let after = network.wait_until("another node owns the part and has published", |status| {
        let part = part(status, &lost.part);
        part.term > lost.term && part.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.term > lost.term)
    });
    let after = part(&after, &lost.part).checkpoint.clone().unwrap();
    assert!(after.step >= before.step, "went on from step {} at least, not from {}", before.step, after.step);
    let allowed = before.held_out_loss * 1.1 + 0.02;
    assert!(after.held_out_loss <= allowed, "loss {} is in line with {}", after.held_out_loss, before.held_out_loss);

    // The killed node comes back on the same directory and takes part again.
    network.nodes[victim].run(&[]).unwrap();
    network.nodes[victim].wait_until("it sees every part owned", PATIENCE, all_owned).unwrap();

    // A node that stops knows the chain of owners and the best checkpoints as well as when it ran.
    let before = network.wait_until("it sees every part owned", all_owned);
    network.nodes[0].kill().unwrap();
    let after: Status = serde_json::from_str(&network.nodes[0].answer(["status", "--json"]).unwrap()).unwrap();
    for (before, after) in before.parts.iter().zip(&after.parts) {
        assert!(after.term >= before.term, "{}: term {} after {}", after.part, after.term, before.term);
        let step = |part: &PartStatus| part.checkpoint.as_ref().map(|checkpoint| checkpoint.step);
        assert!(
            after.term > before.term || step(after) >= step(before),
            "{}: {:?} after {:?}",
            after.part,
            step(after),
            step(before)
        );
    }
}

/// A node's answer to a command that must fail, and within its own bound of time rather than the test's.
fn complaint(node: &NodeProcess, arguments: &[&str]) -> (Option<i32>, String) {
    let output = node.call(arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("error: ") && !said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

#[test]
fn bad_input_is_met_with_what_happened_and_what_to_do() {
    let mut network = Network::new(1);
    network.start();
    let ticket = network.ticket();
    let folder = network.folder.path().to_owned();
    let fresh = node(&folder, "fresh");
    let says = |arguments: &[&str], code: i32, words: &[&str]| {
        let (got, said) = complaint(&fresh, arguments);
        assert!(got == Some(code) && words.iter().all(|word| said.contains(word)), "{arguments:?} -> {got:?}: {said}");
    };
    says(&["run", "--port", "0"], 2, &["paris-node init", "paris-node join"]);
    says(&["run", "--port", "65535"], 2, &["--port", "0..65535"]);
    says(&["join", "hello"], 2, &["paris1"]);
    says(&["join", &ticket[..ticket.len() - 1]], 2, &["damaged", "copy it again"]);
    says(&["sample", "  "], 2, &["what to draw"]);
    says(&["sample", "x", "-n", "0"], 2, &["1..=64"]);
    says(&["manifest", "new", "--data", folder.to_str().unwrap()], 1, &["no prepared data", "data prepare"]);

    // A ticket whose seeds belong to another run: they do not have the manifest, and say nothing for ever.
    let seeds = ticket.parse::<Ticket>().unwrap().seeds().to_vec();
    let foreign = Ticket::new(RunId(Hash::of(b"another run")), seeds);
    fresh.answer(["join", &foreign.to_string()]).unwrap();
    says(&["sample", "x", "--wait", "3"], 1, &["none of the 1 peers", "fresh ticket"]);

    // Prepared data that was changed by hand: the count of a shard, then a shard.
    let prepared = network.path("prepared");
    let record = prepared.join("prepared.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let at = text.find("\"samples\": ").unwrap() + "\"samples\": ".len();
    std::fs::write(&record, format!("{}1{}", &text[..at], &text[at..])).unwrap();
    says(&["manifest", "new", "--data", prepared.to_str().unwrap()], 1, &["changed by hand"]);
    std::fs::write(&record, text).unwrap();
    let shard = std::fs::read_dir(&prepared).unwrap().map(|it| it.unwrap().path());
    let shard = shard.into_iter().find(|path| path.extension().is_some_and(|it| it == "safetensors")).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    says(&["manifest", "new", "--data", prepared.to_str().unwrap()], 1, &["damaged", "again"]);

    // Both ports of the running node are taken.
    let blobs = ticket.parse::<Ticket>().unwrap().seeds()[0].blobs[0].port();
    fresh.answer(["join", &ticket]).unwrap();
    says(&["run", "--host", "127.0.0.1", "--port", &(blobs - 1).to_string()], 1, &["--port", "0 for any"]);

    // More room than any disk has is asked for.
    says(&["run", "--port", "0", "--disk-reserve", "1000000000000"], 5, &["MiB free", "make room"]);
}

#[test]
fn nothing_is_drawn_with_a_checkpoint_that_was_damaged_on_disk_and_it_is_fetched_again() {
    let mut network = Network::new(2);
    network.start();
    let held = |status: &Status| status.parts.iter().all(is_replicated);
    network.wait_until("every part has a checkpoint on two nodes", held);
    let ticket = network.ticket();
    let artist = node(network.folder.path(), "artist");
    artist.answer(["join", &ticket]).unwrap();
    let out = network.path("drawn.png");
    let sample = ["sample", "a flag", "-n", "1", "--steps", "2", "--out", out.to_str().unwrap()];
    let before = drawn_with(&artist.call(sample).unwrap());
    assert_eq!(before.len(), 3, "{before:?}");
    // Every blob and every exported file changes by a bit.
    let folders = ["blobs/data", "weights"].map(|name| artist.dir().root().join(name));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let mut damaged = 0;
    for file in files.filter(|file| file.extension().is_some_and(|it| it == "data" || it == "safetensors")) {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        damaged += 1;
    }
    assert!(damaged >= 3, "every part's weights lie in a file of their own");
    let output = artist.call(sample).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // A part that has a new checkpoint by now is drawn with that.
    let is_seen = !before.is_disjoint(&drawn_with(&output));
    assert!(said.contains("a blob is damaged on disk") || !is_seen, "{said}");
    assert!(output.status.success() && said.contains("drawing with") && !said.contains("missing:"), "{said}");
}

/// The checkpoints that a call of `sample` says it drew with.
fn drawn_with(output: &Output) -> BTreeSet<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find_map(|line| line.strip_prefix("drawing with ")).unwrap_or_default();
    line.split("), ").map(|it| it.trim_end_matches(')').to_owned()).collect()
}

#[test]
fn a_late_joiner_that_trains_nothing_draws_with_every_expert() {
    let mut network = Network::new(2);
    network.start();
    let published = |status: &Status| status.parts.iter().all(|part| part.checkpoint.is_some());
    network.wait_until("every part has a checkpoint", published);
    let ticket = network.ticket();
    let artist = node(network.folder.path(), "artist");
    artist.answer(["join", &ticket]).unwrap();
    let out = network.path("drawn.png");
    let sample = ["sample", "a red heart", "a flag", "-n", "2", "--steps", "4", "--out", out.to_str().unwrap()];
    let output = artist.call(sample).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(["expert-0", "expert-1", "router"].iter().all(|part| said.contains(part)), "{said}");
    assert!(!said.contains("missing"), "{said}");
    assert_eq!(&std::fs::read(&out).unwrap()[..8], b"\x89PNG\r\n\x1a\n");

    // A node that runs draws as well, through its local API.
    let out = network.path("drawn-by-a-trainer.png");
    let sample = ["sample", "a red heart", "-n", "1", "--steps", "2", "--out", out.to_str().unwrap()];
    network.nodes[1].answer(sample).unwrap();
    assert!(out.exists());

    // And without the network, the artist knows what it has: better checkpoints may be known, since records come before weights.
    let status: Status = serde_json::from_str(&artist.answer(["status", "--json"]).unwrap()).unwrap();
    let held = |part: &PartStatus| {
        let (Some(best), Some(held)) = (&part.checkpoint, &part.held) else { return false };
        held.held_here && held.step <= best.step && (best.held_here == (best.id == held.id))
    };
    assert!(!status.running && status.parts.iter().all(held), "{status}");
}

#[test]
fn a_second_node_on_one_directory_says_why_it_will_not_start() {
    let mut network = Network::new(1);
    network.start();
    network.ticket();
    let second = network.nodes[0].call(["run", "--host", "127.0.0.1", "--port", "0"]).unwrap();
    assert_eq!(second.status.code(), Some(3));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("in use by another paris-node") && said.contains("--data-dir"), "{said}");
    assert!(network.nodes[0].is_running());
}

#[test]
fn a_node_that_is_asked_to_stop_hands_its_parts_and_its_work_over() {
    let mut network = Network::new(2);
    network.start();
    let (stays, leaver) = (network.id(0), network.id(1));
    network.wait_until("both own parts", |status| all_owned(status) && owners(status).contains(&Some(leaver.clone())));
    network.nodes[1].stop().unwrap();
    let status = network.wait_until("the other node owns everything", |status| {
        owners(status).iter().all(|owner| owner.as_ref() == Some(&stays))
    });
    let lost = |part: &PartStatus| part.checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.held_here);
    assert!(!status.parts.iter().any(lost), "{status}");
}
