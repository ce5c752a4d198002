//! Training follows from its key and its data alone, learns, and goes on from a saved state as if it had never stopped.

use candle_core::{Device, Result, Tensor};
use paris_model::{
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig, RouterConfig},
    draw::DrawError,
    objective::Objective,
    random::Stream,
    trainer::{TrainError, TrainSettings, Trainer},
};

const CAPTION_WIDTH: usize = 6;
const TOKENS: usize = 3;

fn expert() -> PartConfig {
    PartConfig::Expert(ExpertConfig {
        channels: 3,
        size: 8,
        patch: 2,
        width: 32,
        depth: 2,
        heads: 2,
        text_tokens: TOKENS,
        text_width: CAPTION_WIDTH,
    })
}

fn router(caption_width: Option<usize>) -> PartConfig {
    let clusters = 2;
    PartConfig::Router(RouterConfig {
        channels: 3,
        size: 8,
        patch: 2,
        width: 32,
        depth: 2,
        heads: 2,
        clusters,
        caption_width,
    })
}

fn settings() -> TrainSettings {
    TrainSettings {
        batch: 8,
        learning_rate: 2e-3,
        warmup_steps: 5,
        clip: 1.0,
        ema_decay: 0.9,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    }
}

fn null_text() -> Text {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    Text { tokens: zeros(&[1, TOKENS, CAPTION_WIDTH]), pooled: zeros(&[1, CAPTION_WIDTH]) }
}

/// Pictures of one of two kinds, dark or light, with a caption that says which.
struct Shades(usize);

impl BatchSource for Shades {
    fn len(&self) -> usize {
        self.0
    }

    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        let mut images = Vec::new();
        let mut words = Vec::new();
        for index in indices {
            let light = if index % 2 == 0 { 0.7 } else { -0.7 };
            let noise = Stream::seeded(*index as u64, "picture").normals(3 * 8 * 8);
            images.extend(noise.iter().map(|noise| light + 0.1 * noise));
            words.extend([light; CAPTION_WIDTH]);
        }
        let count = indices.len();
        let pooled = Tensor::from_vec(words, (count, CAPTION_WIDTH), device)?;
        let tokens = pooled.unsqueeze(1)?.repeat((1, TOKENS, 1))?;
        let labels: Vec<u32> = indices.iter().map(|index| (index % 2) as u32).collect();
        Ok(Batch {
            images: Tensor::from_vec(images, (count, 3, 8, 8), device)?,
            spread: None,
            text: Text { tokens, pooled },
            labels: Tensor::new(labels, device)?,
        })
    }
}

fn trainer(config: PartConfig) -> Trainer {
    Trainer::new(config, settings(), &[7; 32], &null_text(), &Device::Cpu).unwrap()
}

fn train(trainer: &mut Trainer, steps: usize) {
    for _ in 0..steps {
        trainer.step(&Shades(20)).unwrap();
    }
}

#[test]
fn held_out_loss_falls_for_experts_and_routers() {
    for config in [expert(), router(None), router(Some(CAPTION_WIDTH))] {
        let mut trainer = trainer(config.clone());
        let before = trainer.held_out_loss(&Shades(16), 16).unwrap();
        train(&mut trainer, 60);
        let after = trainer.held_out_loss(&Shades(16), 16).unwrap();
        assert!(after < 0.8 * before, "{config:?}: {before} to {after}");
    }
}

#[test]
fn a_part_from_a_base_begins_with_the_bases_loss_and_nothing_else_of_it() {
    let mut base = trainer(expert());
    train(&mut base, 30);
    let weights = base.weights().unwrap();
    let from = |config| Trainer::from_base(config, settings(), &[7; 32], &null_text(), &weights, &Device::Cpu);
    let mut based = from(expert()).unwrap();
    assert_eq!((based.step_count(), based.cursor()), (0, 0));
    assert_eq!(based.weights().unwrap(), weights);
    let loss = |trainer: &Trainer| trainer.held_out_loss(&Shades(16), 16).unwrap();
    assert_eq!(loss(&based), loss(&base));
    train(&mut based, 10);
    assert!(loss(&based) < loss(&base) && based.step_count() == 10);
    let refused = from(router(None)).err().unwrap().to_string();
    assert!(refused.starts_with("the base checkpoint: "), "{refused}");
}

#[test]
fn a_resumed_part_reaches_the_same_bits() {
    for config in [expert(), router(Some(CAPTION_WIDTH))] {
        let mut uninterrupted = trainer(config.clone());
        train(&mut uninterrupted, 7);
        let mut stopped = trainer(config.clone());
        train(&mut stopped, 4);
        let state = stopped.state().unwrap();
        let mut resumed = Trainer::resume(config, settings(), &[7; 32], &null_text(), &state, &Device::Cpu).unwrap();
        assert_eq!(resumed.step_count(), 4);
        train(&mut resumed, 3);
        assert_eq!(resumed.weights().unwrap(), uninterrupted.weights().unwrap());
        assert_eq!(resumed.state().unwrap(), uninterrupted.state().unwrap());
    }
}

#[test]
fn a_foreign_or_damaged_state_is_refused() {
    let state = trainer(expert()).state().unwrap();
    let resume = |config: PartConfig, state: &[u8]| match Trainer::resume(
        config,
        settings(),
        &[7; 32],
        &null_text(),
        state,
        &Device::Cpu,
    ) {
        Ok(_) => panic!("resumed from a state that is not this part's"),
        Err(error) => error,
    };
    assert!(matches!(resume(router(None), &state), TrainError::State(_)));
    assert!(matches!(resume(expert(), &state[..state.len() - 1]), TrainError::State(_)));
}

#[test]
fn a_key_decides_everything_random() {
    let weights = |key: u8| {
        let mut trainer = Trainer::new(expert(), settings(), &[key; 32], &null_text(), &Device::Cpu).unwrap();
        train(&mut trainer, 2);
        trainer.weights().unwrap()
    };
    assert_eq!(weights(1), weights(1));
    assert_ne!(weights(1), weights(2));
}

#[test]
fn a_step_that_fails_changes_nothing() {
    /// Pictures that no camera took.
    struct Broken;
    impl BatchSource for Broken {
        fn len(&self) -> usize {
            8
        }
        fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
            let batch = Shades(8).batch(indices, device)?;
            Ok(Batch { images: (batch.images * f64::NAN)?, ..batch })
        }
    }
    let mut trainer = trainer(expert());
    train(&mut trainer, 2);
    let before = trainer.state().unwrap();
    assert!(matches!(trainer.step(&Broken), Err(TrainError::NotFinite { step: 3, .. })));
    assert_eq!(trainer.state().unwrap(), before);
    assert!(matches!(trainer.step(&Shades(0)), Err(TrainError::Draw(DrawError::NoSamples))));
}

/// The twin reads no captions, so the gradient of what does is checked by differences.
#[test]
fn a_router_with_captions_has_the_gradient_of_its_loss() {
    use candle_nn::loss::cross_entropy;
    use paris_model::{parameters::Parameters, router::Router};

    let part = router(Some(CAPTION_WIDTH));
    let PartConfig::Router(config) = &part else { unreachable!("made above") };
    let mut stream = Stream::seeded(4, "parameters");
    let mut random = |shape: &[usize]| (stream.normal_tensor(shape.to_vec(), &Device::Cpu).unwrap() * 0.2).unwrap();
    let tensors = part.shapes().iter().map(|(name, shape)| (name.clone(), random(shape))).collect();
    let (parameters, variables) = Parameters::from_tensors(&part, &tensors).unwrap().into_variables().unwrap();
    let batch = Shades(6).batch(&[0, 1, 2, 3, 4, 5], &Device::Cpu).unwrap();
    let t = Tensor::new(&[0f32, 100.0, 300.0, 500.0, 700.0, 900.0], &Device::Cpu).unwrap();
    let loss = |parameters: &Parameters| {
        let router = Router::new(config, parameters).unwrap();
        cross_entropy(&router.forward(&batch.images, &t, Some(&batch.text.pooled)).unwrap(), &batch.labels).unwrap()
    };
    let gradients = loss(&parameters).backward().unwrap();
    for name in ["caption_proj.weight", "caption_proj.bias", "trunk", "cls_token"] {
        let gradient = gradients.get(&variables[name]).unwrap();
        // Along the gradient itself the loss changes the most, so that rounding hides it the least.
        let norm = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let moved = |distance: f64| {
            let step = (gradient * (distance / f64::from(norm))).unwrap();
            let mut groups = parameters.groups().clone();
            groups.insert(name.to_owned(), (variables[name].as_tensor() + step).unwrap());
            f64::from(loss(&parameters.with_groups(groups)).to_scalar::<f32>().unwrap())
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!((slope / f64::from(norm) - 1.0).abs() < 0.02, "{name}: slope {slope}, gradient {norm}");
    }
}
