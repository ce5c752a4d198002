//! The whole experiment, tiny: it ends with tables and pictures, says the same again, and loses nothing where it is killed.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use paris_testnet::process::BUNDLED_PICTURES;
use serde_json::Value;

fn experiment(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paris-testnet"));
    command.args([
        "experiment",
        "--data",
        BUNDLED_PICTURES,
        "--clusters",
        "2",
        "--samples",
        "256",
        "--seed",
        "5",
        "--limit",
        "400",
    ]);
    command.args(["--size", "8", "--held-out", "0.2", "--width", "16", "--depth", "1", "--heads", "2", "--patch", "4"]);
    command.args(["--router-width", "16", "--router-depth", "1", "--router-heads", "2", "--text-tokens", "4"]);
    command.args(["--batch", "16", "--ema", "0.9", "--pictures", "70", "--draws", "2", "--steps", "2"]);
    command.args(["--loss-samples", "16", "--text-width", "8", "--out"]).arg(out);
    command
}

/// Runs it to its end; what it said.
fn run(out: &Path) -> String {
    let output = experiment(out).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn results(out: &Path) -> String {
    fs::read_to_string(out.join("results.json")).unwrap()
}

#[test]
fn an_experiment_measures_every_strategy_and_goes_on_where_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let said = run(&whole);
    assert!(said.contains("min left") && said.contains("monolith is trained"), "{said}");

    let measured: Value = serde_json::from_str(&results(&whole)).unwrap();
    let budgets = measured["budgets"].as_array().unwrap();
    let rows = |budget: usize| budgets[budget]["rows"].as_array().unwrap();
    let names: Vec<_> = rows(2).iter().map(|row| row["strategy"].as_str().unwrap()).collect();
    // The monolith; top-1 and full by both routers, oracle and random, all with and without base.
    assert_eq!((rows(0).len(), names.len()), (7, 13), "{names:?}");
    for row in rows(2) {
        let distances = row["outcome"]["distances"].as_object().unwrap();
        assert_eq!(distances.keys().collect::<Vec<_>>(), ["FD64-ColourAndEdges", "KD-ColourAndEdges"]);
        assert!(distances.values().all(|seeds| seeds.as_array().unwrap().len() == 2), "{row}");
    }
    let agreement = |name: &str| {
        let row = rows(2).iter().find(|row| row["strategy"] == name).unwrap();
        row["outcome"]["agreement"][0].as_f64().unwrap()
    };
    assert_eq!(agreement("oracle cluster"), 1.0);
    assert!(agreement("random expert") < 0.8);

    let report = fs::read_to_string(whole.join("results.md")).unwrap();
    for part in
        ["| top-1, router with captions ", "from base", "The floor", "caption-router: temperature", "first step"]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert_eq!(fs::read_dir(whole.join("grids")).unwrap().count(), 13);
    assert!(fs::read_to_string(whole.join("plots/distances.svg")).unwrap().ends_with("</svg>\n"));
    assert_eq!(fs::read_dir(whole.join("snapshots")).unwrap().count(), 0, "what was trained needs no snapshots");

    // Killed as soon as the first expert is trained, and started again: the same numbers.
    let mut child = experiment(&killed).stdout(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while !killed.join("parts/expert-0").exists() {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "no expert was ever trained");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run(&killed);
    assert_eq!(results(&killed), results(&whole));

    // Nothing is measured twice, and nothing else is measured into the same folder.
    assert!(!run(&whole).contains("is trained"));
    let other = experiment(&whole).args(["--cfg", "2"]).output().unwrap();
    assert!(!other.status.success());
    assert!(String::from_utf8_lossy(&other.stderr).contains("other settings"));
}

#[test]
fn distances_are_taken_in_the_features_that_were_asked_for_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let with_encoders = |encoders: &Path| {
        let mut command = experiment(&out);
        command.args(["--features", "mobilenet", "--no-base", "--encoders"]).arg(encoders);
        command.output().unwrap()
    };
    let refused = with_encoders(folder.path());
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("mobilenet") && said.contains("model.safetensors"), "{said}");

    let encoders = env::var_os("PARIS_ENCODERS").unwrap_or_default();
    if !Path::new(&encoders).join("mobilenet/model.safetensors").exists() {
        eprintln!("SKIPPED the distances themselves: PARIS_ENCODERS names no folder with mobilenet/model.safetensors");
        return;
    }
    let measured = with_encoders(Path::new(&encoders));
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let measured: Value = serde_json::from_str(&results(&out)).unwrap();
    for row in measured["budgets"][2]["rows"].as_array().unwrap() {
        let distances = row["outcome"]["distances"].as_object().unwrap();
        let taken_in = |features: &str| distances.keys().filter(|name| name.ends_with(features)).count();
        assert_eq!((taken_in("-ColourAndEdges"), taken_in("-MobileNetV2"), distances.len()), (2, 2, 4), "{row}");
    }
}
