//! Mixtures in the layout in which Paris's weights are published: written, read, and drawn with.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use paris_model::{
    checkpoint,
    config::{ExpertConfig, PartConfig, RouterConfig, Shapes},
    expert::Expert,
    hub::{CodecSource, Exported, ExportedPart, Published, TextSource, export},
    objective::Objective,
    parameters::Parameters,
    random::Stream,
    router::Router,
    sampler::{Calibration, Field, Guidance, Mixture, Posterior, Reroute, Routing, SampleSettings, Solver, sample},
    text::{HashedText, TextEncoder},
};

const CLUSTERS: usize = 3;
const TEXT: HashedText = HashedText { tokens: 4, width: 8 };

fn expert() -> ExpertConfig {
    let (text_tokens, text_width) = (TEXT.tokens, TEXT.width);
    ExpertConfig { channels: 4, size: 8, patch: 2, width: 16, depth: 2, heads: 2, text_tokens, text_width }
}

fn router() -> RouterConfig {
    let (clusters, caption_width) = (CLUSTERS, None);
    RouterConfig { channels: 4, size: 8, patch: 2, width: 12, depth: 1, heads: 2, clusters, caption_width }
}

/// Random weights of these shapes, so that nothing is silent as it is when training begins.
fn tensors(shapes: &Shapes, seed: u64) -> std::collections::BTreeMap<String, Tensor> {
    let mut stream = Stream::seeded(seed, "weights");
    let mut random = |shape: &Vec<usize>| (stream.normal_tensor(shape.clone(), &Device::Cpu).unwrap() * 0.2).unwrap();
    shapes.iter().map(|(name, shape)| (name.clone(), random(shape))).collect()
}

fn exported<C>(folder: &Path, name: &str, config: C, shapes: &Shapes, seed: u64) -> ExportedPart<C> {
    let bytes = checkpoint::write(&tensors(shapes, seed)).unwrap();
    let (weights, hash) = (folder.join(name), blake3::hash(&bytes));
    fs::write(&weights, bytes).unwrap();
    ExportedPart { config, objective: Objective::Velocity, weights, hash }
}

/// A run's mixture as it lies on a node's disk.
fn mixture(folder: &Path, router: RouterConfig) -> Exported {
    let one = |cluster: usize| exported(folder, &format!("{cluster}"), expert(), &expert().shapes(), cluster as u64);
    Exported {
        experts: (0..CLUSTERS).map(one).collect(),
        router: exported(folder, "r", router.clone(), &router.shapes(), 9),
        calibration: Some(Calibration::new(vec![1.0, 1.5]).unwrap()),
        text: TextSource::Hashed(TEXT),
        codec: CodecSource::Pixels,
    }
}

fn draw(experts: Vec<Expert>, router: Router) -> Vec<f32> {
    let field = |expert: Expert| Some(Box::new(expert) as Box<dyn Field>);
    let mixture = Mixture {
        shape: (4, 8, 8),
        experts: experts.into_iter().map(field).collect(),
        router: Some(Box::new(router) as Box<dyn Posterior>),
        calibration: None,
    };
    let settings = SampleSettings {
        steps: 3,
        solver: Solver::Euler,
        guidance: Guidance::of(2.0),
        routing: Routing::Top(2),
        reroute: Reroute::EveryStep,
        seed: 4,
    };
    let text = |captions: &[&str]| TEXT.encode(captions, &Device::Cpu).unwrap();
    let drawn = sample(&mixture, &text(&["a red heart", "a boat"]), &text(&[""]), &settings, &mut |_| {}).unwrap();
    drawn.flatten_all().unwrap().to_vec1().unwrap()
}

fn draw_published(published: &Published) -> Vec<f32> {
    let device = Device::Cpu;
    let open = |it: &paris_model::hub::PublishedPart<ExpertConfig>| {
        Expert::new(&it.config, &it.parameters(&device).unwrap()).unwrap()
    };
    let router = &published.router;
    let router = Router::new(&router.config, &router.parameters(&device).unwrap()).unwrap();
    draw(published.experts.iter().map(open).collect(), router)
}

#[test]
fn what_is_exported_and_imported_draws_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for caption_width in [None, Some(TEXT.width)] {
        let mixture = mixture(folder.path(), RouterConfig { caption_width, ..router() });
        let load = |config: PartConfig, weights: &Path| {
            Parameters::load(&config, &fs::read(weights).unwrap(), &Device::Cpu).unwrap()
        };
        let open = |it: &ExportedPart<ExpertConfig>| {
            Expert::new(&it.config, &load(PartConfig::Expert(it.config.clone()), &it.weights)).unwrap()
        };
        let part = &mixture.router;
        let router = Router::new(&part.config, &load(PartConfig::Router(part.config.clone()), &part.weights)).unwrap();
        let expected = draw(mixture.experts.iter().map(open).collect(), router);

        let (out, copied) = (folder.path().join("out"), folder.path().join("copied"));
        export(&out, &mixture).unwrap();
        let published = Published::open(&out).unwrap();
        assert_eq!(draw_published(&published), expected);
        published.check_numbers(&mut |_| {}).unwrap();
        published.copy_to(&copied).unwrap();
        fs::remove_dir_all(&out).unwrap();
        let imported = Published::open(&copied).unwrap();
        assert_eq!(draw_published(&imported), expected);
        assert_eq!(imported.calibration, mixture.calibration);
        assert_eq!((&imported.text, &imported.codec), (&mixture.text, &mixture.codec));
        fs::remove_dir_all(&copied).unwrap();
    }
}

#[test]
fn an_export_is_whole_or_absent_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (out, partial) = (folder.path().join("out"), folder.path().join(".out.partial"));
    let mut mixture = mixture(folder.path(), router());
    mixture.experts[1].hash = blake3::hash(b"other bytes");
    let said = export(&out, &mixture).unwrap_err().to_string();
    assert!(said.contains("damaged") && !out.exists() && !partial.exists(), "{said}");

    // What an interrupted export left is no hindrance, nor is an empty folder.
    mixture.experts[1].hash = blake3::hash(&fs::read(&mixture.experts[1].weights).unwrap());
    mixture.experts[2].objective = Objective::Epsilon;
    fs::create_dir_all(partial.join("expert_0")).unwrap();
    fs::create_dir(&out).unwrap();
    export(&out, &mixture).unwrap();
    assert!(!partial.exists());
    let objectives: Vec<_> = Published::open(&out).unwrap().experts.iter().map(|it| it.objective).collect();
    assert_eq!(objectives, [Objective::Velocity, Objective::Velocity, Objective::Epsilon]);
    let said = export(&out, &mixture).unwrap_err().to_string();
    assert!(said.contains("nothing is overwritten"), "{said}");
}

/// A folder as Paris published it: only the published configs, half-precision weights, encoders' folders.
fn published(folder: &Path) {
    let write = |path: &str, text: &str| fs::write(folder.join(path), text).unwrap();
    let save = |path: &str, shapes: &Shapes, seed: u64, precision: DType| {
        let tensors: HashMap<String, Tensor> = tensors(shapes, seed)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(precision).unwrap()))
            .collect();
        candle_core::safetensors::save(&tensors, folder.join(path)).unwrap();
    };
    for name in ["expert_0", "expert_1", "expert_2", "router", "vae", "text_encoder", "tokenizer"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    write("config.json", r#"{"num_clusters": 3, "num_experts": 3, "architecture": "paris"}"#);
    write("model_index.json", r#"{"_class_name": "ParisPipeline"}"#);
    for (cluster, precision) in [DType::F32, DType::BF16, DType::F16].into_iter().enumerate() {
        write(
            &format!("expert_{cluster}/config.json"),
            r#"{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 2, "in_channels": 4, "out_channels": 4, "mlp_ratio": 4.0,
                "text_embed_dim": 8, "use_adaln_single": true, "cfg_dropout_prob": 0.1, "num_clusters": 3}"#,
        );
        let path = format!("expert_{cluster}/diffusion_pytorch_model.safetensors");
        save(&path, &expert().shapes(), cluster as u64, precision);
    }
    write(
        "router/config.json",
        r#"{"hidden_size": 12, "num_layers": 1, "num_heads": 2, "patch_size": 2, "in_channels": 4, "mlp_ratio": 4, "num_clusters": 3}"#,
    );
    save("router/pytorch_model.safetensors", &router().shapes(), 9, DType::F32);
}

#[test]
fn the_published_configs_and_half_precision_are_read() {
    let folder = tempfile::tempdir().unwrap();
    published(folder.path());
    let published = Published::open(folder.path()).unwrap();
    // The size follows from the position table, the tokens from CLIP.
    assert!(published.experts.iter().all(|it| it.config == ExpertConfig { text_tokens: 77, ..expert() }));
    assert_eq!((published.experts.len(), &published.router.config), (3, &router()));
    let (encoder, tokenizer) = (folder.path().join("text_encoder"), folder.path().join("tokenizer"));
    assert_eq!(published.text, TextSource::Files { encoder, tokenizer });
    assert_eq!(published.codec, CodecSource::Files(folder.path().join("vae")));
    for (cluster, (part, tolerance)) in published.experts.iter().zip([0.0, 4e-3, 5e-4]).enumerate() {
        let found = part.parameters(&Device::Cpu).unwrap().tensors().unwrap();
        for (name, expected) in tensors(&expert().shapes(), cluster as u64) {
            let off = (&found[&name] - &expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(off.to_scalar::<f32>().unwrap() <= tolerance, "{name} of expert {cluster}");
        }
    }
}

/// What [`Published::open`] says of a published folder that was changed.
fn said_of(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    published(folder.path());
    change(folder.path());
    Published::open(folder.path()).unwrap_err().to_string()
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let said = said_of(|folder| {
        let path = folder.join("expert_1/diffusion_pytorch_model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        tensors.remove("t_block.1.bias");
        tensors.remove("layers.1.attn.out_proj.weight");
        tensors.insert("y_embedder.weight".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        tensors.insert("pos_embed".to_owned(), Tensor::zeros((1, 16, 15), DType::F32, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, path).unwrap();
        fs::remove_file(folder.join("router/pytorch_model.safetensors")).unwrap();
        fs::write(folder.join("expert_2/config.json"), r#"{"hidden_size": 16, "mlp_ratio": 2, "in_channels": 4}"#)
            .unwrap();
        fs::remove_dir(folder.join("vae")).unwrap();
        fs::remove_dir(folder.join("tokenizer")).unwrap();
    });
    for part in [
        "expert_1/diffusion_pytorch_model.safetensors: t_block.1.bias [96] is missing",
        "expert_1/diffusion_pytorch_model.safetensors: layers.1.attn.out_proj.weight [16, 16] is missing",
        "expert_1/diffusion_pytorch_model.safetensors: y_embedder.weight [3] does not belong there",
        "expert_1/diffusion_pytorch_model.safetensors: pos_embed is [1, 16, 15] instead of [1, 16, 16]",
        "router/pytorch_model.safetensors: is missing",
        "expert_2/config.json: mlp_ratio is 2",
        "expert_2/config.json: num_layers is not given",
        "vae/: is missing",
        "tokenizer/: is missing",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains("expert_0") && !said.contains("text_encoder/"), "{said}");
}

#[test]
fn a_config_that_does_not_fit_the_weights_is_refused() {
    let said = said_of(|folder| {
        let path = folder.join("router/config.json");
        fs::write(&path, fs::read_to_string(&path).unwrap().replace("\"hidden_size\": 12", "\"hidden_size\": 16"))
            .unwrap();
    });
    assert!(said.contains("router/pytorch_model.safetensors: cls_token is [1, 1, 12] instead of [1, 1, 16]"), "{said}");
    let said = said_of(|folder| fs::remove_dir_all(folder.join("expert_1")).unwrap());
    assert!(said.contains("expert_1/diffusion_pytorch_model.safetensors: is missing"), "{said}");
    let said = said_of(|folder| fs::remove_dir_all(folder.join("expert_2")).unwrap());
    assert!(said.contains("num_clusters is 3, and there are 2 folders of experts"), "{said}");
    let said =
        said_of(|folder| fs::write(folder.join("router/pytorch_model.safetensors"), b"PK\x03\x04 a pickle").unwrap());
    assert!(said.contains("router/pytorch_model.safetensors: the header is"), "{said}");
    let empty = tempfile::tempdir().unwrap();
    let said = Published::open(empty.path()).unwrap_err().to_string();
    assert!(said.contains("expert_0/: is missing") && said.contains("config.json"), "{said}");
}
