//! The simulator's promises, with a fixed set of seeds: more with `paris-testnet sim --seeds`.

use std::path::PathBuf;

use paris_testnet::sim::{Sim, report::Report};

fn sim(nodes: u32, parts: u16, scenario: Option<&str>) -> Sim {
    let file = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name);
    Sim { nodes, parts, hours: 1.0, seed: 0, seeds: 1, scenario: scenario.map(file), json: false, trace: None }
}

/// The report without the time that it took.
fn report(sim: &Sim, seed: u64) -> Report {
    sim.simulate(seed).unwrap_or_else(|broken| panic!("seed {seed} of {sim:?}: {broken:#}"))
}

#[test]
fn no_part_changes_hands_in_a_calm_network() {
    let sim = sim(30, 6, Some("calm.toml"));
    for seed in 0..4 {
        let report = report(&sim, seed);
        assert_eq!((report.transfers_per_hour, report.duplicated_percent), (0.0, 0.0), "seed {seed}");
        assert!(report.owned_p99_s < 60.0 && report.owned_p50_s > 0.0, "seed {seed}: {report}");
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
    for name in ["churn.toml", "exodus.toml", "liars.toml", "lossy.toml", "partitions.toml"] {
        report(&sim(20, 5, Some(name)), 7);
    }
}

#[test]
fn a_seed_replays_exactly() {
    let sim = sim(15, 4, None);
    let one = serde_json::to_string(&report(&sim, 5)).unwrap();
    assert_eq!(serde_json::to_string(&report(&sim, 5)).unwrap(), one);
    assert_ne!(serde_json::to_string(&report(&sim, 6)).unwrap(), one);
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
}
