//! A run on latents, end to end: pictures are prepared through an autoencoder, an expert trains on what it made of them, and what the expert draws
//! is decoded.

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use paris_model::{
    batch::BatchSource,
    config::{ExpertConfig, PartConfig},
    data::{Dataset, Encoding, PrepareError, PrepareSettings, Prepared, Source, prepare},
    expert::Expert,
    features::{ColourAndEdges, ImageFeatures},
    image_codec::{ImageCodec, Pixels},
    objective::Objective,
    parameters::Parameters,
    sampler::{Guidance, Mixture, Reroute, Routing, SampleSettings, Solver, sample},
    text::{HashedText, TextEncoder},
    trainer::{TrainSettings, Trainer},
};

use crate::{fixture::relative_error, vae};

const TEXT: HashedText = HashedText { tokens: 4, width: 16 };

fn settings() -> PrepareSettings {
    PrepareSettings { clusters: 1, size: 16, limit: Some(24), held_out: 0.25, ..PrepareSettings::default() }
}

fn prepared(folder: &Path, codec: &dyn ImageCodec, settings: &PrepareSettings) -> Result<Prepared, PrepareError> {
    let source = Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji32-512.tar")).unwrap();
    prepare(&source, folder, settings, &ColourAndEdges, codec, &mut |_| {})
}

fn open(folder: &Path, prepared: &Prepared) -> Dataset {
    let shards = prepared.clusters[0].train.iter().map(|shard| (shard.path(folder), 0));
    Dataset::open(shards, Arc::new(TEXT)).unwrap()
}

#[test]
fn pictures_become_latents_become_pictures() {
    let (vae, folder) = (vae::tiny(), tempfile::tempdir().unwrap());
    let (pixels_folder, latents_folder) = (folder.path().join("pixels"), folder.path().join("latents"));
    let as_pixels = prepared(&pixels_folder, &Pixels, &settings()).unwrap();
    let as_latents = prepared(&latents_folder, &vae, &settings()).unwrap();
    assert_eq!(Prepared::read(&latents_folder).unwrap(), as_latents);
    assert_eq!((as_latents.codec.clone(), as_latents.features.clone()), (vae.identity(), ColourAndEdges.identity()));

    // The same pictures in the same order, as the codec makes them.
    let (pixels, latents) = (open(&pixels_folder, &as_pixels), open(&latents_folder, &as_latents));
    assert_eq!((pixels.side(), latents.side(), pixels.len()), (16, 4, latents.len()));
    assert_eq!(latents.encoding(), Encoding::Moments { channels: 4 });
    let all: Vec<usize> = (0..latents.len()).collect();
    let (pictures, stored) = (pixels.batch(&all, &Device::Cpu).unwrap(), latents.batch(&all, &Device::Cpu).unwrap());
    assert!(pictures.spread.is_none());
    let moments = vae.moments(&pictures.images).unwrap().unwrap();
    let spread = (moments.narrow(1, 4, 4).unwrap() / 2.0).unwrap().exp().unwrap();
    // Half floats keep eleven bits.
    assert!(relative_error(&stored.images, &moments.narrow(1, 0, 4).unwrap()) < 1e-3);
    assert!(relative_error(&stored.spread.unwrap(), &spread) < 1e-3);

    let (text_tokens, text_width) = (TEXT.tokens, TEXT.width);
    let shape = ExpertConfig { channels: 4, size: 4, patch: 2, width: 32, depth: 1, heads: 2, text_tokens, text_width };
    let config = PartConfig::Expert(shape.clone());
    let training = TrainSettings {
        batch: 8,
        learning_rate: 2e-3,
        warmup_steps: 2,
        clip: 1.0,
        ema_decay: 0.9,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    let null = TEXT.encode(&[""], &Device::Cpu).unwrap();
    let mut trainer = Trainer::new(config.clone(), training, &[5; 32], &null, &Device::Cpu).unwrap();
    let before = trainer.held_out_loss(&latents, usize::MAX).unwrap();
    for _ in 0..60 {
        trainer.step(&latents).unwrap();
    }
    let after = trainer.held_out_loss(&latents, usize::MAX).unwrap();
    println!("loss on latents {before} to {after}");
    assert!(after < 0.9 * before);

    let weights = Parameters::load(&config, &trainer.weights().unwrap(), &Device::Cpu).unwrap();
    let expert = Expert::new(&shape, &weights).unwrap();
    let mixture = Mixture { shape: (4, 4, 4), experts: vec![Some(Box::new(expert))], router: None, calibration: None };
    let settings = SampleSettings {
        steps: 4,
        solver: Solver::Euler,
        guidance: Guidance::NONE,
        routing: Routing::Full,
        reroute: Reroute::Once,
        seed: 1,
    };
    let text = TEXT.encode(&["a red heart", "a dog"], &Device::Cpu).unwrap();
    let drawn = sample(&mixture, &text, &null, &settings, &mut |_| {}).unwrap();
    let pictures = vae.decode(&drawn).unwrap();
    assert_eq!(pictures.dims(), [2, 3, 16, 16]);
    let finite =
        |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|it| it.is_finite());
    assert!(finite(&pictures));
}

#[test]
fn a_size_that_the_codec_cannot_take_is_said_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let error = prepared(folder.path(), &vae::tiny(), &PrepareSettings { size: 18, ..settings() }).unwrap_err();
    assert!(matches!(&error, PrepareError::Settings(reason) if reason.contains("multiple of 4")), "{error}");
}
