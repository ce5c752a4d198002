//! The failure cases that a network of strangers meets, a named test each; what ownership, checkpoints and strangers test is not repeated here.

use std::time::Duration;

use paris_protocol::{
    agent::Verdict,
    checkpoint::{Blob, Checkpoint},
    claim::{Claim, ClaimId, Previous, Vote},
    codec::Wire,
    hash::Hash,
    identity::{Keypair, NodeId},
    manifest::Admission,
    message::{Gossip, Presence},
    part::Part,
    signed::Verified,
};

use crate::{
    common::{key, manifest},
    ownership::assert_agreed,
    strangers::{beat, claim_of, current, say, vote_for},
    world::{World, owner},
};

const PART: Part = Part::Expert(0);

fn term(world: &World, node: usize, part: Part) -> u64 {
    world.agent(node).register().current(part).map_or(0, |claim| claim.term)
}

#[test]
fn in_a_partition_the_side_with_a_quorum_owns_and_the_other_shadow_trains() {
    let mut world = World::of(40, manifest(3, 2), 4, 4);
    world.run_secs(65);
    let of_the_lone: Vec<_> = world.agent(3).owned().collect();
    let of_others: Vec<_> = world.parts().into_iter().filter(|part| !of_the_lone.contains(part)).collect();
    world.partition(&[0, 0, 0, 1]);
    world.run_secs(120);
    for part in &of_the_lone {
        assert_eq!(world.owners(*part).len(), 2, "the owner cannot know; the others have a quorum");
        assert_eq!((term(&world, 0, *part), term(&world, 3, *part)), (2, 1));
    }
    for part in &of_others {
        assert!(!world.owners(*part).contains(&3), "one voter is no quorum");
    }
    assert!(world.agent(3).shadows().count() > 0, "it does not idle");
    let lost_work = world.agent(3).best(of_the_lone[0]).unwrap().clone();
    world.partition(&[0; 4]);
    world.run_secs(60);
    assert_agreed(&world);
    assert!(of_the_lone.iter().all(|part| term(&world, 3, *part) == 2), "the higher term wins");
    for node in 0..4 {
        let candidates = world.agent(node).register().checkpoints(of_the_lone[0]);
        assert!(candidates.iter().any(|it| it.id() == lost_work.id()), "what the loser published stays a candidate");
    }
    assert!(world.living().iter().all(|node| world.agent(*node).shadows().count() == 0));
}

#[test]
fn an_owner_that_stalls_and_returns_is_fenced() {
    let mut world = World::of(41, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let stalled = world.owner(PART);
    let old = world.agent(stalled).register().current_id(PART).unwrap();
    world.suspend(stalled, 60);
    world.run_secs(30);
    assert_agreed(&world);
    assert_ne!(world.owner(PART), stalled);
    assert_eq!(term(&world, stalled, PART), 2);
    assert_ne!(world.agent(stalled).best(PART).unwrap().claim, old, "its checkpoints are no longer the head");
}

#[test]
fn a_flapping_owner_is_ranked_last() {
    let mut world = World::of(42, manifest(1, 1), 3, 2);
    world.run_secs(60);
    let flapper = world.owner(PART);
    for _ in 0..2 {
        world.kill(flapper);
        world.run_secs(30);
        world.start(flapper);
        world.run_secs(60);
    }
    assert_ne!(world.owner(PART), flapper);
    // It owns the least, and is still not the first to be asked.
    let other = world.owner(PART);
    world.kill(other);
    world.run_secs(25);
    let third = (0..3).find(|node| ![flapper, other].contains(node)).unwrap();
    assert_eq!(world.owner(PART), third);
    assert!(world.agent(third).register().losses(PART, world.agent(flapper).id()) > 0);
}

#[test]
fn with_more_nodes_than_parts_a_standby_takes_over() {
    let mut world = World::of(43, manifest(1, 2), 6, 1);
    world.run_secs(65);
    let (victim, begun) = (world.owner(PART), world.begun.len());
    world.kill(victim);
    world.run_secs(30);
    let taken: Vec<_> = world.begun[begun..].iter().filter(|it| it.part == PART).collect();
    assert_eq!(taken.len(), 1, "one standby, not all: {taken:?}");
    assert!(taken[0].step > 0, "from the checkpoint that was mirrored");
}

/// A squatter keeps its lease, and now and then publishes what `checkpoint` makes of the round.
fn squat(world: &mut World, seconds: u64, checkpoint: impl Fn(u64) -> Option<(u64, Hash)>) {
    let (liar, run) = (key(200), world.agent(0).run());
    let id = ClaimId::of(run, PART, 1, None, liar.id());
    for round in 0..seconds / 2 {
        let claim = Claim { part: PART, term: 1, previous: None, evidence: Vec::new(), boot: 1, seq: round + 1 };
        world.inject(liar.id(), &beat(&Verified::sign(&liar, run, claim)));
        if let Some((step, hash)) = checkpoint(round) {
            let blob = Blob { hash, bytes: 1 };
            let (weights, state) = (blob, blob);
            let record =
                Checkpoint { part: PART, claim: id, term: 1, parent: None, step, held_out_loss: 1.0, weights, state };
            world.inject(liar.id(), &Gossip::Checkpoint(Verified::sign(&liar, run, record).signed().clone()));
        }
        world.run_secs(2);
    }
}

#[test]
fn a_squatter_that_makes_no_progress_loses_its_part() {
    // The deadline is twenty ttls of eight seconds; the times that other nodes look again are on top.
    let mut world = World::new(44, manifest(2, 1));
    world.add(owner(3));
    world.add(owner(3));
    squat(&mut world, 120, |_| None);
    assert_eq!(world.owners(PART), [0; 0], "an owner has its time");
    squat(&mut world, 120, |_| None);
    world.run_secs(1);
    assert_eq!(world.owners(PART).len(), 1);
    assert!(term(&world, 0, PART) >= 2);
}

#[test]
fn fake_progress_that_nobody_can_fetch_is_no_progress() {
    // Where training ends, the last step is as easily said as any other.
    for (steps, step) in [(0, 1), (1000, u64::MAX / 2)] {
        let mut manifest = manifest(2, 1);
        manifest.expert_training.steps = steps;
        let mut world = World::new(45, manifest);
        world.add(owner(3));
        world.add(owner(3));
        squat(&mut world, 260, |round| (round % 5 == 0).then(|| (round + step, Hash::of(&round.to_le_bytes()))));
        assert_eq!(world.owners(PART).len(), 1);
        assert!(term(&world, 0, PART) >= 2);
    }
}

#[test]
fn a_part_that_is_finished_stays_with_its_owner_and_with_every_other_after_it() {
    let mut manifest = manifest(1, 1);
    manifest.expert_training.steps = 300;
    let mut world = World::of(57, manifest, 3, 1);
    world.run_secs(65);
    // Each publishes the same weights again, until nobody holds those that the first published.
    for change in 1..=3 {
        let owner = world.owner(PART);
        assert_eq!(world.best_step(owner, PART), 300);
        assert_eq!(term(&world, owner, PART), change);
        // The deadline is twenty ttls of eight seconds.
        world.run_secs(600);
        assert_eq!((world.owner(PART), term(&world, owner, PART)), (owner, change), "nothing is left to do");
        world.kill(owner);
        world.run_secs(60);
        world.start(owner);
        world.run_secs(60);
    }
}

#[test]
fn two_claims_on_one_part_and_term_bar_their_key() {
    let mut world = World::of(46, manifest(2, 2), 3, 3);
    world.run_secs(60);
    let (run, liar, accomplice) = (world.agent(0).run(), key(200), key(201));
    // Two keys found claims for the liar: on the part's owner, and on a rival of that owner.
    let seconded = |world: &World, previous: Option<Previous>, heir: &Keypair, by: &Keypair| {
        vote_for(world, by, previous.map(|it| it.claim), heir.id())
    };
    let first = current(&world);
    let rival = claim_of(&world, &accomplice, 1, None, vec![seconded(&world, None, &accomplice, &liar)]);
    let fork = Previous { claim: rival.id(run, accomplice.id()), owner: accomplice.id() };
    let one = claim_of(&world, &liar, 2, Some(first), vec![seconded(&world, Some(first), &liar, &accomplice)]);
    let other = claim_of(&world, &liar, 2, Some(fork), vec![seconded(&world, Some(fork), &liar, &accomplice)]);
    for claim in [&rival, &one] {
        say(&mut world, claim.author(), &beat(claim));
    }
    assert!(!world.agent(0).register().is_barred(liar.id()));
    assert_eq!(say(&mut world, liar.id(), &beat(&other)), Verdict::Ignore);
    assert!(world.living().iter().all(|node| world.agent(*node).register().is_barred(liar.id())));
    // A live lease does not help it: it is passed over at once, and its word counts no more.
    for round in 2..12 {
        let again = Verified::sign(&liar, run, Claim { seq: round, ..(*one).clone() });
        world.inject(liar.id(), &beat(&again));
        world.run_secs(2);
    }
    assert_ne!(world.agent(0).register().current(PART).unwrap().author(), liar.id());
    let suspicion = vote_for(&world, &liar, world.agent(0).register().current_id(PART), accomplice.id());
    assert_eq!(say(&mut world, liar.id(), &Gossip::Vote(suspicion)), Verdict::Ignore);
    // A newcomer learns it from the records alone.
    let newcomer = world.add(owner(1));
    world.nodes[newcomer].deaf = true;
    world.run_secs(30);
    assert!(world.agent(newcomer).register().is_barred(liar.id()));
}

#[test]
fn a_copycat_makes_no_progress() {
    let mut world = World::new(47, manifest(2, 1));
    world.add(owner(3));
    world.add(owner(3));
    // What it publishes all has the same weights.
    squat(&mut world, 260, |round| (round % 5 == 0).then(|| (round + 1, Hash::of(b"somebody else's weights"))));
    assert!(term(&world, 0, PART) >= 2);
}

#[test]
fn a_thousand_keys_that_are_not_admitted_cost_no_memory_and_take_nothing() {
    let mut closed = manifest(2, 2);
    closed.admission = Admission::AllowList((1..=3).map(|number| key(number).id()).collect());
    let mut world = World::of(48, closed, 3, 3);
    world.run_secs(60);
    let digest = world.agent(0).register().digest();
    let now = current(&world);
    let run = world.agent(0).run();
    for number in 0..1000_u32 {
        let mut secret = [9; 32];
        secret[..4].copy_from_slice(&number.to_le_bytes());
        let sybil = Keypair::from_secret(&secret);
        let suspicion = vote_for(&world, &sybil, Some(now.claim), sybil.id());
        let bytes = |message: &Gossip| message.to_bytes().unwrap();
        let first = Claim { part: PART, term: 1, previous: None, evidence: Vec::new(), boot: 1, seq: 1 };
        let first = beat(&Verified::sign(&sybil, run, first));
        let verdicts = world.input(0, |agent, now| {
            [Gossip::Vote(suspicion), first].map(|message| agent.receive(now, sybil.id(), &bytes(&message)))
        });
        assert_eq!(verdicts, [Verdict::Ignore, Verdict::Reject]);
    }
    assert_eq!(world.agent(0).register().digest(), digest);
}

#[test]
fn all_leave_and_one_that_returns_a_week_later_goes_on() {
    let mut world = World::of(49, manifest(2, 2), 3, 3);
    world.run_secs(65);
    let best: Vec<_> = world.parts().iter().map(|part| world.best_step(0, *part)).collect();
    let own: Vec<_> = world.agent(0).owned().collect();
    for node in 0..3 {
        world.kill(node);
    }
    world.run_secs(7 * 24 * 3600);
    let begun = world.begun.len();
    world.start(0);
    world.run_secs(120);
    assert_eq!(world.agent(0).owned().collect::<Vec<_>>(), own, "its own parts are still its own, no other can be");
    assert!(world.agent(0).shadows().count() > 0, "it goes on with what it has");
    world.start(1);
    world.run_secs(90);
    for (part, best) in world.parts().into_iter().zip(best) {
        assert_eq!(world.owners(part).len(), 1, "{part}");
        let first = world.begun[begun..].iter().find(|it| it.part == part).unwrap();
        assert!(first.step >= best && best > 0, "{part} went on at {} of {best}", first.step);
    }
}

#[test]
fn a_shadow_publishes_what_it_reached_when_the_votes_come() {
    let mut world = World::of(50, manifest(1, 2), 2, 2);
    world.run_secs(65);
    let survivor = world.owner(PART);
    let part = Part::Router;
    world.kill(1 - survivor);
    let lost_at = world.best_step(survivor, part);
    world.run_secs(180);
    assert_eq!(world.agent(survivor).shadows().collect::<Vec<_>>(), [part]);
    assert_eq!(world.best_step(survivor, part), lost_at, "a shadow publishes nothing");
    let begun = world.begun.len();
    let voter = world.add(owner(2));
    world.run_secs(60);
    assert_eq!(world.owner(part), survivor);
    assert!(world.load(voter) <= 1);
    assert_eq!(world.begun[begun..].iter().filter(|it| it.part == part).count(), 0, "the same trainer goes on");
    // Ten steps a second, for the two minutes and more since it began.
    assert!(world.best_step(survivor, part) > lost_at + 1200, "{lost_at}");
}

#[test]
fn a_part_that_was_lost_without_a_last_checkpoint_is_trained_in_the_shadow_later() {
    let mut world = World::of(58, manifest(1, 2), 3, 2);
    world.run_secs(65);
    // As where the part's data was still on its way, or its trainer had finished.
    let loser = world.owner(PART);
    world.nodes[loser].mute_trainers = true;
    world.suspend(loser, 60);
    world.run_secs(60);
    assert_ne!(world.owner(PART), loser);
    // Alone it can go on from what it holds.
    while !world.agent(loser).best(PART).is_some_and(|best| world.agent(loser).holds(best.id())) {
        world.run_for(Duration::from_millis(100));
    }
    let mut islands = [0; 3];
    islands[loser] = 1;
    world.partition(&islands);
    world.run_secs(180);
    assert!(world.agent(loser).shadows().any(|part| part == PART));
}

/// A key whose claim on the part in term 1 would beat the current one's by name.
fn ground_key(world: &World) -> Keypair {
    let run = world.agent(0).run();
    let name = |author: &Keypair| ClaimId::of(run, PART, 1, None, author.id());
    let current = world.agent(0).register().current_id(PART).unwrap();
    (100..=255).map(key).find(|author| name(author) > current).expect("one of many keys is greater")
}

#[test]
fn with_quorum_two_no_key_however_chosen_takes_a_part_from_a_live_owner() {
    let mut world = World::of(51, manifest(1, 2), 3, 2);
    world.run_secs(60);
    let before = world.agent(0).register().current_id(PART);
    let liar = ground_key(&world);
    let bare = claim_of(&world, &liar, 1, None, Vec::new());
    assert_eq!(say(&mut world, liar.id(), &beat(&bare)), Verdict::Reject);
    // Votes that others cast for the owner are no votes for the liar.
    let cast = world.agent(0).register().current(PART).unwrap().evidence.clone();
    assert_eq!(cast.len(), 1);
    let borrowed = claim_of(&world, &liar, 1, None, cast);
    assert_eq!(say(&mut world, liar.id(), &beat(&borrowed)), Verdict::Reject);
    // Nor does anyone second it while the owner lives.
    for _ in 0..10 {
        let presence = Presence { capacity: 1, ..Presence::default() };
        world.inject(liar.id(), &Gossip::Beat { presence, claims: Vec::new() });
        let wish = vote_for(&world, &liar, before, liar.id());
        world.inject(liar.id(), &Gossip::Vote(wish));
        world.run_secs(4);
    }
    assert_eq!(world.agent(0).register().current_id(PART), before);
}

#[test]
fn with_quorum_two_an_isolated_newcomer_claims_nothing() {
    let mut world = World::of(52, manifest(1, 2), 3, 2);
    world.run_secs(60);
    let names: Vec<_> = world.parts().iter().map(|part| world.agent(0).register().current_id(*part)).collect();
    world.partition(&[0; 3]);
    let newcomer = world.add_on(owner(2), 1);
    world.run_secs(120);
    assert_eq!(world.load(newcomer), 0);
    assert!(world.agent(newcomer).shadows().count() > 0);
    world.partition(&[0; 4]);
    world.run_secs(30);
    let after: Vec<_> = world.parts().iter().map(|part| world.agent(0).register().current_id(*part)).collect();
    assert_eq!(after, names, "nobody lost anything to it");
    assert_eq!(world.agent(newcomer).shadows().count(), 0);
}

#[test]
fn a_released_part_goes_to_the_heir_that_its_owner_named() {
    let mut world = World::of(53, manifest(2, 3), 4, 3);
    world.run_secs(60);
    let leaver = world.owner(PART);
    world.input(leaver, |agent, now| agent.leave(now));
    world.run_secs(30);
    let claim = world.agent(world.owner(PART)).register().current(PART).unwrap().clone();
    assert_eq!(claim.evidence.len(), 1, "the owner's word alone");
    let vote: Verified<Vote> = claim.evidence[0].clone().verify(world.agent(0).run()).unwrap();
    let heir: NodeId = claim.author();
    assert_eq!((vote.author(), vote.heir), (world.agent(leaver).id(), Some(heir)));
}

#[test]
fn a_heartbeat_that_gossip_brings_after_the_release_does_not_undo_it() {
    let mut world = World::of(54, manifest(3, 1), 2, 4);
    world.run_secs(120);
    let leaver = (0..2).max_by_key(|node| world.load(*node)).unwrap();
    let (heir, id) = (1 - leaver, world.agent(leaver).id());
    let left: Vec<Part> = world.parts().into_iter().filter(|part| world.owner(*part) == leaver).collect();
    // The heir claims one after the other, so the last is still open when the heartbeat comes.
    assert!(left.len() >= 2, "{left:?}");
    let late = left.iter().map(|part| {
        let claim = world.agent(leaver).register().current(*part).unwrap();
        let claim = Claim { seq: claim.seq + 1, ..(**claim).clone() };
        Verified::sign(&key(leaver as u8 + 1), world.agent(0).run(), claim).signed().clone()
    });
    let late = Gossip::Beat { presence: Presence::default(), claims: late.collect() }.to_bytes().unwrap();
    world.input(leaver, |agent, now| agent.leave(now));
    world.run_for(Duration::from_millis(250));
    world.input(heir, |agent, now| agent.receive(now, id, &late));
    // Less than the ttl, after which silence would free them anyway.
    world.run_secs(5);
    for part in left {
        assert_eq!(world.agent(heir).register().current(part).unwrap().author(), world.agent(heir).id(), "{part}");
    }
}

#[test]
fn who_lost_a_race_for_a_part_may_follow_at_once_when_its_owner_leaves() {
    let mut manifest = manifest(3, 1);
    // Longer than the test: nothing here comes free by silence, and a back-off would outlast it.
    manifest.ownership.ttl_ms = 1_200_000;
    let mut world = World::new(55, manifest);
    world.add_on(owner(4), 0);
    world.add_on(owner(4), 1);
    world.run_secs(60);
    assert!(world.parts().iter().all(|part| world.owners(*part).len() == 2), "each thinks that it is alone");
    world.partition(&[0, 0]);
    world.run_secs(60);
    assert_agreed(&world);
    let leaver = (0..2).max_by_key(|node| world.load(*node)).unwrap();
    world.input(leaver, |agent, now| agent.leave(now));
    world.run_secs(20);
    assert_eq!(world.load(1 - leaver), world.parts().len());
}
