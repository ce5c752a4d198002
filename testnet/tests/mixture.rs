//! A mixture holds still while the run goes on: whoever names it draws the same picture, anywhere and later.

mod common;

use std::path::Path;

use common::{Network, node};
use paris_model::objective::Objective;
use paris_node::{api::Client, runtime::recipe, sampling::manifest_from_hex, status::Status};
use paris_testnet::process::NodeProcess;
use serde_json::Value;

/// Draws on a node; the picture's bytes, and what was said about it.
fn draw(node: &NodeProcess, out: &Path, more: &[&str]) -> (Vec<u8>, String) {
    let mut arguments = vec!["sample", "a red heart", "-n", "2", "--steps", "3", "--seed", "7"];
    arguments.extend(["--out", out.to_str().unwrap()].iter().chain(more));
    let output = node.call(&arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    (std::fs::read(out).unwrap(), said)
}

/// The losses of a folder's two experts, as `eval` measures them: a row an expert, a column a cluster.
fn losses(node: &NodeProcess, data: &Path, published: &Path) -> Vec<Vec<f64>> {
    let json = published.join("quality.json");
    let [data, model, out] = [data, published, &json].map(|path| path.to_str().unwrap());
    let said =
        node.answer(["eval", "--data", data, "--model", model, "--no-drawing", "--loss-samples", "8", "--json", out]);
    assert!(said.as_ref().unwrap().contains("expert-1"), "{said:?}");
    let measured: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = measured["losses"]["rows"].as_array().unwrap();
    let loss = |cluster: &Value| cluster["mean"].as_f64().unwrap();
    rows.iter().map(|row| row["clusters"].as_array().unwrap().iter().map(loss).collect()).collect()
}

/// The step of every part's best checkpoint.
fn steps(status: &Status) -> Vec<u64> {
    status.parts.iter().map(|part| part.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step)).collect()
}

#[test]
fn a_mixture_draws_the_same_picture_anywhere_and_after_the_run_went_on() {
    // One of the two experts predicts noise, which every way to draw has to know.
    let mut network = Network::with(2, |_| ["--epsilon", "1"].map(str::to_owned).to_vec(), |_, node| node);
    network.start();
    network.wait_until("every part has a checkpoint", |status| steps(status).iter().all(|step| *step > 0));
    let inspected = network.nodes[0].answer(["manifest", "inspect"]).unwrap();
    assert!(inspected.contains("the other experts the velocity: expert-1"), "{inspected}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::of(network.nodes[0].dir()).unwrap();
    let manifest = manifest_from_hex(&runtime.block_on(client.manifest_hex()).unwrap()).unwrap();
    let learnt: Vec<_> = manifest.parts().map(|part| recipe::train_settings(&manifest, part).objective).collect();
    assert_eq!(learnt, [Objective::Velocity, Objective::Epsilon, Objective::Velocity]);
    let out = network.path("drawn.png");
    let hash = network.nodes[0].answer(["mixture", "assemble"]).unwrap().trim().to_owned();
    let exactly = ["--mixture", hash.as_str()];
    let (first, said) = draw(&network.nodes[0], &out, &exactly);
    assert!(said.contains(&hash), "{said}");

    // The run goes on, until its nodes keep these checkpoints for the mixture's sake alone.
    let mut last = network.wait_until("it has a status", |_| true);
    for _ in 0..4 {
        let before = steps(&last);
        last = network.wait_until("every part has a newer checkpoint", |status| {
            steps(status).iter().zip(&before).all(|(now, before)| now > before)
        });
    }
    let (now, said) = draw(&network.nodes[0], &out, &[]);
    assert!(now != first && !said.contains(&hash), "the best of now is another: {said}");
    assert_eq!(draw(&network.nodes[0], &out, &exactly).0, first);

    // Published as a folder it draws the same without any run, whatever fits into memory at once.
    let published = network.path("published").to_str().unwrap().to_owned();
    network.nodes[0].answer(["export", &published, "--mixture", &hash]).unwrap();
    for (expert, objective) in [("expert_0", "velocity"), ("expert_1", "epsilon")] {
        let config = std::fs::read_to_string(network.path("published").join(expert).join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["objective"], objective, "{expert}");
    }
    let prepared = network.path("prepared");
    let measured = losses(&network.nodes[0], &prepared, &network.path("published"));
    let stranger = node(network.folder.path(), "stranger");
    stranger.answer(["import", &published, "--name", "hearts"]).unwrap();
    for more in [["--model", &published, "--memory", "4096"], ["--model", "hearts", "--memory", "0"]] {
        let (drawn, said) = draw(&stranger, &out, &more);
        assert!(drawn == first && said.contains("experts were loaded"), "{more:?}: {said}");
    }

    // Taken for one that predicts velocities, the second expert alone measures differently: `eval` converts what it predicts.
    assert!(measured.iter().flatten().all(|loss| loss.is_finite()), "{measured:?}");
    let config = network.path("published/expert_1/config.json");
    let said = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, said.replace("epsilon", "velocity")).unwrap();
    let mistaken = losses(&stranger, &prepared, &network.path("published"));
    assert_eq!((measured.len(), &measured[0]), (2, &mistaken[0]));
    assert!(measured[1].iter().zip(&mistaken[1]).all(|(right, wrong)| right != wrong), "{measured:?} {mistaken:?}");

    // A peer that trains nothing and has met nobody fetches it by name, and keeps it.
    let ticket = network.ticket();
    let artist = node(network.folder.path(), "artist");
    artist.answer(["join", &ticket]).unwrap();
    let (drawn, said) = draw(&artist, &out, &exactly);
    assert_eq!(drawn, first);
    assert!(said.contains(&hash) && !said.contains("missing"), "{said}");
    assert_eq!(artist.answer(["mixture", "show"]).unwrap().trim(), hash);
    let shown = artist.answer(["mixture", "show", &hash]).unwrap();
    assert!(["expert-0", "expert-1", "router"].iter().all(|part| shown.contains(part)), "{shown}");

    // What --keep keeps has a name as well, and names hold without any network.
    let (kept, said) = draw(&artist, &out, &["--keep"]);
    let name = said.split("mixture ").nth(1).unwrap()[..64].to_owned();
    network.nodes.clear();
    assert_eq!(draw(&artist, &out, &exactly).0, first);
    assert_eq!(draw(&artist, &out, &["--mixture", &name]).0, kept);

    artist.answer(["mixture", "drop", &hash]).unwrap();
    assert!(!artist.answer(["mixture", "show"]).unwrap().contains(&hash));
    let nobodys = "0".repeat(64);
    let output = artist.call(["sample", "a red heart", "--wait", "1", "--mixture", &nobodys]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is one of these nodes online"), "{said}");
}
