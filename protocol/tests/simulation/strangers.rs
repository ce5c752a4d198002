//! What liars, strangers and accidents with keys cannot do.

use paris_protocol::{
    agent::{Halt, Verdict},
    checkpoint::{Blob, Checkpoint},
    claim::{Claim, ClaimId, Previous, Vote},
    codec::Wire,
    hash::Hash,
    identity::{Keypair, NodeId},
    manifest::Admission,
    message::{Gossip, Presence},
    part::Part,
    signed::{Signed, Verified},
};

use crate::{
    common::{key, manifest},
    world::{World, owner},
};

const PART: Part = Part::Expert(0);

fn liar() -> Keypair {
    key(200)
}

/// The names of the current claims, as the first node sees them.
fn claims(world: &World) -> Vec<Option<ClaimId>> {
    world.parts().iter().map(|part| world.agent(0).register().current_id(*part)).collect()
}

pub(crate) fn current(world: &World) -> Previous {
    let claim = world.agent(0).register().current(PART).unwrap();
    Previous { claim: claim.id(world.agent(0).run(), claim.author()), owner: claim.author() }
}

pub(crate) fn claim_of(
    world: &World,
    author: &Keypair,
    term: u64,
    previous: Option<Previous>,
    evidence: Vec<Signed<Vote>>,
) -> Verified<Claim> {
    let claim = Claim { part: PART, term, previous, evidence, boot: 1, seq: 1 };
    Verified::sign(author, world.agent(0).run(), claim)
}

pub(crate) fn vote_for(world: &World, author: &Keypair, claim: Option<ClaimId>, heir: NodeId) -> Signed<Vote> {
    let vote = Vote { part: PART, claim, heir: Some(heir) };
    Verified::sign(author, world.agent(0).run(), vote).signed().clone()
}

pub(crate) fn beat(claim: &Verified<Claim>) -> Gossip {
    Gossip::Beat { presence: Presence::default(), claims: vec![claim.signed().clone()] }
}

pub(crate) fn say(world: &mut World, from: NodeId, message: &Gossip) -> Verdict {
    let bytes = message.to_bytes().unwrap();
    world.inject(from, message);
    world.input(0, |agent, now| agent.receive(now, from, &bytes))
}

#[test]
fn with_quorum_two_one_liars_suspicions_take_no_part_from_a_live_owner() {
    let mut world = World::of(21, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let (before, begun) = (claims(&world), world.begun.len());
    let liar = liar();
    for _ in 0..30 {
        let current = current(&world);
        let suspicion = vote_for(&world, &liar, Some(current.claim), liar.id());
        say(&mut world, liar.id(), &Gossip::Vote(suspicion.clone()));
        let theft = claim_of(&world, &liar, 2, Some(current), vec![suspicion.clone()]);
        assert_eq!(say(&mut world, liar.id(), &beat(&theft)), Verdict::Reject);
        let twice = claim_of(&world, &liar, 2, Some(current), vec![suspicion.clone(), suspicion]);
        assert_eq!(say(&mut world, liar.id(), &beat(&twice)), Verdict::Reject);
        world.run_secs(5);
    }
    assert_eq!((claims(&world), world.begun.len()), (before, begun));
}

#[test]
fn with_quorum_two_one_key_cannot_count_up_terms_by_itself() {
    let mut world = World::of(22, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let (run, liar) = (world.agent(0).run(), liar());
    let first = claim_of(&world, &liar, 1, None, Vec::new());
    say(&mut world, liar.id(), &beat(&first));
    let previous = Previous { claim: first.id(run, liar.id()), owner: liar.id() };
    let release = vote_for(&world, &liar, Some(previous.claim), liar.id());
    let second = claim_of(&world, &liar, 2, Some(previous), vec![release]);
    assert_eq!(say(&mut world, liar.id(), &beat(&second)), Verdict::Reject);
    assert_eq!(world.agent(0).register().current(PART).unwrap().term, 1);
}

#[test]
fn a_made_up_term_changes_no_owner_and_costs_no_memory() {
    let mut world = World::of(23, manifest(2, 1), 3, 3);
    world.run_secs(60);
    let (before, run, liar) = (claims(&world), world.agent(0).run(), liar());
    for term in [2, 3, u64::MAX] {
        let previous = Previous { claim: ClaimId(Hash::of(&term.to_le_bytes())), owner: liar.id() };
        let release = vote_for(&world, &liar, Some(previous.claim), liar.id());
        let jump = claim_of(&world, &liar, term, Some(previous), vec![release]);
        say(&mut world, liar.id(), &beat(&jump));
        assert!(world.agent(0).register().claim(PART, jump.id(run, liar.id())).is_none());
    }
    // A known predecessor does not help either.
    let current = current(&world);
    let suspicion = vote_for(&world, &liar, Some(current.claim), liar.id());
    let jump = claim_of(&world, &liar, u64::MAX, Some(current), vec![suspicion]);
    assert_eq!(say(&mut world, liar.id(), &beat(&jump)), Verdict::Reject);
    world.run_secs(60);
    assert_eq!(claims(&world), before);
}

#[test]
fn checkpoints_of_a_lost_claim_push_out_no_others() {
    let mut world = World::of(24, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let run = world.agent(0).run();
    // A claim of term 1 with a smaller name than the current: valid, known, and never current.
    let name = |author: &Keypair| ClaimId::of(run, PART, 1, None, author.id());
    let current_id = world.agent(0).register().current_id(PART).unwrap();
    let liar = (100..=255).map(key).find(|author| name(author) < current_id).unwrap();
    let lost = claim_of(&world, &liar, 1, None, Vec::new());
    say(&mut world, liar.id(), &beat(&lost));
    let blob = Blob { hash: Hash::of(b"junk"), bytes: 1 };
    for step in 0..40 {
        let junk = Checkpoint {
            part: PART,
            claim: name(&liar),
            term: 1,
            parent: None,
            step: u64::MAX - step,
            held_out_loss: 0.0,
            weights: blob,
            state: blob,
        };
        say(&mut world, liar.id(), &Gossip::Checkpoint(Verified::sign(&liar, run, junk).signed().clone()));
    }
    for node in world.living() {
        let register = world.agent(node).register();
        assert!(register.checkpoints(PART).iter().any(|it| it.claim == current_id), "node {node}");
        assert_eq!(world.agent(node).best(PART).unwrap().claim, current_id);
    }
}

#[test]
fn a_claim_of_a_key_that_is_not_admitted_is_refused() {
    let mut allowed = manifest(1, 1);
    allowed.admission = Admission::AllowList((1..=3).map(|number| key(number).id()).collect());
    let mut world = World::of(25, allowed, 3, 3);
    let outsider = world.add(owner(3));
    world.run_secs(60);
    assert_eq!(world.load(outsider), 0, "an honest outsider does not even try");
    let before = claims(&world);
    assert!(before.iter().all(Option::is_some));
    let theft = claim_of(&world, &liar(), 1, None, Vec::new());
    assert_eq!(say(&mut world, liar().id(), &beat(&theft)), Verdict::Reject);
    let current = current(&world);
    let suspicion = vote_for(&world, &liar(), Some(current.claim), liar().id());
    assert_eq!(say(&mut world, liar().id(), &Gossip::Vote(suspicion)), Verdict::Ignore);
    world.run_secs(30);
    assert_eq!(claims(&world), before);
}

#[test]
fn records_of_another_author_or_run_are_rejected() {
    let mut world = World::of(26, manifest(1, 1), 2, 2);
    world.run_secs(30);
    let honest = claim_of(&world, &key(1), 1, None, Vec::new());
    assert_eq!(say(&mut world, liar().id(), &beat(&honest)), Verdict::Reject, "relayed under another envelope");
    let other = World::of(26, manifest(2, 1), 1, 1);
    let foreign = claim_of(&other, &liar(), 1, None, Vec::new());
    assert_eq!(say(&mut world, liar().id(), &beat(&foreign)), Verdict::Reject);
}

#[test]
fn one_key_that_floods_is_passed_over_and_the_others_are_heard() {
    let mut world = World::of(29, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let (before, liar) = (claims(&world), liar());
    let silly = Gossip::Beat { presence: Presence::default(), claims: Vec::new() };
    let verdicts: Vec<_> = (0..10_000)
        .map(|_| {
            let bytes = silly.to_bytes().unwrap();
            world.input(0, |agent, now| agent.receive(now, liar.id(), &bytes))
        })
        .collect();
    let accepted = verdicts.iter().filter(|verdict| **verdict == Verdict::Accept).count();
    assert!((50..500).contains(&accepted), "{accepted} passed on");
    assert!(verdicts[accepted..].iter().all(|verdict| *verdict == Verdict::Ignore), "who forwards it is not to blame");
    let honest = world.agent(1).id();
    let bytes = silly.to_bytes().unwrap();
    assert_eq!(world.input(0, |agent, now| agent.receive(now, honest, &bytes)), Verdict::Accept);
    world.run_secs(60);
    assert_eq!(claims(&world), before);
}

#[test]
fn one_peer_that_asks_without_end_is_answered_so_often_and_another_as_before() {
    let mut world = World::of(30, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let (request, honest) = (world.agent(1).request().unwrap(), world.agent(1).id());
    let mut answered = |from: NodeId, requests: usize| {
        let answers = (0..requests).map(|_| world.input(0, |agent, now| agent.answer(now, from, &request)));
        answers.flatten().count()
    };
    assert!((1..50).contains(&answered(liar().id(), 1000)));
    assert_eq!(answered(honest, 1), 1);
}

#[test]
fn a_peer_is_asked_once_at_a_time_and_not_for_a_while_after_a_lie() {
    let mut world = World::of(31, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let liar = liar();
    let asks = |world: &mut World, seconds: u64| {
        let pulled = world.pulled.len();
        world.run_secs(seconds);
        world.pulled[pulled..].iter().filter(|asked| **asked == (0, liar.id())).count()
    };
    // Claims on claims that nobody knows: each seems to say that this node lacks something.
    let riddle = |world: &mut World| {
        for number in 0..20_u8 {
            let unknown = Previous { claim: ClaimId(Hash::of(&[number])), owner: key(201).id() };
            let release = vote_for(world, &key(201), Some(unknown.claim), liar.id());
            let claim = beat(&claim_of(world, &liar, 2, Some(unknown), vec![release])).to_bytes().unwrap();
            world.input(0, |agent, now| agent.receive(now, liar.id(), &claim));
        }
    };
    let pulled = world.pulled.len();
    world.input(0, |agent, now| agent.connected(now, liar.id()));
    riddle(&mut world);
    assert_eq!(world.pulled[pulled..], [(0, liar.id())]);
    assert_eq!(asks(&mut world, 20), 0, "it has not answered");
    let pulled = world.pulled.len();
    world.input(0, |agent, _| agent.pull_failed(liar.id()));
    assert_eq!(world.pulled[pulled..], [(0, liar.id())], "a heartbeat has passed");
    riddle(&mut world);
    assert!(!world.input(0, |agent, now| agent.pulled(now, liar.id(), b"no records")));
    for _ in 0..10 {
        riddle(&mut world);
        world.input(0, |agent, _| agent.disconnected(liar.id()));
        world.input(0, |agent, now| agent.connected(now, liar.id()));
        assert_eq!(asks(&mut world, 25), 0, "it lied");
    }
    assert!(asks(&mut world, 60) > 0);
}

#[test]
fn the_same_key_on_a_second_machine_halts_it() {
    let mut world = World::of(27, manifest(2, 1), 2, 3);
    world.run_secs(60);
    // A copy of the key without its claim log.
    let copy = world.add_with_key(1, owner(3));
    world.run_secs(10);
    assert!(matches!(world.nodes[copy].halted, Some(Halt::KeyInUse(_))));
    assert_eq!(world.nodes[0].halted, None);
    assert!(world.load(0) > 0);
}

#[test]
fn a_claim_log_that_lags_behind_the_claims_halts_at_the_start() {
    let mut world = World::of(28, manifest(1, 1), 1, 2);
    world.run_secs(30);
    world.kill(0);
    world.nodes[0].disk.log.clear();
    world.start(0);
    assert!(matches!(world.nodes[0].halted, Some(Halt::KeyInUse(_))));
}
