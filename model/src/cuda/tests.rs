//! Each operation, and one training step, on CUDA against the CPU. Without a device they print that they did nothing.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::loss::mse;

use crate::{
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig, RouterConfig},
    device::{DeviceChoice, is_out_of_memory},
    expert::Expert,
    objective::Objective,
    operations::{Linear, attend, attend_within, gated, gelu, modulate},
    optimizer::{Optimizer, Schedule},
    parameters::{FROZEN, Parameters},
    random::Stream,
    state::Source,
    trainer::{READ_EVERY, TrainError, TrainSettings, Trainer},
};

/// The first device.
fn device() -> Option<Device> {
    match DeviceChoice::Cuda(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("SKIPPED, nothing was compared: {error}");
            None
        }
    }
}

/// The largest difference that rounding explains, relative to the largest number.
fn tolerance(precision: DType) -> f32 {
    if precision == DType::BF16 { 2e-2 } else { 1e-4 }
}

/// Asserts that `found`, from any device, is `expected`, on the CPU.
fn agree(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let found = found.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let largest = |tensor: Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let (difference, scale) = (largest((&found - expected).unwrap()), largest(expected.clone()));
    assert!(difference <= tolerance * scale, "{name} differs by {difference} of {scale}");
}

/// Output and all gradients of `operation` on inputs of the given shapes, on the device in both precisions against the CPU in f32. Where
/// `modulated`, the last input is a modulation, f32 in both.
fn compare(name: &str, shapes: &[&[usize]], modulated: bool, operation: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let Some(device) = device() else { return };
    for precision in [DType::F32, DType::BF16] {
        // Numbers that bf16 holds, so that both sides read the same.
        let random = |label: String, shape: &[usize], precision: DType| {
            let numbers = Stream::seeded(1, &label).normal_tensor(shape.to_vec(), &Device::Cpu).unwrap();
            numbers.to_dtype(precision).unwrap().to_dtype(DType::F32).unwrap()
        };
        let precision_of = |index: usize| if modulated && index + 1 == shapes.len() { DType::F32 } else { precision };
        let run = |device: &Device, on_cpu: bool| {
            let variables: Vec<Var> = (0..shapes.len())
                .map(|index| {
                    let precision = precision_of(index);
                    let numbers = random(format!("input {index}"), shapes[index], precision).to_device(device).unwrap();
                    Var::from_tensor(&numbers.to_dtype(if on_cpu { DType::F32 } else { precision }).unwrap()).unwrap()
                })
                .collect();
            let inputs: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
            let out = operation(&inputs).unwrap();
            // A loss whose gradient differs everywhere.
            let weight = random("weight".to_owned(), out.dims(), precision).to_device(device).unwrap();
            let loss = (&out * weight.to_dtype(out.dtype()).unwrap()).unwrap().sum_all().unwrap();
            let store = loss.backward().unwrap();
            let gradients = variables.iter().map(|variable| store.get(variable).unwrap().clone());
            let mut tensors: Vec<Tensor> = gradients.collect();
            tensors.push(out.detach());
            tensors
        };
        let (found, expected) = (run(&device, false), run(&Device::Cpu, true));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            agree(&format!("{name} in {precision:?}, tensor {index}"), found, expected, tolerance(precision));
        }
    }
}

/// Batch, tokens and width: of one block of threads and less, of several and a rest.
const SHAPES: [[usize; 3]; 3] = [[2, 3, 8], [3, 70, 132], [2, 9, 1152]];

#[test]
fn modulating_is_the_same_on_cuda() {
    for [batch, tokens, width] in SHAPES {
        for rows in [2, 3] {
            let shapes: [&[usize]; 2] = [&[batch, tokens, width], &[batch, rows, width]];
            compare("modulate", &shapes, true, |it| modulate(&it[0], &it[1]));
        }
    }
}

#[test]
fn gating_is_the_same_on_cuda() {
    for [batch, tokens, width] in SHAPES {
        let shapes: [&[usize]; 3] = [&[batch, tokens, width], &[batch, tokens, width], &[batch, 3, width]];
        compare("gated", &shapes, true, |it| gated(&it[0], &it[1], &it[2]));
    }
}

#[test]
fn the_gelu_is_the_same_on_cuda() {
    for [batch, tokens, width] in SHAPES {
        compare("gelu", &[&[batch, tokens, width]], false, |it| gelu(&it[0]));
    }
}

#[test]
fn a_linear_layer_is_the_same_on_cuda() {
    for ([batch, tokens, width], outputs) in SHAPES.into_iter().zip([7, 33, 4608]) {
        let shapes: [&[usize]; 3] = [&[batch, tokens, width], &[outputs, width], &[outputs]];
        compare("linear", &shapes, false, |it| Linear::new(it[1].clone(), it[2].clone()).forward(&it[0]));
    }
}

/// Heads that vectors divide and that they do not, of each length that tensor cores have; tokens that no tile divides.
#[test]
fn attention_is_the_same_on_cuda() {
    const HEADS: usize = 2;
    for head in [12, 33, 64, 72, 96, 128] {
        let width = HEADS * head;
        for (tokens, context) in [(1, 77), (33, 2), (70, 33)] {
            compare("attend_within", &[&[2, tokens, 3 * width]], false, |it| attend_within(&it[0], HEADS));
            let shapes: [&[usize]; 2] = [&[2, tokens, width], &[2, context, 2 * width]];
            compare("attend", &shapes, false, |it| attend(&it[0], &it[1], HEADS));
        }
    }
}

/// A small expert.
fn config() -> ExpertConfig {
    let (text_tokens, text_width) = (5, 12);
    ExpertConfig { channels: 3, size: 8, patch: 2, width: 48, depth: 2, heads: 3, text_tokens, text_width }
}

/// One expert, its loss on one batch, and steps of its optimiser.
struct Step {
    device: Device,
    expert: Expert,
    optimizer: Optimizer,
}

impl Step {
    fn new(device: &Device, precision: DType) -> Self {
        let config = config();
        // All random and none zero, so that no term is hidden.
        let part = PartConfig::Expert(config.clone());
        let mut stream = Stream::seeded(1, "parameters");
        let mut random = |shape: &Vec<usize>| {
            (stream.normal_tensor(shape.clone(), &Device::Cpu).unwrap() * 0.1).unwrap().to_device(device).unwrap()
        };
        let tensors = part.shapes().iter().map(|(name, shape)| (name.clone(), random(shape))).collect();
        let parameters = Parameters::from_tensors(&part, &tensors).unwrap();
        let schedule = Schedule { learning_rate: 1e-3, warmup_steps: 2, clip: 1.0, ema_decay: 0.9 };
        let (optimizer, parameters) = Optimizer::new(schedule, parameters, precision).unwrap();
        Self { device: device.clone(), expert: Expert::new(&config, &parameters).unwrap(), optimizer }
    }

    /// The loss and the gradients' norm of a step.
    fn take(&mut self, step: u64, factor: f64) -> [f32; 2] {
        let mut stream = Stream::seeded(step, "batch");
        let mut random = |shape: &[usize]| stream.normal_tensor(shape.to_vec(), &self.device).unwrap();
        let (x, target, text) = (random(&[4, 3, 8, 8]), random(&[4, 3, 8, 8]), random(&[4, 5, 12]));
        let t = Tensor::new(&[10f32, 200.0, 500.0, 900.0], &self.device).unwrap();
        let loss = (mse(&self.expert.forward(&x, &t, &text).unwrap(), &target).unwrap() * factor).unwrap();
        let norm = self.optimizer.step(step, &loss, &loss.backward().unwrap()).unwrap();
        [loss.to_scalar().unwrap(), norm.to_scalar().unwrap()]
    }

    /// Weights, averages and moments by name, copied to the CPU.
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let copied = |source| match source {
            Source::Numbers(numbers) => Tensor::new(numbers, &Device::Cpu),
            Source::Tensor(tensor) => tensor.to_device(&Device::Cpu)?.copy(),
        };
        let state = self.optimizer.state().unwrap().into_iter();
        state.map(|(name, source)| (name, copied(source).unwrap())).collect()
    }
}

#[test]
fn training_steps_are_the_same_on_cuda() {
    let Some(device) = device() else { return };
    for (precision, close) in [(DType::F32, 1e-3), (DType::BF16, 5e-2)] {
        let (mut found, mut expected) = (Step::new(&device, precision), Step::new(&Device::Cpu, DType::F32));
        let before = found.tensors();
        for step in 1..=3 {
            let (found, expected) = (found.take(step, 1.0), expected.take(step, 1.0));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < close, "{precision:?}: {found}, expected {expected}");
            }
        }
        let expected = expected.tensors();
        assert!(before.keys().eq(expected.keys()), "states are named alike on both");
        for (name, found) in found.tensors() {
            // What each number did, not what it was: a state that never moved would be close as well. In the mean over all numbers, since AdamW
            // moves even those whose gradients are hardly more than rounding by a whole step.
            let moved = |to: &Tensor| (to - &before[&name]).unwrap();
            let length = |tensor: Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let (found, expected) = (moved(&found), moved(&expected[&name]));
            let (apart, whole) = (length((found - &expected).unwrap()), length(expected));
            assert!(apart < 5.0 * close * whole, "{name} in {precision:?} is {apart} of {whole} off");
        }
    }
}

#[test]
fn a_failed_step_on_cuda_changes_nothing_and_is_remembered() {
    let Some(device) = device() else { return };
    let mut step = Step::new(&device, DType::BF16);
    step.take(1, 1.0);
    let before = step.tensors();
    step.take(2, f64::NAN);
    step.take(3, 1.0);
    for (name, after) in step.tensors() {
        assert_eq!(after.to_vec1::<f32>().unwrap(), before[&name].to_vec1::<f32>().unwrap(), "{name}");
    }
    assert!(step.optimizer.failure().unwrap().is_some_and(|failure| failure.step == 2 && failure.loss.is_nan()));
    step.optimizer.forget_failure().unwrap();
    step.take(2, 1.0);
    assert!(step.optimizer.failure().unwrap().is_none());
    let moved = step
        .tensors()
        .into_iter()
        .filter(|(name, after)| after.to_vec1::<f32>().unwrap() != before[name].to_vec1::<f32>().unwrap());
    assert_eq!(moved.count(), before.len());
    assert!(!before.keys().any(|name| name.ends_with(FROZEN)));
}

/// Pictures of noise.
struct Noise;

impl BatchSource for Noise {
    fn len(&self) -> usize {
        6
    }

    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        let random = |label: &str, index: usize, shape: &[usize]| {
            Stream::seeded(index as u64, label).normal_tensor(shape.to_vec(), device)
        };
        let all = |label: &str, shape: &[usize]| {
            let each = indices.iter().map(|index| random(label, *index, shape)).collect::<Result<Vec<_>>>()?;
            Tensor::stack(&each, 0)
        };
        let labels = Tensor::new(indices.iter().map(|index| (*index % 2) as u32).collect::<Vec<_>>(), device)?;
        let text = Text { tokens: all("tokens", &[5, 12])?, pooled: all("pooled", &[12])? };
        Ok(Batch { images: all("picture", &[3, 8, 8])?, spread: None, text, labels })
    }
}

/// A small expert and a small router.
fn parts() -> [PartConfig; 2] {
    let (width, depth, heads, caption_width) = (48, 1, 3, Some(12));
    let router = RouterConfig { channels: 3, size: 8, patch: 2, width, depth, heads, clusters: 2, caption_width };
    [PartConfig::Expert(config()), PartConfig::Router(router)]
}

const SETTINGS: TrainSettings = TrainSettings {
    batch: 2,
    learning_rate: 1e-3,
    warmup_steps: 2,
    clip: 1.0,
    ema_decay: 0.9,
    caption_drop: 0.5,
    objective: Objective::Velocity,
};

/// A part at its beginning.
fn trainer(part: &PartConfig, device: &Device) -> Trainer {
    let null = Noise.batch(&[0], &Device::Cpu).unwrap().text;
    Trainer::new(part.clone(), SETTINGS, &[7; 32], &null, device).unwrap()
}

#[test]
fn recomputing_on_cuda_gives_the_same_bits() {
    let Some(device) = device() else { return };
    for part in parts() {
        let trained = |recompute| {
            let mut trainer = trainer(&part, &device);
            trainer.set_recompute(recompute);
            // Two micro-batches a step.
            trainer.set_micro_batch(1);
            for _ in 0..2 {
                trainer.step(&Noise).unwrap();
            }
            trainer.state().unwrap()
        };
        assert!(trained(true) == trained(false));
    }
}

/// Pictures of noise, of which one step's are none.
struct Spoilt {
    step: u64,
    steps: std::sync::atomic::AtomicU64,
}

impl BatchSource for Spoilt {
    fn len(&self) -> usize {
        Noise.len()
    }

    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        let mut batch = Noise.batch(indices, device)?;
        if self.steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == self.step {
            batch.images = (batch.images * f64::NAN)?;
        }
        Ok(batch)
    }
}

#[test]
fn a_step_that_failed_unseen_on_cuda_is_found_when_asked_for() {
    let Some(device) = device() else { return };
    let mut trainer = trainer(&PartConfig::Expert(config()), &device);
    let data = Spoilt { step: 3, steps: Default::default() };
    trainer.step(&data).unwrap();
    trainer.check().unwrap();
    trainer.step(&data).unwrap();
    let good = trainer.state().unwrap();
    for _ in 0..2 {
        trainer.step(&data).unwrap();
    }
    assert!(matches!(trainer.check(), Err(TrainError::NotFinite { step: 3, .. })));
    assert!(trainer.step_count() == 2 && trainer.state().unwrap() == good, "the trainer is as it was before");
    trainer.check().unwrap();
}

#[test]
fn too_little_memory_on_cuda_is_known_as_that() {
    let Some(device) = device() else { return };
    let error = Tensor::zeros(1 << 44, DType::F32, &device).unwrap_err();
    assert!(is_out_of_memory(&error), "{error}");
}

#[test]
fn a_part_moves_from_cuda_to_the_cpu_and_back() {
    let Some(device) = device() else { return };
    for part in parts() {
        moves(&part, &device);
    }
}

fn moves(part: &PartConfig, device: &Device) {
    let mut trainer = trainer(part, device);
    let losses: Vec<f32> = (1..=READ_EVERY).map(|_| trainer.step(&Noise).unwrap().loss).collect();
    let unread = &losses[..losses.len() - 1];
    assert!(unread.iter().all(|loss| *loss == losses[0]) && losses.last() != losses.first(), "{losses:?}");
    let report = trainer.step(&Noise).unwrap();
    assert!(report.step == READ_EVERY + 1 && report.loss.is_finite() && report.gradient_norm > 0.0, "{report:?}");

    let (state, weights) = (trainer.state().unwrap(), trainer.weights().unwrap());
    let null = Noise.batch(&[0], &Device::Cpu).unwrap().text;
    let resume = |device: &Device, state: &[u8]| {
        Trainer::resume(part.clone(), SETTINGS, &[7; 32], &null, state, device).unwrap()
    };
    let mut on_cpu = resume(&Device::Cpu, &state);
    assert!(on_cpu.state().unwrap() == state && on_cpu.weights().unwrap() == weights, "the CPU reads another state");
    let (here, there) = (trainer.held_out_loss(&Noise, 6).unwrap(), on_cpu.held_out_loss(&Noise, 6).unwrap());
    assert!((here / there - 1.0).abs() < 2e-2, "held-out loss {here} on CUDA, {there} on the CPU");
    on_cpu.step(&Noise).unwrap();
    let state = on_cpu.state().unwrap();
    assert!(resume(device, &state).state().unwrap() == state, "CUDA reads another state");
}
