//! Nodes of one version and of the next speak with each other. What stands here as hexadecimal was said by a node of wire version 1; never make it anew.

use std::{sync::Arc, time::Duration};

use paris_protocol::{
    agent::{Action, Agent, Memory, Mirror, Settings, Verdict},
    codec::Wire,
    identity::NodeId,
    manifest::Manifest,
    message::Gossip,
    part::Part,
};

use crate::common::key;

const MANIFEST: &str = "\
    0104746573740310082040020402400204020001011ad48f49627079d806b802c74f40c39d55fe1d78b3faf0f8017aec62ce\
    c42122fbe8030a017b7015bb92cf0b318037702a6cdd81dee41224f734684c2c122cd6359cb1ee63fbe8030a1017b7d1380a\
    0000803f77be7f3fcdcccc3d001017b7d1380a0000803f77be7f3fcdcccc3d00fbd007fb401ffbf401fbb80bfbf401fb1027\
    010200";
const BEAT: &str = "\
    00020100c0000207fba20f017979830cb2a363cb78b2e40e997b035c3dff2469238a53c0cd4994106f05b999010000fbed03\
    0000803f00000040018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c0000010000fc701101\
    00094459634e3de4850421b054c45d7dedb2a36d2c5273b4ba748709e0de948c7263ef96a6bd8cda55ece9a7ab7e92f75184\
    36a69d78f28923ce6b2ba359e107df0b";
const VOTE: &str = "\
    018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c000001c9381332cc7eccc51be3483add8d\
    dad321551c10d946af758182fb6694493796018139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3\
    946a61093e66d373766485ca79680877baff9e46ee27401c92f1bc84081d097d1e0a6be6a0627a5d11b574d5ba6fa4107407\
    43a79ad72a3b51b44c2f15b1a34a0f";
const CHECKPOINT: &str = "\
    028a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c0000c9381332cc7eccc51be3483add8dda\
    d321551c10d946af758182fb66944937960100fbe8030000003f060606060606060606060606060606060606060606060606\
    0606060606060606fc000010000707070707070707070707070707070707070707070707070707070707070707fc00001000\
    f0a88c2149ad86d9a88f3cd9a806418f2eeb61eb7bf2e2eaf638cdf123e1426d17d0a9b1e82de6ac570ebe408c5353fdb8eb\
    77d1deaea88a7a79c9cee5640404";
const REQUEST: &str = "\
    020000e9a1bc3838e9b04db768a981f97bebee757e86669f47d93b7d1ebfbd484a322101e9a1bc3838e9b04db768a981f97b\
    ebee757e86669f47d93b7d1ebfbd484a3221";
const ANSWER: &str = "\
    018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c0000010000fc70110100094459634e3de4\
    850421b054c45d7dedb2a36d2c5273b4ba748709e0de948c7263ef96a6bd8cda55ece9a7ab7e92f7518436a69d78f28923ce\
    6b2ba359e107df0b018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c0000c9381332cc7ecc\
    c51be3483add8ddad321551c10d946af758182fb66944937960100fbe8030000003f06060606060606060606060606060606\
    06060606060606060606060606060606fc000010000707070707070707070707070707070707070707070707070707070707\
    070707fc00001000f0a88c2149ad86d9a88f3cd9a806418f2eeb61eb7bf2e2eaf638cdf123e1426d17d0a9b1e82de6ac570e\
    be408c5353fdb8eb77d1deaea88a7a79c9cee5640404";

const NOW: Duration = Duration::from_secs(1);

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
}

fn author() -> NodeId {
    key(1).id()
}

/// A node of the version of today in the run of then.
fn agent() -> Agent {
    let manifest = Arc::new(Manifest::read(&bytes(MANIFEST)).unwrap());
    let settings = Settings { capacity: 1, mirror: Mirror::Replicas };
    Agent::new(Duration::ZERO, key(2), manifest, settings, 1, Memory::default()).unwrap()
}

#[test]
fn what_a_node_of_version_1_says_is_understood_and_answered() {
    let mut agent = agent();
    assert_eq!(agent.receive(NOW, author(), &bytes(BEAT)), Verdict::Accept);
    let claim = agent.register().current(Part::Expert(0)).unwrap();
    assert_eq!((claim.author(), claim.term, claim.seq), (author(), 1, 9));
    assert_eq!(agent.peers()[&author()].presence.capacity, 2);
    assert_eq!(agent.receive(NOW, author(), &bytes(VOTE)), Verdict::Accept);
    assert_eq!(agent.receive(NOW, author(), &bytes(CHECKPOINT)), Verdict::Accept);
    assert_eq!(agent.best(Part::Expert(0)).unwrap().step, 1000);
    // Its request is answered in the form that it reads: the very answer that a node of its version gave.
    assert_eq!(agent.answer(NOW, author(), &bytes(REQUEST)).unwrap(), bytes(ANSWER));
}

#[test]
fn a_node_of_version_1_brings_what_was_missed_in_its_answer() {
    let mut agent = agent();
    agent.connected(NOW, author());
    agent.tick(NOW);
    assert!(agent.take_actions().any(|action| matches!(action, Action::Pull(peer) if peer == author())));
    assert_eq!(agent.request(), Some(bytes(REQUEST)), "and it is asked as it expects");
    assert!(agent.pulled(NOW, author(), &bytes(ANSWER)));
    assert_eq!(agent.best(Part::Expert(0)).unwrap().step, 1000);
}

#[test]
fn what_a_later_version_adds_is_passed_over_and_nobody_is_blamed() {
    let mut agent = agent();
    let known = Gossip::from_bytes(&bytes(BEAT)).unwrap().to_bytes().unwrap();
    for kind in 4..=250 {
        for later in [vec![kind], [&[kind], &known[1..]].concat(), vec![kind; Gossip::LIMIT]] {
            assert_eq!(
                agent.receive(Duration::from_secs(10 * u64::from(kind)), author(), &later),
                Verdict::Ignore,
                "kind {kind}"
            );
        }
    }
    assert_eq!(agent.answer(NOW, author(), &[0xfa; 40]), None, "an unknown request goes unanswered");
    // A known kind that does not read is nobody's later version.
    let now = Duration::from_secs(10_000);
    assert_eq!(agent.receive(now, author(), &known[..known.len() - 1]), Verdict::Reject);
    assert_eq!(agent.receive(now, author(), &[251, 3, 0]), Verdict::Reject, "nor a kind written longer than needed");
    assert_eq!(agent.receive(now, author(), &[]), Verdict::Reject);
    // And who spoke in riddles is understood when it speaks plainly.
    assert_eq!(agent.receive(now, author(), &known), Verdict::Accept);
}
