//! How parts change hands between real processes: released, taken over, fenced, cut off, and owned with one key by two.

mod common;

use std::process::Command;

use common::{Network, PATIENCE, all_owned, is_replicated, node, owners, owners_count, part};
use paris_node::{
    cli::Exit,
    status::{PartStatus, Status},
    store::Database,
};
use paris_protocol::{claim::Claim, part::Part, signed::Verified};
use paris_testnet::process::NodeProcess;

/// The exit code for a key that is not to be used.
const IDENTITY: Option<i32> = Some(Exit::Identity.code() as i32);

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// The parts that a node owns, as it says itself.
fn owned(status: &Status) -> Vec<PartStatus> {
    status.parts.iter().filter(|part| part.is_mine).cloned().collect()
}

#[test]
fn ctrl_c_hands_a_part_over_long_before_its_lease_ends() {
    // Silence alone would free a part after twenty minutes: longer than anything here is waited for.
    let mut network = Network::with(2, |_| words(["--ttl-ms", "1200000"]), |_, node| node);
    network.start();
    let (stays, leaver) = (network.id(0), network.id(1));
    let before = network.wait_until("both own parts and hold each other's work", |status| {
        all_owned(status) && owners(status).contains(&Some(leaver.clone())) && status.parts.iter().all(is_replicated)
    });
    network.nodes[1].signal("INT").unwrap();
    let ended = network.nodes[1].end().unwrap();
    assert_eq!(ended.code(), Some(Exit::Done.code().into()), "{}", network.nodes[1].log());
    let after = network.wait_until("the other owns everything", |status| {
        owners(status).iter().all(|owner| owner.as_ref() == Some(&stays))
    });
    for before in before.parts.iter().filter(|part| part.owner.as_ref() == Some(&leaver)) {
        let after = part(&after, &before.part);
        let step = |part: &PartStatus| part.checkpoint.as_ref().map(|checkpoint| checkpoint.step);
        assert!(after.term > before.term && step(after) >= step(before), "{after:?} after {before:?}");
    }
}

#[test]
fn an_owner_that_was_suspended_for_longer_than_its_lease_is_fenced() {
    let mut network = Network::new(3);
    network.start();
    let before = network.wait_until("every node owns one part and all is replicated", |status| {
        all_owned(status) && owners_count(status) == 3 && status.parts.iter().all(is_replicated)
    });
    let lost = before.parts.iter().find(|part| part.owner.as_deref() != Some(&network.id(0))).unwrap().clone();
    let sleeper = network.find(lost.owner.as_deref().unwrap());
    network.nodes[sleeper].signal("STOP").unwrap();
    let taken = network.wait_until("another has the part and publishes under its own term", |status| {
        let part = part(status, &lost.part);
        part.owner != lost.owner && part.checkpoint.as_ref().is_some_and(|it| it.term > lost.term)
    });
    let taken = part(&taken, &lost.part).clone();
    network.nodes[sleeper].signal("CONT").unwrap();
    // It learns that it was passed over. Whatever it owns later it owns under a later claim.
    let fenced = |status: &Status| part(status, &lost.part).term >= taken.term;
    network.nodes[sleeper].wait_until("it knows the later claim", PATIENCE, fenced).unwrap();
    for status in network.wait_until_all_agree() {
        let part = part(&status, &lost.part);
        let best = part.checkpoint.as_ref().unwrap();
        assert!(part.term >= taken.term && best.term > lost.term, "the old claim's checkpoints head nothing: {part:?}");
    }
}

#[test]
fn of_two_machines_with_one_key_one_stops_and_says_why() {
    let mut network = Network::new(2);
    network.nodes[0].run(&[]).unwrap();
    let ticket = network.ticket();
    network.nodes[1].answer(["join", &ticket]).unwrap();
    // A copy of the whole directory, as of a cloned machine.
    let mut copy = node(network.folder.path(), "copy");
    std::fs::create_dir(copy.dir().root()).unwrap();
    for file in ["node.key", "node.redb"] {
        std::fs::copy(network.nodes[1].dir().root().join(file), copy.dir().root().join(file)).unwrap();
    }
    network.nodes[1].run(&[]).unwrap();
    let twin = network.id(1);
    let owns = |status: &Status| all_owned(status) && owners(status).contains(&Some(twin.clone()));
    network.wait_until("the first of the two owns a part", owns);
    copy.run(&[]).unwrap();
    let ended = copy.end().unwrap();
    assert_eq!(ended.code(), IDENTITY, "{}", copy.log());
    assert!(copy.log().contains("signed with this node's key that its claim log does not know"), "{}", copy.log());
    // The first goes on as if nothing had been.
    network.nodes[1].wait_until("it still owns its part", PATIENCE, |status| !owned(status).is_empty()).unwrap();
    assert!(network.wait_until_all_agree().iter().all(|status| owners_count(status) == 2));
}

#[test]
fn a_key_whose_claim_log_is_lost_signs_nothing() {
    let mut network = Network::new(1);
    network.start();
    network.wait_until("it owns everything", all_owned);
    network.nodes[0].kill().unwrap();
    let folder = network.nodes[0].dir().root().to_owned();
    std::fs::rename(folder.join("node.redb"), folder.join("kept.redb")).unwrap();
    for command in [&["run", "--port", "0"][..], &["status"], &["init"], &["sample", "x"]] {
        let refused = network.nodes[0].call(command).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), IDENTITY, "{command:?}: {said}");
        assert!(said.contains("no claim log") && said.contains("new key"), "{command:?}: {said}");
    }
    std::fs::rename(folder.join("kept.redb"), folder.join("node.redb")).unwrap();
    network.nodes[0].run(&[]).unwrap();
    network.wait_until("it goes on with its log", all_owned);
}

#[test]
fn a_key_whose_claim_log_is_behind_its_own_records_stops_and_says_why() {
    let mut network = Network::new(1);
    let node = &mut network.nodes[0];
    let database = Database::open(node.dir()).unwrap();
    let run = database.current_run().unwrap().unwrap();
    let claim = Claim { part: Part::Router, term: 1, previous: None, evidence: Vec::new(), boot: 1, seq: 1 };
    let claim = Verified::sign(&node.dir().keypair().unwrap(), run, claim);
    database.remember_claim(run, claim.signed()).unwrap();
    drop(database);
    node.run(&[]).unwrap();
    let ended = node.end().unwrap();
    assert_eq!(ended.code(), IDENTITY, "{}", node.log());
    assert!(node.log().contains("its claim log does not know"), "{}", node.log());
}

#[test]
fn in_a_run_with_an_allow_list_a_stranger_owns_nothing_and_may_draw() {
    let allow = |nodes: &[NodeProcess]| {
        let said = nodes[1].answer(["init"]).unwrap();
        words(["--allow", said.lines().find_map(|line| line.strip_prefix("key  ")).unwrap()])
    };
    let mut network = Network::with(3, allow, |_, node| node);
    network.start();
    let (guest, stranger) = (network.id(1), network.id(2));
    let knows = |status: &Status| status.peers >= 2;
    network.wait_until("it knows both others", knows);
    let seen = network.wait_until("the two that are allowed share the parts and publish", |status| {
        let published = status.parts.iter().all(is_replicated);
        all_owned(status) && owners(status).contains(&Some(guest.clone())) && published
    });
    assert!(!owners(&seen).contains(&Some(stranger)), "{seen}");
    let out = network.path("drawn.png");
    network.nodes[2].answer(["sample", "a flag", "-n", "1", "--steps", "2", "--out", out.to_str().unwrap()]).unwrap();
    assert!(out.exists());
}

#[test]
fn in_a_run_by_invitation_a_node_waits_and_owns_parts_once_it_is_invited() {
    let mut network = Network::with(2, |_| words(["--admission", "invite"]), |_, node| node);
    network.start();
    let guest = network.nodes[1].dir().keypair().unwrap().id();
    let waits = |status: &Status| status.peers >= 1 && all_owned(status) && status.not_admitted.is_some();
    let waiting = network.nodes[1].wait_until("it waits for an invitation", PATIENCE, waits).unwrap();
    assert!(waiting.not_admitted.unwrap().contains(&guest.key()), "the operator reads which key to give");
    assert!(owned(&network.nodes[1].status().unwrap()).is_empty());
    let key = guest.key();
    let refused = network.nodes[1].call(["invite", &key]).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("none of the organisers'"), "{refused:?}");
    assert!(network.nodes[0].answer(["invite", &key]).unwrap().contains("invited"));
    let taken = |status: &Status| status.not_admitted.is_none() && !owned(status).is_empty();
    network.nodes[1].wait_until("it is let in and takes its share", PATIENCE, taken).unwrap();
    // It is remembered: alone and started anew, it may still own parts.
    network.nodes[1].kill().unwrap();
    network.nodes[0].kill().unwrap();
    network.nodes[1].run(&[]).unwrap();
    network.nodes[1].wait_until("it goes on", PATIENCE, taken).unwrap();
}

/// Two network namespaces joined by one cable. Namespaces, because peers tell each other their real addresses: a proxy between them would be walked around.
struct Cable {
    names: [String; 2],
}

/// The addresses at its two ends.
const ENDS: [&str; 2] = ["10.213.47.1", "10.213.47.2"];

impl Cable {
    /// None where this user may not make namespaces.
    fn lay() -> Option<Self> {
        let names = ["a", "b"].map(|end| format!("paris-{}-{end}", std::process::id()));
        let cable = Self { names };
        let [a, b] = &cable.names;
        let laid = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b])
            && cable.names.iter().zip(ENDS).all(|(name, address)| {
                ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "cable"])
                    && ip(&["-n", name, "link", "set", "lo", "up"])
                    && ip(&["-n", name, "link", "set", "cable", "up"])
            });
        laid.then_some(cable)
    }

    fn cut(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "cable", "down"]));
    }

    fn mend(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "cable", "up"]));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn in_a_partition_the_larger_side_takes_over_and_on_heal_all_agree_again() {
    let Some(cable) = Cable::lay() else {
        eprintln!("SKIPPED: partition and heal of real processes needs root and iproute2, to make network namespaces");
        return;
    };
    // The organiser and another on one side, the third alone; with a quorum of two the one alone may found no claim.
    let side = |index: usize| usize::from(index == 2);
    let place = |index: usize, node: NodeProcess| node.in_namespace(&cable.names[side(index)], ENDS[side(index)]);
    let mut network = Network::with(3, |_| words(["--quorum", "2"]), place);
    network.start();
    let before = network.wait_until("every node owns one part and all is replicated", |status| {
        all_owned(status) && owners_count(status) == 3 && status.parts.iter().all(is_replicated)
    });
    let alone = network.id(2);
    let lost = before.parts.iter().find(|part| part.owner.as_ref() == Some(&alone)).unwrap().clone();
    cable.cut();
    let taken = network.wait_until("the larger side took the part over and publishes", |status| {
        let part = part(status, &lost.part);
        part.owner != lost.owner && part.checkpoint.as_ref().is_some_and(|it| it.term > lost.term)
    });
    // The one alone keeps what it owned, and found nothing: below the quorum it names the owners of before.
    let apart = network.nodes[2].wait_until("it sees the others silent", PATIENCE, |status| {
        status.parts.iter().all(|part| part.is_mine || !part.owner_is_live)
    });
    let apart = apart.unwrap();
    let claims = |status: &Status| -> Vec<_> { status.parts.iter().map(|it| (it.owner.clone(), it.term)).collect() };
    assert_eq!(claims(&apart), claims(&before));
    cable.mend();
    network.wait_until_all_agree();
    // A claim may be heard before the checkpoints that were published under it.
    let step = |part: &PartStatus| part.checkpoint.as_ref().map(|it| (it.term, it.step));
    for node in &mut network.nodes {
        let reached = node.wait_until("it knows what was published while it was cut off", PATIENCE, |status| {
            let mut parts = taken.parts.iter().zip(&status.parts);
            parts.all(|(before, after)| after.term >= before.term && step(after) >= step(before))
        });
        reached.unwrap();
    }
}
