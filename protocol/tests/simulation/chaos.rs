//! Random faults, then peace: whatever happened, the network comes to agree and goes on training.

use crate::{common::manifest, ownership::assert_agreed, world::World};

const NODES: usize = 5;
const PART_COUNT: usize = 4;

fn survives(seed: u64, quorum: u16) {
    let mut world = World::of(seed, manifest(PART_COUNT as u8 - 1, quorum), NODES, 4);
    for _ in 0..25 {
        world.run_secs(2 + seed % 7);
        let node = world.draw(NODES as u64) as usize;
        match world.draw(7) {
            0 | 1 if world.living().contains(&node) => world.kill(node),
            0..=2 if !world.living().contains(&node) => world.start(node),
            3 => {
                let islands: Vec<u8> = (0..NODES).map(|_| world.draw(2) as u8).collect();
                world.partition(&islands);
            }
            4 => world.partition(&[0; NODES]),
            5 => world.lost_of_thousand = world.draw(600),
            6 => {
                if let Some(part) = world.trained(node) {
                    world.trainer_failed(node, part);
                }
            }
            _ => {}
        }
    }
    world.lost_of_thousand = 0;
    world.partition(&[0; NODES]);
    for node in 0..NODES {
        if !world.living().contains(&node) {
            world.start(node);
        }
    }
    world.run_secs(180);
    assert_agreed(&world);
    assert!(world.nodes.iter().all(|node| node.halted.is_none()), "no honest node is halted");
    let before: Vec<_> = world.parts().iter().map(|part| world.best_step(0, *part)).collect();
    let begun = world.begun.len();
    world.run_secs(120);
    assert_agreed(&world);
    let changes = &world.begun[begun..];
    assert!(changes.is_empty(), "peace has come: {changes:?}");
    for (part, before) in world.parts().into_iter().zip(before) {
        assert!(world.best_step(0, part) > before, "{part} is trained on");
    }
}

/// Further seeds: `CHAOS_SEEDS=1000 cargo test --release -p paris-protocol chaos`.
#[test]
fn after_random_faults_the_network_agrees_and_goes_on() {
    let seeds = option_env!("CHAOS_SEEDS").and_then(|text| text.parse().ok()).unwrap_or(8);
    for seed in 0..seeds {
        survives(seed, 1 + (seed % 2) as u16);
    }
}
