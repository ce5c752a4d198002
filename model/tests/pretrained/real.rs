//! Real weights, where `PARIS_ENCODERS` names a folder of them (as `--encoders` takes it) with test vectors in it. Skipped, aloud, otherwise.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use paris_model::{
    features::{Inception, MobileNet},
    pretrained::{Files, Network},
    text::{MiniLmText, TextEncoder},
};
use serde::Deserialize;

use crate::{fixture::equal, text::Prompts};

/// The folder, if it holds all of `paths`.
fn encoders(test: &str, paths: &[&str]) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("PARIS_ENCODERS").map(PathBuf::from) else {
        eprintln!("SKIPPED {test}: PARIS_ENCODERS names no folder of real weights");
        return None;
    };
    match paths.iter().find(|path| !folder.join(path).exists()) {
        Some(path) => {
            eprintln!("SKIPPED {test}: there is no {}", folder.join(path).display());
            None
        }
        None => Some(folder),
    }
}

/// A test vector: a network's input and output.
fn vector(path: PathBuf, input: &str, output: &str) -> (Tensor, Tensor) {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    (tensors[input].clone(), tensors[output].clone())
}

#[test]
fn minilm() {
    #[derive(Deserialize)]
    struct Vector {
        texts: Vec<String>,
        emb_first8: Vec<Vec<f32>>,
    }
    let Some(folder) = encoders("minilm", &["minilm/model.safetensors", "minilm-testvec.json"]) else { return };
    let vector = std::fs::read(folder.join("minilm-testvec.json")).unwrap();
    let vector: Vector = serde_json::from_slice(&vector).unwrap();
    let files = Files::read(Network::MiniLm, &folder, None).unwrap();
    let encoder = MiniLmText::load(&files, 32, &Device::Cpu).unwrap();
    let texts: Vec<&str> = vector.texts.iter().map(String::as_str).collect();
    let pooled = encoder.encode(&texts, &Device::Cpu).unwrap().pooled;
    assert_eq!(pooled.dims(), [3, 384]);
    let expected = Tensor::new(vector.emb_first8, &Device::Cpu).unwrap();
    equal("real MiniLM", &pooled.narrow(1, 0, 8).unwrap(), &expected, 1e-5);
    // Cats are nearer to kittens than to trucks: it knows meanings.
    let near = pooled.matmul(&pooled.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    assert!(near[0][1] > near[0][2] + 0.2, "{near:?}");
}

#[test]
fn mobilenet() {
    let paths = ["mobilenet/model.safetensors", "mobilenet_v2-testvec.safetensors"];
    let Some(folder) = encoders("mobilenet", &paths) else { return };
    let files = Files::read(Network::MobileNet, &folder, None).unwrap();
    let network = MobileNet::load(&files, &Device::Cpu).unwrap();
    let (input, output) = vector(folder.join(paths[1]), "input_128_norm", "feat1280");
    equal("real MobileNetV2", &network.forward(&input).unwrap(), &output, 1e-4);
}

#[test]
fn inception() {
    let paths = ["inception/model.safetensors", "inception-testvec.safetensors"];
    let Some(folder) = encoders("inception", &paths) else { return };
    let files = Files::read(Network::Inception, &folder, None).unwrap();
    let network = Inception::load(&files, &Device::Cpu).unwrap();
    let (input, output) = vector(folder.join(paths[1]), "input_299_tf", "pool3");
    equal("real Inception", &network.forward(&input).unwrap(), &output, 1e-4);
}

/// `fixtures.py vocabulary` makes the folder.
#[test]
fn clip_vocabulary() {
    let Some(folder) = encoders("clip_vocabulary", &["clip-vocabulary/prompts.json"]) else { return };
    let folder = folder.join("clip-vocabulary");
    let prompts = Prompts::read(&folder);
    prompts.check(&folder);
    println!("{} prompts have the real vocabulary's ids", prompts.prompts.len());
}
