//! A folder in the layout in which Paris's weights are published, of the real names with small networks in every place: captions through CLIP, pictures
//! out of Stable Diffusion's autoencoder.

#[path = "../../model/tests/pretrained/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::{fs, path::Path};

use candle_core::Device;
use fixture::Fixture;
use paris_model::{
    checkpoint,
    config::{ExpertConfig, PartConfig, RouterConfig, Shapes},
    hub::{CodecSource, Exported, ExportedPart, Published, TextSource, export},
    objective::Objective,
    pretrained::Network,
    sampler::{Guidance, Reroute, Routing, SampleSettings, Solver},
};
use paris_node::sampling::{Drawing, Place};

/// Small weights of the published names.
fn part<C>(folder: &Path, name: &str, config: C, shapes: &Shapes) -> ExportedPart<C> {
    let tensors =
        shapes.iter().map(|(tensor, shape)| (tensor.clone(), fixture::numbers(&format!("{name} {tensor}"), shape)));
    let bytes = checkpoint::write(&tensors.collect()).unwrap();
    let (weights, hash) = (folder.join(name), blake3::hash(&bytes));
    fs::write(&weights, bytes).unwrap();
    ExportedPart { config, objective: Objective::Velocity, weights, hash }
}

/// A whole mixture with its encoders, at `folder`.
fn publish(folder: &Path, parts: &Path) {
    let (clip, vae) = (parts.join("clip"), parts.join("vae"));
    let fixture = Fixture::read("clip");
    let tokenizer = fs::read(fixture::folder().join("clip/tokenizer.json")).unwrap();
    let width = fixture.weights.iter().find(|(name, _)| name.ends_with("token_embedding.weight")).unwrap().1.dims()[1];
    let clip_files = fixture.files(Network::Clip, tokenizer);
    let vae_files = Fixture::read("vae").files(Network::Vae, Vec::new());
    for (folder, file, bytes) in [
        (&clip, Network::Clip.weights_file(), clip_files.weights),
        (&clip, "tokenizer.json", clip_files.tokenizer),
        (&clip, "config.json", b"{}".to_vec()),
        (&vae, Network::Vae.weights_file(), vae_files.weights),
    ] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(file), bytes).unwrap();
    }
    let expert = ExpertConfig {
        channels: 4,
        size: 8,
        patch: 2,
        width: 16,
        depth: 1,
        heads: 2,
        text_tokens: 77,
        text_width: width,
    };
    let router = RouterConfig {
        channels: 4,
        size: 8,
        patch: 2,
        width: 12,
        depth: 1,
        heads: 2,
        clusters: 2,
        caption_width: None,
    };
    let experts = (0..2).map(|cluster| part(parts, &format!("expert {cluster}"), expert.clone(), &expert.shapes()));
    let mixture = Exported {
        experts: experts.collect(),
        router: part(parts, "router", router.clone(), &PartConfig::Router(router).shapes()),
        calibration: None,
        text: TextSource::Files { encoder: clip.clone(), tokenizer: clip },
        codec: CodecSource::Files(vae),
    };
    export(folder, &mixture).unwrap();
}

fn open(folder: &Path) -> anyhow::Result<Drawing> {
    let place = Place { device: Device::Cpu, memory_bytes: 1 << 30 };
    Drawing::of_published(Published::open(folder)?, place)
}

#[test]
fn captions_go_through_clip_and_pictures_come_out_of_the_autoencoder() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("paris");
    publish(&folder, &root.path().join("parts"));
    let drawing = open(&folder).unwrap();
    let settings = SampleSettings {
        steps: 3,
        solver: Solver::Euler,
        guidance: Guidance::of(7.5),
        routing: Routing::Top(2),
        reroute: Reroute::EveryStep,
        seed: 1,
    };
    let draw = |captions: &[&str]| {
        let pictures = drawing.draw(captions, &settings, &mut |_| {}).unwrap();
        assert_eq!(pictures.dims(), [captions.len(), 3, 32, 32]);
        pictures.get(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (heart, boat) = (draw(&["a red heart"]), draw(&["a boat"]));
    assert!(heart.iter().all(|it| it.is_finite()));
    assert_ne!(heart, boat);
    assert_eq!(heart, draw(&["a red heart"]));
}

#[test]
fn an_export_has_copies_of_what_it_needs_and_may_be_changed() {
    let root = tempfile::tempdir().unwrap();
    let (folder, parts) = (root.path().join("paris"), root.path().join("parts"));
    publish(&folder, &parts);
    for (exported, encoder, files) in [
        ("text_encoder", "clip", &["config.json", "model.safetensors"][..]),
        ("tokenizer", "clip", &["tokenizer.json"]),
        ("vae", "vae", &["diffusion_pytorch_model.safetensors"]),
    ] {
        let names = fs::read_dir(folder.join(exported)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, files);
        for file in files {
            let (copy, original) = (folder.join(exported).join(file), parts.join(encoder).join(file));
            let bytes = fs::read(&original).unwrap();
            assert!(fs::read(&copy).unwrap() == bytes, "{exported}/{file}");
            fs::write(copy, b"changed in place").unwrap();
            assert!(fs::read(original).unwrap() == bytes, "{exported}/{file} is the encoder's own");
        }
    }
}

#[test]
fn what_is_missing_is_said_with_where_to_get_it() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("paris");
    publish(&folder, &root.path().join("parts"));
    fs::remove_file(folder.join("tokenizer/tokenizer.json")).unwrap();
    let said = format!("{:#}", open(&folder).map(drop).unwrap_err());
    for part in ["tokenizer/tokenizer.json", "openai/clip-vit-large-patch14"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    fs::remove_dir_all(folder.join("vae")).unwrap();
    let said = format!("{:#}", open(&folder).map(drop).unwrap_err());
    assert!(said.contains("vae/") && said.contains("stabilityai/sd-vae-ft-mse"), "{said}");
}
