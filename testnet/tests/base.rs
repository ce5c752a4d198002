//! A base checkpoint on its way: trained by an organiser, named by the manifest, fetched by whoever begins an expert, and where that expert starts.

mod common;

use common::{Network, PATIENCE};
use paris_model::{Device, data::Splits, trainer::Trainer};
use paris_node::{api::Client, encoders, runtime::recipe, sampling::manifest_from_hex};
use paris_protocol::part::Part;

#[test]
fn experts_start_from_the_base_on_a_node_that_has_to_fetch_it() {
    let mut network = Network::with(
        2,
        |nodes| {
            let root = nodes[0].dir().root().parent().unwrap();
            let [prepared, base] = ["prepared", "base.safetensors"].map(|it| root.join(it).display().to_string());
            let train = ["train", "base", "--data", &prepared, "--out", &base, "--steps", "60", "--batch", "16"];
            let shape = ["--width", "32", "--depth", "2", "--heads", "2", "--ema", "0.9", "--warmup", "5"];
            let said = nodes[0].answer(train.into_iter().chain(shape)).unwrap();
            assert!(said.contains("step 60") && said.contains("--base"), "{said}");
            // One step is as good as none: it warms up.
            ["--base", &base, "--steps", "1"].map(str::to_owned).to_vec()
        },
        |_, node| node,
    );
    // The organiser only serves, so the other node has to begin every part.
    network.nodes[0].run(&["--capacity", "0"]).unwrap();
    let ticket = network.ticket();
    network.nodes[1].answer(["join", &ticket]).unwrap();
    network.nodes[1].run(&[]).unwrap();
    let status = network.nodes[1].wait_until("every part is trained", PATIENCE, |status| {
        status.parts.iter().all(|part| part.checkpoint.as_ref().is_some_and(|it| it.step == 1))
    });
    let status = status.unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::of(network.nodes[1].dir()).unwrap();
    let manifest = manifest_from_hex(&runtime.block_on(client.manifest_hex()).unwrap()).unwrap();
    assert!(manifest.additions.base.is_some());
    let (text, shape) = (manifest.additions.encoders.text, manifest.text);
    let encoder = encoders::text_encoder(text, shape, &network.path("encoders"), &Device::Cpu).unwrap();
    let null = encoder.encode(&[""], &Device::Cpu).unwrap();
    let splits = Splits::open(&network.path("prepared"), &encoder).unwrap();
    let base = std::fs::read(network.path("base.safetensors")).unwrap();
    for (cluster, split) in splits.clusters.iter().enumerate() {
        let part = Part::Expert(cluster as u16);
        let (config, settings) = (recipe::part_config(&manifest, part), recipe::train_settings(&manifest, part));
        let key = recipe::training_key(manifest.id().unwrap(), part);
        let based = Trainer::from_base(config.clone(), settings, &key, &null, &base, &Device::Cpu).unwrap();
        let fresh = Trainer::new(config, settings, &key, &null, &Device::Cpu).unwrap();
        let loss = |trainer: &Trainer| trainer.held_out_loss(&*split.held_out, 256).unwrap();
        let (found, based, fresh) = (status.parts[cluster].held_out_loss.unwrap(), loss(&based), loss(&fresh));
        println!("{part}: {found}, the base {based}, untrained {fresh}");
        assert!((found - based).abs() < 0.02 * based && based < 0.7 * fresh, "{found} {based} {fresh}");
    }
}
