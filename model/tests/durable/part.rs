//! A tiny part to train.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use candle_core::{DType, Device, Result, Tensor};
use paris_model::{
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig},
    durable::{Durable, Outcome, Setup},
    objective::Objective,
    random::Stream,
    report::StepReport,
    snapshot::Snapshots,
    state::{Published, State},
    trainer::{TrainSettings, Trainer},
};

/// The run's name in snapshots.
pub(crate) const RUN: &str = "a run";
/// The part's.
pub(crate) const PART: &str = "expert-0";
const SIDE: usize = 4;
const TOKENS: usize = 2;
const WIDTH: usize = 4;

pub(crate) fn config() -> PartConfig {
    PartConfig::Expert(ExpertConfig {
        channels: 1,
        size: SIDE,
        patch: 2,
        width: 16,
        depth: 1,
        heads: 2,
        text_tokens: TOKENS,
        text_width: WIDTH,
    })
}

pub(crate) fn setup() -> Setup {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let settings = TrainSettings {
        batch: 4,
        learning_rate: 2e-3,
        warmup_steps: 5,
        clip: 1.0,
        ema_decay: 0.9,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    Setup {
        config: config(),
        settings,
        key: [7; 32],
        null_text: Text { tokens: zeros(&[1, TOKENS, WIDTH]), pooled: zeros(&[1, WIDTH]) },
        device: Device::Cpu,
        recompute: false,
        base: None,
    }
}

/// Ten pictures of noise. Those named are not numbers, as often as asked for.
#[derive(Default)]
pub(crate) struct Pictures {
    /// For each of the ten, how many times yet it is broken.
    pub(crate) broken: [AtomicU32; 10],
}

impl BatchSource for Pictures {
    fn len(&self) -> usize {
        self.broken.len()
    }

    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        let (mut images, mut words) = (Vec::new(), Vec::new());
        for index in indices {
            let mut stream = Stream::seeded(*index as u64, "picture");
            let broken = self.broken[*index].load(Relaxed);
            self.broken[*index].store(broken.saturating_sub(1), Relaxed);
            let value = if broken > 0 { f32::NAN } else { 1.0 };
            images.extend(stream.normals(SIDE * SIDE).iter().map(|it| it * value));
            words.extend(stream.normals(TOKENS * WIDTH));
        }
        let tokens = Tensor::from_vec(words, (indices.len(), TOKENS, WIDTH), device)?;
        let labels = vec![0u32; indices.len()];
        Ok(Batch {
            images: Tensor::from_vec(images, (indices.len(), 1, SIDE, SIDE), device)?,
            spread: None,
            text: Text { pooled: tokens.mean(1)?, tokens },
            labels: Tensor::new(labels, device)?,
        })
    }
}

pub(crate) fn begin(snapshots: &Snapshots, published: Option<Published>) -> Durable {
    Durable::begin(setup(), RUN, snapshots.clone(), published).unwrap()
}

/// The trainer of whoever goes on from what was published.
pub(crate) fn successor(published: &Published) -> Trainer {
    let Setup { config, settings, key, null_text, device, .. } = setup();
    let state = State::read_published(published, &config).unwrap();
    Trainer::from_state(config, settings, &key, &null_text, &state, &device).unwrap()
}

/// A step that must not fail.
pub(crate) fn step(durable: &mut Durable, data: &Pictures) -> StepReport {
    match durable.step(data).unwrap() {
        Outcome::Stepped(report) => report,
        Outcome::WentBack(fallback) => panic!("went back: {fallback:?}"),
    }
}

/// So many steps, then a snapshot that is on the disk.
pub(crate) fn advance(durable: &mut Durable, steps: usize) {
    for _ in 0..steps {
        step(durable, &Pictures::default());
    }
    durable.settle();
    assert!(durable.snapshot().unwrap());
    durable.settle();
    assert_eq!(durable.snapshot_problem(), None);
}
