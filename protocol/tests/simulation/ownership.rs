//! Who owns what, and how it changes.

use std::{collections::BTreeSet, time::Duration};

use paris_protocol::{agent::Settings, claim::ClaimId, part::Part};

use crate::{
    common::manifest,
    world::{World, owner},
};

/// Every living node names the same owner of every part, and that node agrees.
pub(crate) fn assert_agreed(world: &World) {
    for part in world.parts() {
        let owner = world.agent(world.owner(part)).id();
        for node in world.living() {
            let named = world.agent(node).register().current(part).map(|claim| claim.author());
            assert_eq!(named, Some(owner), "node {node} on {part}");
        }
    }
}

fn loads(world: &World) -> Vec<usize> {
    world.living().into_iter().map(|node| world.load(node)).collect()
}

fn term(world: &World, part: Part) -> u64 {
    world.agent(world.living()[0]).register().current(part).map_or(0, |claim| claim.term)
}

#[test]
fn every_part_is_owned_once_and_the_load_is_even() {
    for seed in 0..5 {
        let mut world = World::of(seed, manifest(4, 1), 4, 4);
        world.run_secs(60);
        assert_agreed(&world);
        let loads = loads(&world);
        assert_eq!(loads.iter().sum::<usize>(), 5);
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "seed {seed}: {loads:?}");
    }
}

#[test]
fn twenty_nodes_that_start_at_once_agree() {
    for seed in 0..2 {
        let mut world = World::of(seed, manifest(7, 1), 20, 2);
        world.lost_of_thousand = 50;
        world.run_secs(40);
        assert_agreed(&world);
        assert!(loads(&world).iter().all(|load| *load <= 1), "eight parts, twenty nodes: {:?}", loads(&world));
        let trained: BTreeSet<_> = world.begun.iter().map(|it| it.part).collect();
        assert_eq!(trained.len(), 8);
        assert!(world.begun.len() <= 10, "the delay by rank keeps duplicates few: {:?}", world.begun);
    }
}

#[test]
fn a_lone_node_hands_over_when_others_join_and_then_nothing_changes_for_an_hour() {
    let mut world = World::of(1, manifest(4, 1), 1, 8);
    world.run_secs(60);
    assert_eq!(world.load(0), 5);
    world.add(owner(8));
    world.add(owner(8));
    world.run_secs(240);
    assert_agreed(&world);
    let settled = loads(&world);
    assert!(settled.iter().max().unwrap() - settled.iter().min().unwrap() <= 1, "{settled:?}");
    let begun = world.begun.len();
    world.run_secs(3600);
    assert_eq!(world.begun.len(), begun, "no change of owner in a quiet hour: {:?}", &world.begun[begun..]);
    assert_agreed(&world);
}

#[test]
fn a_part_that_was_handed_over_and_soon_comes_back_waits_for_nobody() {
    let mut world = World::of(3, manifest(1, 1), 1, 2);
    world.run_secs(60);
    let guest = world.add(owner(2));
    while world.load(guest) == 0 {
        assert!(world.now < Duration::from_secs(300), "nothing was handed over");
        world.run_secs(1);
    }
    // The back-off of a node that could not train a part is 32 s; this one could.
    world.run_secs(9);
    world.input(guest, |agent, now| agent.leave(now));
    world.run_secs(5);
    assert_eq!(world.load(0), 2);
}

#[test]
fn an_orderly_leave_hands_over_without_waiting_for_the_ttl() {
    let mut world = World::of(2, manifest(2, 1), 3, 3);
    world.run_secs(60);
    let parts: Vec<_> = world.agent(0).owned().collect();
    assert!(!parts.is_empty());
    world.input(0, |agent, now| agent.leave(now));
    // Ranks, the intent window and the fetch take less than the ttl of 8 s.
    world.run_secs(5);
    for part in &parts {
        assert!(world.begun.iter().filter(|it| it.part == *part).any(|it| it.node != 0 && it.step > 0), "{part}");
    }
    world.run_secs(60);
    assert_eq!(world.load(0), 0);
    assert_agreed(&world);
}

#[test]
fn a_restarted_owner_within_the_ttl_keeps_its_term_and_its_seq_grows() {
    let mut world = World::of(3, manifest(2, 1), 3, 3);
    world.run_secs(60);
    let node = world.owner(Part::Router);
    let before = world.agent(node).register().current(Part::Router).unwrap().clone();
    let best = world.best_step(node, Part::Router);
    world.kill(node);
    world.run_secs(2);
    world.start(node);
    world.run_secs(20);
    assert_agreed(&world);
    let after = world.agent(node).register().current(Part::Router).unwrap();
    assert_eq!((after.author(), after.term), (before.author(), before.term));
    assert!(after.seq > before.seq && after.boot != before.boot);
    let again = world.begun.iter().rfind(|it| it.part == Part::Router).unwrap();
    assert!(again.step >= best && best > 0, "resumed at {} of {best}", again.step);
}

#[test]
fn an_owner_killed_again_and_again_never_signs_a_seq_twice() {
    let mut world = World::of(4, manifest(1, 1), 2, 2);
    world.run_secs(30);
    let mut last = 0;
    for _ in 0..10 {
        // The world itself asserts that no seq is published beyond the durable reservation.
        world.kill(0);
        world.start(0);
        world.run_secs(15);
        let reserved = world.nodes[0].disk.log.values().copied().max().unwrap_or(0);
        assert!(reserved >= last);
        last = reserved;
    }
    assert_agreed(&world);
}

#[test]
fn a_killed_owners_parts_go_to_others_under_the_next_term() {
    for seed in 0..5 {
        let mut world = World::of(seed, manifest(4, 1), 4, 4);
        world.run_secs(60);
        let victim = world.owner(Part::Expert(0));
        let lost: Vec<_> = world.agent(victim).owned().collect();
        world.kill(victim);
        world.run_secs(60);
        assert_agreed(&world);
        for part in lost {
            assert_ne!(world.owner(part), victim);
            assert_eq!(term(&world, part), 2, "{part}");
        }
    }
}

#[test]
fn with_quorum_two_a_takeover_succeeds_although_half_of_all_gossip_is_lost() {
    let mut world = World::of(5, manifest(2, 2), 4, 4);
    world.run_secs(60);
    world.lost_of_thousand = 500;
    let victim = world.owner(Part::Expert(1));
    world.kill(victim);
    world.run_secs(180);
    world.lost_of_thousand = 0;
    world.run_secs(60);
    assert_agreed(&world);
}

#[test]
fn without_a_quorum_of_voters_nobody_takes_over_until_they_are_back() {
    let mut world = World::of(6, manifest(2, 2), 2, 4);
    world.run_secs(60);
    let part = world.agent(0).owned().next().unwrap();
    world.kill(0);
    world.run_secs(60);
    assert!(world.owners(part).is_empty());
    let voter = world.add(owner(4));
    world.run_secs(60);
    assert!([1, voter].contains(&world.owner(part)));
    assert_agreed(&world);
}

#[test]
fn a_late_joiner_that_hears_no_gossip_converges_by_pulls_alone() {
    let mut world = World::of(7, manifest(3, 1), 3, 3);
    world.run_secs(60);
    let joiner = world.add(owner(3));
    world.nodes[joiner].deaf = true;
    world.run_secs(60);
    assert_eq!(world.load(joiner), 0, "owners that pulls show to be alive keep their parts");
    assert_agreed(&world);
    for part in world.parts() {
        // The last checkpoint may still be on its way.
        assert!(world.best_step(joiner, part) + 100 >= world.best_step(world.owner(part), part), "{part}");
        assert!(world.best_step(joiner, part) > 0);
    }
}

#[test]
fn a_healed_partition_names_one_owner_and_one_best_checkpoint() {
    for seed in 0..5 {
        let mut world = World::of(seed, manifest(3, 1), 4, 4);
        world.run_secs(60);
        world.partition(&[0, 0, 1, 1]);
        world.run_secs(60);
        for part in world.parts() {
            assert_eq!(world.owners(part).len(), 2, "both sides train {part}");
        }
        world.partition(&[0, 0, 0, 0]);
        world.run_secs(120);
        assert_agreed(&world);
        for part in world.parts() {
            let best = |node| world.agent(node).best(part).map(|best| (best.term, best.claim));
            assert!((1..4).all(|node| best(node) == best(0)), "seed {seed}: {part}");
        }
    }
}

#[test]
fn a_suspended_node_listens_before_it_suspects() {
    let mut world = World::of(8, manifest(2, 1), 3, 3);
    let watcher = world.add(Settings { capacity: 3, ..owner(3) });
    world.run_secs(60);
    let claims: Vec<ClaimId> =
        world.parts().iter().map(|part| world.agent(0).register().current_id(*part).unwrap()).collect();
    // Nothing reaches the watcher and it does nothing for a minute; then its clock jumps.
    world.suspend(watcher, 60);
    world.run_secs(60);
    let after: Vec<ClaimId> =
        world.parts().iter().map(|part| world.agent(0).register().current_id(*part).unwrap()).collect();
    let watcher_owned = world.parts().len() - claims.iter().zip(&after).filter(|(a, b)| a == b).count();
    assert_eq!(watcher_owned, 0, "owners that were alive all along keep their parts");
}

#[test]
fn a_trainer_that_fails_gives_its_part_to_another_and_alone_it_tries_again() {
    let mut world = World::of(9, manifest(1, 1), 2, 2);
    world.run_secs(60);
    let (part, node) = (Part::Router, world.owner(Part::Router));
    world.trainer_failed(node, part);
    world.run_secs(10);
    assert_ne!(world.owner(part), node);

    let mut world = World::of(10, manifest(1, 1), 1, 2);
    world.run_secs(60);
    let begun = world.begun.len();
    world.trainer_failed(0, part);
    world.run_secs(60);
    assert_eq!(world.begun.len(), begun + 1);
    assert!(world.begun[begun].step > 0);
    assert_agreed(&world);
}

#[test]
fn an_owner_of_more_parts_than_a_message_holds_keeps_them_all_alive() {
    // A claim takes about 180 of a message's 61 440 bytes.
    let mut many = manifest(1, 1);
    many.clusters = vec![many.clusters[0].clone(); 379];
    many.ownership.checkpoint_ms = 10_000_000;
    many.ownership.intent_ms = 50;
    (many.ownership.heartbeat_ms, many.ownership.ttl_ms) = (5000, 15_000);
    let mut world = World::of(11, many, 1, 1000);
    let watcher = world.add(owner(0));
    world.run_secs(40);
    assert_eq!(world.load(0), 380);
    let now = world.now;
    assert!(world.parts().iter().all(|part| world.agent(watcher).owner_is_live(now, *part)));
    let current = |world: &World| world.agent(watcher).register().current(Part::Router).unwrap().seq;
    let before = current(&world);
    world.run_secs(10);
    assert!(current(&world) > before);
}
