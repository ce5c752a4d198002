//! Nothing that was trained is lost.

use std::collections::BTreeMap;

use paris_protocol::{
    agent::{Mirror, Settings},
    part::Part,
};

use crate::{
    common::manifest,
    world::{World, owner},
};

#[test]
fn a_killed_owners_successor_goes_on_from_the_best_replica() {
    for seed in 0..5 {
        let mut world = World::of(seed, manifest(3, 1), 4, 4);
        world.run_secs(65);
        for part in world.parts() {
            let victim = world.owner(part);
            let best = world.agent(victim).best(part).unwrap().clone();
            assert!(world.holders(best.id()).len() >= 2, "replicated");
            let (begun, lost) = (world.begun.len(), world.agent(victim).owned().collect::<Vec<_>>());
            world.kill(victim);
            world.run_secs(40);
            let again = world.begun[begun..].iter().find(|it| it.part == part).expect("taken over");
            assert!(
                again.step >= best.step && again.step > 0,
                "seed {seed}: {part} at {} of {}",
                again.step,
                best.step
            );
            assert!(world.begun[begun..].iter().all(|it| it.step > 0 && lost.contains(&it.part)), "nobody begins anew");
            world.start(victim);
            world.run_secs(40);
        }
    }
}

#[test]
fn a_best_checkpoint_that_nobody_delivers_is_passed_over_for_the_next() {
    let mut world = World::of(11, manifest(1, 1), 3, 3);
    world.run_secs(65);
    let part = Part::Expert(0);
    let victim = world.owner(part);
    // From now on only the victim has what it trains.
    let best = world.best_step(victim, part);
    world.nodes[victim].mute_blobs = true;
    world.run_secs(25);
    assert!(world.best_step(victim, part) > best);
    world.kill(victim);
    world.run_secs(120);
    let again = world.begun.iter().rfind(|it| it.part == part).unwrap();
    assert_ne!(again.node, victim);
    assert!(again.step >= best && best > 0, "went on at {} of {best}", again.step);
}

#[test]
fn an_isolated_node_never_begins_anew_what_others_still_have() {
    let mut world = World::of(12, manifest(1, 1), 2, 1);
    let spare = world.add(owner(2));
    world.run_secs(65);
    let begun = world.begun.len();
    // The spare keeps replicas of at most what falls to it; without blobs it knows of all by record alone.
    let held: Vec<_> = world.nodes[spare].disk.held.keys().copied().collect();
    world.kill(spare);
    for id in held {
        world.nodes[spare].disk.held.remove(&id);
    }
    world.partition(&[0, 0, 1]);
    world.start(spare);
    world.run_secs(300);
    let anew: Vec<_> = world.begun[begun..].iter().filter(|it| it.node == spare).collect();
    assert!(anew.is_empty(), "{anew:?}");
    assert!(world.load(spare) > 0, "it claims, and waits for the blobs");
    world.partition(&[0, 0, 0]);
    world.run_secs(60);
    assert!(world.begun[begun..].iter().all(|it| it.step > 0));
}

#[test]
fn a_part_none_of_whose_checkpoints_can_be_had_begins_anew() {
    let mut world = World::of(13, manifest(1, 1), 2, 2);
    world.run_secs(65);
    let part = Part::Router;
    let victim = world.owner(part);
    for node in 0..2 {
        world.nodes[node].mute_blobs = true;
    }
    world.kill(victim);
    let other = world.living()[0];
    world.kill(other);
    world.nodes[other].disk.held.clear();
    world.start(other);
    world.add(owner(2));
    let begun = world.begun.len();
    world.run_secs(120);
    assert!(
        world.begun[begun..].iter().any(|it| it.part == part && it.step == 0),
        "a part does not die with its last holder"
    );
}

#[test]
fn one_that_only_samples_owns_nothing_and_ends_up_with_all_best_weights() {
    let mut world = World::of(14, manifest(4, 1), 3, 3);
    let sampler = world.add(Settings { capacity: 0, mirror: Mirror::Everything });
    for _ in 0..12 {
        world.run_secs(10);
        assert_eq!(world.load(sampler), 0);
    }
    for part in world.parts() {
        let held = world
            .agent(sampler)
            .register()
            .checkpoints(part)
            .into_iter()
            .find(|it| world.agent(sampler).holds(it.id()));
        let best = world.best_step(world.owner(part), part);
        assert!(held.is_some_and(|held| held.step > 0 && held.step + 100 >= best), "{part}");
    }
}

#[test]
fn an_owner_sends_a_checkpoint_once_however_many_keep_up_with_it() {
    let mut manifest = manifest(1, 1);
    manifest.ownership.replicas = 4;
    let mut world = World::of(17, manifest, 6, 1);
    for _ in 0..6 {
        world.add(Settings { capacity: 0, mirror: Mirror::Everything });
    }
    world.run_secs(65);
    let part = Part::Expert(0);
    let owner = world.owner(part);
    let (author, earlier) = (world.agent(owner).id(), world.agent(owner).best(part).unwrap().id());
    world.asked.clear();
    world.run_secs(60);
    let best = world.agent(owner).best(part).unwrap().id();
    let mut of_checkpoint: BTreeMap<_, Vec<bool>> = BTreeMap::new();
    for asked in &world.asked {
        let record = world.agent(owner).register().checkpoint(part, asked.id);
        if record.is_some() && asked.id != earlier && asked.id != best {
            of_checkpoint.entry(asked.id).or_default().push(asked.providers.contains(&author));
        }
    }
    assert!(!of_checkpoint.is_empty());
    for asked in of_checkpoint.values() {
        assert_eq!(asked.len(), 4 + 6, "every replica and mirror fetches it once");
        assert_eq!(asked.iter().filter(|of_owner| **of_owner).count(), 1, "{asked:?}");
    }
}

#[test]
fn replicas_that_fetch_nothing_are_not_waited_for_and_others_stand_in() {
    for muted in [1, 2] {
        let mut world = World::of(18, manifest(1, 1), 5, 1);
        world.run_secs(65);
        let part = Part::Expert(0);
        let owner = world.owner(part);
        let best = world.agent(owner).best(part).unwrap().id();
        let replicas: Vec<_> = world.asked.iter().filter(|asked| asked.id == best).map(|asked| asked.node).collect();
        assert_eq!(replicas.len(), 2);
        // They send heartbeats, and do not fetch what comes.
        for replica in &replicas[..muted] {
            world.nodes[*replica].mute_fetches = true;
        }
        world.run_secs(60);
        let step = world.best_step(owner, part);
        let holds = |node: &usize| {
            let agent = world.agent(*node);
            agent.register().checkpoints(part).iter().any(|it| agent.holds(it.id()) && it.step + 150 > step)
        };
        let holders: Vec<_> = world.living().into_iter().filter(holds).collect();
        assert_eq!(holders.len(), 3, "the owner and two others: {holders:?}, muted {:?}", &replicas[..muted]);
        assert!(replicas[..muted].iter().all(|muted| !holders.contains(muted)));
    }
}

#[test]
fn who_is_to_train_waits_for_no_other_fetch() {
    let mut world = World::of(19, manifest(8, 1), 3, 9);
    world.run_secs(65);
    world.nodes[0].mute_fetches = true;
    let muted = world.asked.len();
    world.run_secs(60);
    let begun = world.asked.len();
    let under_way = world.asked[muted..].iter().filter(|asked| asked.node == 0).count();
    assert_eq!(under_way, 4, "as many as merely keep up at once");
    world.kill(1);
    world.run_secs(40);
    let fetches = |part| {
        let of_part = |id| world.agent(0).register().checkpoint(part, id).is_some();
        world.asked[begun..].iter().any(|asked| asked.node == 0 && of_part(asked.id))
    };
    let taken: Vec<_> = world.agent(0).owned().filter(|part| world.nodes[0].is_idle(*part)).collect();
    assert!(!taken.is_empty() && taken.iter().all(|part| fetches(*part)), "{taken:?}");
}

#[test]
fn where_blobs_are_served_is_known_of_those_who_are_heard() {
    let mut world = World::of(20, manifest(1, 1), 3, 1);
    world.run_secs(30);
    assert!((0..3).all(|node| world.nodes[node].learnt.len() == 2));
    world.kill(2);
    world.run_secs(30);
    assert!((0..2).all(|node| world.nodes[node].learnt.len() == 1));
}

#[test]
fn nodes_keep_few_checkpoints_however_long_they_run() {
    let mut world = World::of(15, manifest(2, 1), 3, 3);
    world.run_secs(1200);
    for node in 0..3 {
        let held = world.nodes[node].disk.held.len();
        assert!((1..=2 * 3 + 3).contains(&held), "node {node} holds {held}");
    }
}

#[test]
fn a_checkpoint_whose_loss_is_not_finite_is_not_published() {
    use paris_protocol::{agent::Made, checkpoint::Blob, hash::Hash};
    let mut world = World::of(16, manifest(1, 1), 1, 2);
    world.run_secs(30);
    let blob = Blob { hash: Hash::of(b"weights"), bytes: 1 };
    let made = Made { step: 1_000_000, held_out_loss: f32::NAN, weights: blob, state: blob };
    let id = world.input(0, |agent, now| agent.checkpointed(now, Part::Router, made));
    assert_eq!(id, None);
    assert!(world.best_step(0, Part::Router) < 1_000_000);
}
