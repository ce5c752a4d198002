//! The simulator's promises, with a fixed set of seeds: more with `paris-testnet sim --seeds`.

use std::path::PathBuf;

use paris_testnet::sim::{Sim, baseline::Baseline, report::Report, scenario::Spread};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn sim(nodes: u32, parts: u16, scenario: Option<&str>) -> Sim {
    let scenario = scenario.map(|name| folder().join(name));
    Sim { nodes, parts, hours: 1.0, seed: 0, seeds: 1, scenario, gossip: None, json: false, trace: None }
}

/// The report without the time that it took.
fn report(sim: &Sim, seed: u64) -> Report {
    sim.simulate(seed).unwrap_or_else(|broken| panic!("seed {seed} of {sim:?}: {broken:#}"))
}

#[test]
fn no_part_changes_hands_in_a_calm_network_however_gossip_travels() {
    for gossip in [Spread::Broadcast, Spread::Hops, Spread::Cohorts] {
        let sim = Sim { gossip: Some(gossip), ..sim(30, 6, Some("calm.toml")) };
        for seed in 0..2 {
            let report = report(&sim, seed);
            assert_eq!((report.transfers_per_hour, report.duplicated_percent), (0.0, 0.0), "seed {seed}");
            assert!(report.owned_p99_s < 60.0 && report.owned_p50_s > 0.0, "seed {seed}: {report}");
        }
    }
}

#[test]
fn drawn_faults_break_no_law() {
    let sim = sim(20, 5, None);
    for seed in 0..12 {
        let report = report(&sim, seed);
        assert_eq!(report.checkpoints_lost, 0);
        assert!(report.checkpoints > 0 && report.takeover_p99_s < 180.0, "seed {seed}: {report}");
    }
}

#[test]
fn every_scenario_file_reads_and_breaks_no_law() {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let scenarios: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "toml")).collect();
    assert!(scenarios.len() > 20, "{scenarios:?}");
    for path in scenarios {
        report(&Sim { scenario: Some(path), ..sim(20, 5, None) }, 7);
    }
}

#[test]
fn ten_thousand_nodes_that_hear_as_one_own_all_parts_within_a_minute() {
    let sim = Sim { hours: 0.02, gossip: Some(Spread::Cohorts), ..sim(10_000, 16, Some("stampede.toml")) };
    let report = report(&sim, 3);
    assert!(report.owned_p50_s > 0.0 && report.owned_p99_s < 60.0, "{report}");
    assert_eq!(report.unowned_percent, 0.0, "{report}");
}

/// More nodes than anyone can keep in mind: who holds checkpoints is remembered all the same, so nobody thinks that an owner makes no progress. The deadline
/// for that is ten checkpoints of ten minutes.
#[test]
fn in_a_crowd_nobody_forgets_who_holds_the_checkpoints() {
    let sim = Sim { hours: 1.8, gossip: Some(Spread::Cohorts), ..sim(6_000, 16, Some("calm.toml")) };
    assert_eq!(report(&sim, 0).transfers_per_hour, 0.0);
}

/// Nodes that hear as one decide as those that hear each for itself do: the same network, both ways.
#[test]
fn cohorts_take_over_as_a_broadcast_does() {
    let crashes = sim(60, 12, Some("crashes.toml"));
    let [each, shared] = [Spread::Broadcast, Spread::Cohorts].map(|gossip| {
        let reports = (0..3).map(|seed| report(&Sim { gossip: Some(gossip), ..crashes.clone() }, seed));
        reports.fold((0, 0.0f64), |(count, slowest), it| (count + it.takeovers, slowest.max(it.takeover_p99_s)))
    });
    assert!(each.0 > 0 && shared.0 > 0, "{each:?} {shared:?}");
    assert!((each.1 - shared.1).abs() < 30.0, "slowest takeover: {each:?} {shared:?}");
}

#[test]
fn an_old_copy_of_a_disk_refuses_to_go_on() {
    let halted: u64 = (0..3).map(|seed| report(&sim(20, 8, Some("backups.toml")), seed).halted).sum();
    assert!(halted > 0, "the scenario is about that");
}

#[test]
fn squatters_are_seconded_and_lose_what_they_do_not_train() {
    let squatted: u64 = (3..6).map(|seed| report(&sim(30, 8, Some("squatters.toml")), seed).squatted).sum();
    assert!(squatted > 0, "the scenario is about that");
}

#[test]
fn whom_nobody_invited_takes_nothing_from_a_run_by_invitation() {
    for seed in 0..2 {
        let report = report(&sim(20, 5, Some("uninvited.toml")), seed);
        assert_eq!((report.squatted, report.robbed, report.checkpoints_lost), (0, 0, 0), "seed {seed}");
        assert!(report.owned_p99_s > 0.0 && report.takeover_p99_s < 180.0, "seed {seed}: {report}");
    }
}

#[test]
fn nothing_is_worse_than_the_baseline() {
    Baseline { write: false, folder: folder() }.run().unwrap();
}

#[test]
fn a_seed_replays_exactly() {
    for gossip in [None, Some(Spread::Hops)] {
        let sim = Sim { gossip, ..sim(15, 4, None) };
        let one = serde_json::to_string(&report(&sim, 5)).unwrap();
        assert_eq!(serde_json::to_string(&report(&sim, 5)).unwrap(), one);
        assert_ne!(serde_json::to_string(&report(&sim, 6)).unwrap(), one);
    }
}

#[test]
fn a_trace_has_a_line_for_every_fault_and_change_of_trainer_and_a_column_for_every_node() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    report(&Sim { trace: Some(path.clone()), ..sim(10, 3, Some("crashes.toml")) }, 1);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().count() > 5);
    for line in text.lines() {
        let (columns, _) = line.split_once("  node").or(line.split_once("  the")).unwrap();
        assert_eq!(columns.split_whitespace().count(), 1 + 10, "{line}");
    }
}

#[test]
fn a_scenario_that_makes_no_sense_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.toml");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let sim = Sim { scenario: Some(path.clone()), ..sim(5, 2, None) };
        format!("{:#}", sim.simulate(0).unwrap_err())
    };
    assert!(refused("loss = 2.0").contains("a share is from 0 to 1"));
    assert!(refused("los = 0.1").contains("unknown field"));
    assert!(refused("down_s = [9, 1]").contains("from less to more"));
    assert!(refused("[times]\nquorum = 0").contains("quorum"));
    assert!(refused("gossip = \"cohorts\"\nloss = 0.1").contains("lose no message alone"));
    assert!(refused("lies = []").contains("need lies"));
}
