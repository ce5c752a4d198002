//! What a step is trained on follows from (key, settings, step) and the data: drawn ahead or not, in one piece or cut.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{Device, Tensor};
use paris_model::{
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig, RouterConfig},
    data::{Dataset, Encoding, Shard, shard::moment_bytes},
    draw::{Draw, DrawError, Draws},
    objective::Objective,
    prefetch::{DRAWS_AHEAD_MAX, Prefetch},
    random::Stream,
    text::{HashedText, TextEncoder},
    trainer::{TrainError, TrainSettings, Trainer},
};

const TEXT: HashedText = HashedText { tokens: 3, width: 8 };
const KEY: [u8; 32] = [9; 32];
const SIDE: usize = 8;
const SAMPLES: [usize; 3] = [9, 1, 13];

fn expert() -> PartConfig {
    let (text_tokens, text_width) = (TEXT.tokens, TEXT.width);
    PartConfig::Expert(ExpertConfig {
        channels: 3,
        size: SIDE,
        patch: 2,
        width: 32,
        depth: 2,
        heads: 2,
        text_tokens,
        text_width,
    })
}

fn router() -> PartConfig {
    let caption_width = Some(TEXT.width);
    PartConfig::Router(RouterConfig {
        channels: 3,
        size: SIDE,
        patch: 2,
        width: 32,
        depth: 1,
        heads: 2,
        clusters: 3,
        caption_width,
    })
}

const SETTINGS: TrainSettings = TrainSettings {
    batch: 10,
    learning_rate: 1e-3,
    warmup_steps: 2,
    clip: 1e9,
    ema_decay: 0.9,
    caption_drop: 0.3,
    objective: Objective::Velocity,
};

fn null_text() -> Text {
    TEXT.encode(&[""], &Device::Cpu).unwrap()
}

fn trainer(config: PartConfig, micro_batch: usize) -> Trainer {
    let mut trainer = Trainer::new(config, SETTINGS, &KEY, &null_text(), &Device::Cpu).unwrap();
    trainer.set_micro_batch(micro_batch);
    trainer
}

fn resume(config: PartConfig, state: &[u8]) -> Trainer {
    Trainer::resume(config, SETTINGS, &KEY, &null_text(), state, &Device::Cpu).unwrap()
}

/// Three clusters of noise on disk, a shard each; every sample has a caption of its own.
fn data(folder: &std::path::Path) -> Arc<Dataset> {
    let shards = SAMPLES.iter().zip(0..).map(|(samples, label)| {
        let mut noise = Stream::seeded(label.into(), "pixels");
        let pixels = (0..samples * SIDE * SIDE * 3).map(|_| noise.bits() as u8).collect();
        let captions = (0..*samples).map(|sample| format!("sample {sample} of cluster {label}")).collect();
        let path = folder.join(format!("shard-{label}"));
        std::fs::write(&path, Shard::new(SIDE, SIDE, pixels, captions).unwrap().write().unwrap()).unwrap();
        (path, label)
    });
    Arc::new(Dataset::open(shards, Arc::new(TEXT)).unwrap())
}

/// The same captions with latents of four channels instead of pixels.
fn latents(folder: &std::path::Path) -> Arc<Dataset> {
    let shards = SAMPLES.iter().zip(0..).map(|(samples, label)| {
        let moments = Stream::seeded(label.into(), "moments").normal_tensor((*samples, 8, SIDE, SIDE), &Device::Cpu);
        let bytes = moment_bytes(&moments.unwrap()).unwrap();
        let captions = (0..*samples).map(|sample| format!("sample {sample} of cluster {label}")).collect();
        let shard = Shard::encoded(Encoding::Moments { channels: 4 }, SIDE, SIDE, bytes, captions).unwrap();
        let path = folder.join(format!("latents-{label}"));
        std::fs::write(&path, shard.write().unwrap()).unwrap();
        (path, label)
    });
    Arc::new(Dataset::open(shards, Arc::new(TEXT)).unwrap())
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap()
}

/// The largest difference of two vectors, as a share of the largest number in them.
fn difference(one: &[f32], other: &[f32]) -> f32 {
    let largest = one.iter().fold(0f32, |largest, number| largest.max(number.abs()));
    one.iter().zip(other).fold(0f32, |worst, (one, other)| worst.max((one - other).abs())) / largest
}

#[test]
fn training_on_draws_made_ahead_reaches_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for (config, micro_batch) in [(expert(), 10), (expert(), 4), (router(), 10)] {
        let (mut here, mut ahead) = (trainer(config.clone(), micro_batch), trainer(config, micro_batch));
        let mut draws = Prefetch::start(ahead.draw_rule().clone(), data.clone(), 0).unwrap();
        for _ in 0..6 {
            let (here, ahead) = (here.step(&*data).unwrap(), ahead.step_from(&mut draws).unwrap());
            assert_eq!((here.step, here.loss, here.gradient_norm), (ahead.step, ahead.loss, ahead.gradient_norm));
            assert_eq!((here.loss_by_time, here.micro_batches), (ahead.loss_by_time, ahead.micro_batches));
        }
        assert_eq!(here.state().unwrap(), ahead.state().unwrap());
    }
}

/// x_0 = mean + exp(log-variance / 2) eps, with an eps of its own for each sample and step.
#[test]
fn latents_are_drawn_anew_each_time_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let data = latents(folder.path());
    let trainer = trainer(expert(), 10);
    let (mut epochs, mut scores) = (vec![Vec::new(); 3], Vec::new());
    let draws = Draws::new(trainer.draw_rule(), &*data, 0).map(Result::unwrap);
    for draw in draws.take_while(|draw| draw.step < 7) {
        assert!(draw.batch.spread.is_none());
        assert_eq!(draw.batch.images.dims(), [10, 4, SIDE, SIDE]);
        for sample in 0..10 {
            epochs[(draw.step as usize * 10 + sample) / 23 % 3].push(numbers(&draw.batch.images.get(sample).unwrap()));
        }
    }
    // Every latent of an epoch is some sample's, off by about one deviation, and otherwise in the next epoch.
    let all = data.batch(&(0..23).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let spread = all.spread.unwrap();
    for index in 0..23 {
        let (mean, spread) = (numbers(&all.images.get(index).unwrap()), numbers(&spread.get(index).unwrap()));
        let score = |drawn: &Vec<f32>| {
            let terms = drawn.iter().zip(&mean).zip(&spread).map(|((x, mean), spread)| ((x - mean) / spread).powi(2));
            terms.sum::<f32>() / mean.len() as f32
        };
        let nearest = |epoch: &Vec<Vec<f32>>| epoch.iter().map(score).fold(f32::INFINITY, f32::min);
        scores.extend([nearest(&epochs[0]), nearest(&epochs[1])]);
    }
    assert!(scores.iter().all(|score| (0.7..1.3).contains(score)), "{scores:?}");
    assert!(epochs[0].iter().all(|latent| !epochs[1].contains(latent)));
}

#[test]
fn how_a_step_is_cut_changes_nothing_that_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    for data in [data(folder.path()), latents(folder.path())] {
        cuts_draw_alike(&data);
    }
}

fn cuts_draw_alike(data: &Arc<Dataset>) {
    // Two steps that cross an epoch.
    let drawn = |micro_batch: usize| {
        let trainer = trainer(expert(), micro_batch);
        let draws: Vec<Draw> = Draws::new(trainer.draw_rule(), &**data, 1)
            .map(Result::unwrap)
            .take_while(|draw| draw.step < 3)
            .inspect(|draw| assert!(draw.len() <= micro_batch))
            .collect();
        let joined = |part: fn(&Draw) -> Vec<f32>| draws.iter().flat_map(part).collect::<Vec<f32>>();
        [
            joined(|draw| draw.times.clone()),
            joined(|draw| numbers(&draw.noise)),
            joined(|draw| numbers(&draw.batch.images)),
            joined(|draw| numbers(&draw.batch.text.tokens)),
            joined(|draw| numbers(&draw.batch.text.pooled)),
            joined(|draw| numbers(&draw.batch.labels)),
        ]
    };
    let whole = drawn(10);
    assert_eq!(whole[0].len(), 20);
    for micro_batch in [1, 3, 5, 9] {
        assert_eq!(drawn(micro_batch), whole, "{micro_batch}");
    }
}

#[test]
fn gradients_summed_over_micro_batches_are_those_of_the_whole_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for config in [expert(), router()] {
        // Some steps first: where a part begins most gradients are zero.
        let mut beginning = trainer(config.clone(), 10);
        for _ in 0..4 {
            beginning.step(&*data).unwrap();
        }
        let before = beginning.state().unwrap();
        let moments = first_moments(&before);
        let step = |micro_batch: usize| {
            let mut trainer = resume(config.clone(), &before);
            trainer.set_micro_batch(micro_batch);
            let report = trainer.step(&*data).unwrap();
            assert_eq!(report.micro_batches, 10usize.div_ceil(micro_batch));
            let after = first_moments(&trainer.state().unwrap());
            // The first moment is 0.9 of what it was and 0.1 of the gradient.
            let gradient = |(after, before): (&f32, &f32)| (after - 0.9 * before) / 0.1;
            let gradients = after.iter().map(|(name, after)| {
                (name.clone(), after.iter().zip(&moments[name]).map(gradient).collect::<Vec<f32>>())
            });
            (report, gradients.collect::<BTreeMap<_, _>>(), trainer.state().unwrap())
        };
        let (whole, gradients, _) = step(10);
        for micro_batch in [1, 4, 5] {
            let (cut, cut_gradients, state) = step(micro_batch);
            assert!((cut.loss - whole.loss).abs() < 1e-5 * whole.loss, "{} and {}", cut.loss, whole.loss);
            let norms = [cut.gradient_norm, whole.gradient_norm];
            assert!((norms[0] - norms[1]).abs() < 1e-4 * norms[1], "{norms:?}");
            for (name, gradient) in &gradients {
                let difference = difference(gradient, &cut_gradients[name]);
                assert!(difference < 1e-3, "{name} in micro-batches of {micro_batch}: {difference}");
            }
            assert!(step(micro_batch).2 == state, "equal cuts, equal bits");
        }
    }
}

/// AdamW's first moments in a state.
fn first_moments(state: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let tensors = candle_core::safetensors::load_buffer(state, &Device::Cpu).unwrap();
    let moments = tensors.into_iter().filter(|(name, _)| name.starts_with("moment1."));
    moments.map(|(name, tensor)| (name, numbers(&tensor))).collect()
}

#[test]
fn losses_by_time_are_those_of_the_samples() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let trainer = trainer(expert(), 10);
    let draw = Draws::new(trainer.draw_rule(), &*data, 0).next().unwrap().unwrap();
    let report = { trainer }.step(&*data).unwrap();
    let filled: Vec<bool> = report.loss_by_time.means().iter().map(Option::is_some).collect();
    let expected: Vec<bool> = (0..10).map(|bin| draw.times.iter().any(|t| (t * 10.0) as usize == bin)).collect();
    assert_eq!(filled, expected);
    assert_eq!(report.loss_by_time.mean(), Some(report.loss));
}

#[test]
fn a_state_remembers_its_micro_batch_and_one_that_cannot_be_is_bounded() {
    let mut first = trainer(expert(), 4);
    assert_eq!(first.micro_batch(), 4);
    let state = first.state().unwrap();
    assert_eq!(resume(expert(), &state).micro_batch(), 4);
    let smaller = TrainSettings { batch: 3, ..SETTINGS };
    let smaller = Trainer::resume(expert(), smaller, &KEY, &null_text(), &state, &Device::Cpu).unwrap();
    assert_eq!(smaller.micro_batch(), 3);
    first.set_micro_batch(0);
    assert_eq!(first.micro_batch(), 1);
}

#[test]
fn draws_of_another_step_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let mut trainer = trainer(expert(), 4);
    let before = trainer.state().unwrap();
    let rule = trainer.draw_rule().clone();
    for (skipped, at) in [(1, Some(0)), (3, Some(1))] {
        let mut draws = Draws::new(&rule, &*data, 0).skip(skipped);
        let refused = trainer.step_from(&mut draws).unwrap_err();
        assert!(matches!(refused, TrainError::OutOfStep { due: 0, at: found } if found == at), "{refused}");
    }
    let ended = trainer.step_from(&mut std::iter::empty()).unwrap_err();
    assert!(matches!(ended, TrainError::OutOfStep { due: 0, at: None }), "{ended}");
    assert_eq!(trainer.state().unwrap(), before);
}

/// Remembers what was asked of it, and fails or panics at a sample.
struct Watched {
    data: Arc<Dataset>,
    asked: Mutex<Vec<usize>>,
    batches: AtomicUsize,
    fails_at_batch: usize,
    panics: bool,
}

impl Watched {
    fn new(data: Arc<Dataset>, fails_at_batch: usize, panics: bool) -> Arc<Self> {
        Arc::new(Self { data, asked: Mutex::default(), batches: AtomicUsize::new(0), fails_at_batch, panics })
    }
}

impl BatchSource for Watched {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
        if self.batches.fetch_add(1, Ordering::SeqCst) == self.fails_at_batch {
            assert!(!self.panics, "the disk is on fire");
            candle_core::bail!("the disk is gone");
        }
        self.asked.lock().unwrap().extend(indices);
        self.data.batch(indices, device)
    }
}

#[test]
fn every_epoch_has_each_sample_once_in_an_order_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = Watched::new(data(folder.path()), usize::MAX, false);
    let trainer = trainer(expert(), 7);
    let samples = data.len();
    let steps = 3 * samples.div_ceil(10);
    Draws::new(trainer.draw_rule(), &*data, 0)
        .take_while(|draw| draw.as_ref().unwrap().step < steps as u64)
        .for_each(drop);
    let asked = data.asked.lock().unwrap();
    let epochs: Vec<&[usize]> = asked.chunks_exact(samples).take(3).collect();
    for epoch in &epochs {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..samples).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
}

#[test]
fn draws_ahead_are_bounded_and_the_thread_ends_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = Watched::new(data(folder.path()), usize::MAX, false);
    let trainer = trainer(expert(), 10);
    let mut draws = Prefetch::start(trainer.draw_rule().clone(), data.clone(), 5).unwrap();
    for taken in 1..20 {
        let draw = draws.next().unwrap().unwrap();
        assert_eq!((draw.step, draw.first), (4 + taken as u64, 0));
        let made = data.batches.load(Ordering::SeqCst);
        assert!(made <= taken + DRAWS_AHEAD_MAX + 1, "{made} draws made, {taken} taken");
    }
    assert_eq!(Arc::strong_count(&data), 2);
    drop(draws);
    assert_eq!(Arc::strong_count(&data), 1, "the thread has let go of the data");
}

#[test]
fn what_goes_wrong_ahead_is_heard_when_its_turn_comes() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    for panics in [false, true] {
        let mut trainer = trainer(expert(), 5);
        let broken = Watched::new(data.clone(), 3, panics);
        let mut draws = Prefetch::start(trainer.draw_rule().clone(), broken, 0).unwrap();
        trainer.step_from(&mut draws).unwrap();
        let before = trainer.state().unwrap();
        match trainer.step_from(&mut draws).unwrap_err() {
            TrainError::Draw(DrawError::Data(error)) if !panics => {
                assert!(error.to_string().contains("the disk is gone"))
            }
            TrainError::Draw(DrawError::Panicked(message)) if panics => assert_eq!(message, "the disk is on fire"),
            other => panic!("{other:?}"),
        }
        assert!(draws.next().is_none());
        assert_eq!(trainer.state().unwrap(), before);
    }
    let trainer = trainer(expert(), 5);
    std::fs::remove_file(folder.path().join("shard-2")).unwrap();
    let failed = Draws::new(trainer.draw_rule(), &*data, 0).find_map(Result::err).unwrap();
    assert!(failed.to_string().contains("shard-2 can't be read any more"), "{failed}");
}
