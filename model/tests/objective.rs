//! An expert that predicts the noise learns what it should, and draws what one that predicts the velocity draws.

use candle_core::{D, Device, Result, Tensor};
use paris_model::{
    batch::{Batch, BatchSource, Text},
    checkpoint,
    config::{ExpertConfig, PartConfig, RouterConfig},
    draw::Draws,
    expert::Expert,
    objective::Objective,
    parameters::{FROZEN, Parameters},
    random::Stream,
    sampler::{Guidance, Mixture, Reroute, Routing, SampleSettings, Solver, sample},
    trainer::{TrainSettings, Trainer},
};

const KEY: [u8; 32] = [3; 32];
const MEAN: f64 = 3.0;
/// Wide: the 20 that x_0 is held within lie near, so that the rarest noise, of which an expert this small knows little, does not decide the variance.
const DEVIATION: f64 = 5.0;

/// Samples whose every number is drawn from N(MEAN, DEVIATION^2), without a caption.
struct Gaussian {
    channels: usize,
    size: usize,
}

impl BatchSource for Gaussian {
    fn len(&self) -> usize {
        1 << 16
    }

    fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        let (count, numbers) = (indices.len(), self.channels * self.size * self.size);
        let normals = indices.iter().flat_map(|index| Stream::new(&KEY, "sample", *index as u64).normals(numbers));
        let images = Tensor::from_iter(normals.map(|it| (MEAN + DEVIATION * f64::from(it)) as f32), device)?;
        Ok(Batch {
            images: images.reshape((count, self.channels, self.size, self.size))?,
            spread: None,
            text: no_text(count)?,
            labels: Tensor::zeros(count, candle_core::DType::U32, device)?,
        })
    }
}

fn no_text(count: usize) -> Result<Text> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    Ok(Text { tokens: zeros(&[count, 1, 4])?, pooled: zeros(&[count, 4])? })
}

fn expert(channels: usize, size: usize) -> ExpertConfig {
    ExpertConfig { channels, size, patch: 1, width: 32, depth: 1, heads: 2, text_tokens: 1, text_width: 4 }
}

fn settings(objective: Objective) -> TrainSettings {
    TrainSettings {
        batch: 128,
        learning_rate: 6e-3,
        warmup_steps: 20,
        clip: 1.0,
        ema_decay: 0.99,
        caption_drop: 0.0,
        objective,
    }
}

/// The share of the picture and the time, found on the cosine schedule by halving: where alpha / sigma is (1 - t) / t, or alpha 0.01.
fn point_of(t: f64) -> (f64, f64) {
    let angle = |s: f64| ((s + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos();
    let alpha_of = |s: f64| angle(s) / angle(0.0);
    let is_before = |s: f64| {
        let alpha = alpha_of(s);
        alpha > 0.01 && alpha * t > (1.0 - alpha * alpha).sqrt() * (1.0 - t)
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if is_before(middle) { low = middle } else { high = middle }
    }
    (alpha_of(low), 1000.0 * low)
}

#[test]
fn the_loss_and_its_gradient_are_those_of_the_noise_on_the_cosine_schedule() {
    let (config, data) = (expert(3, 4), Gaussian { channels: 3, size: 4 });
    let part = PartConfig::Expert(config.clone());
    // Weights that answer something from the start.
    let mut stream = Stream::seeded(4, "weights");
    let mut random = |shape: &[usize]| (stream.normal_tensor(shape.to_vec(), &Device::Cpu).unwrap() * 0.2).unwrap();
    let tensors = part.shapes().iter().map(|(name, shape)| (name.clone(), random(shape))).collect();
    let weights = checkpoint::write(&tensors).unwrap();
    let settings = settings(Objective::Epsilon);
    let null = no_text(1).unwrap();
    let mut trainer = Trainer::from_base(part.clone(), settings, &KEY, &null, &weights, &Device::Cpu).unwrap();

    let draw = Draws::new(trainer.draw_rule(), &data, 0).next().unwrap().unwrap();
    let points: Vec<_> = draw.times.iter().map(|t| point_of(f64::from(*t))).collect();
    let of_each = |number: &dyn Fn(&(f64, f64)) -> f64| {
        Tensor::from_iter(points.iter().map(|point| number(point) as f32), &Device::Cpu).unwrap()
    };
    let shares = |number: &dyn Fn(&(f64, f64)) -> f64| of_each(number).reshape(((), 1, 1, 1)).unwrap();
    let picture = draw.batch.images.broadcast_mul(&shares(&|it| it.0)).unwrap();
    let noise = draw.noise.broadcast_mul(&shares(&|it| (1.0 - it.0 * it.0).sqrt())).unwrap();
    let (parameters, variables) = Parameters::load(&part, &weights, &Device::Cpu).unwrap().into_variables().unwrap();
    let predicted = Expert::new(&config, &parameters).unwrap();
    let predicted = predicted.forward(&(picture + noise).unwrap(), &of_each(&|it| it.1), &draw.batch.text.tokens);
    let losses = (predicted.unwrap() - &draw.noise).unwrap().sqr().unwrap().flatten_from(1).unwrap();
    let losses = losses.mean(D::Minus1).unwrap();
    let loss = losses.mean_all().unwrap();
    let gradients = loss.backward().unwrap();
    let squares = variables.iter().filter(|(name, _)| *name != FROZEN).map(|(_, variable)| {
        let gradient = gradients.get(variable).unwrap();
        f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
    });
    let norm = squares.sum::<f64>().sqrt();

    let report = trainer.step(&data).unwrap();
    let loss = f64::from(loss.to_scalar::<f32>().unwrap());
    println!("loss {} and {loss}, gradient {} and {norm}", report.loss, report.gradient_norm);
    assert!((f64::from(report.loss) / loss - 1.0).abs() < 1e-4);
    assert!((f64::from(report.gradient_norm) / norm - 1.0).abs() < 1e-3);
    // Each loss is counted at its time on the straight path.
    let mut bins = [(0.0, 0); 10];
    for (t, loss) in draw.times.iter().zip(losses.to_vec1::<f32>().unwrap()) {
        let bin = &mut bins[(t * 10.0) as usize];
        *bin = (bin.0 + loss, bin.1 + 1);
    }
    for (found, (sum, count)) in report.loss_by_time.means().into_iter().zip(bins) {
        let found = found.unwrap();
        assert!((found * count as f32 / sum - 1.0).abs() < 1e-3, "{found}, not {sum} of {count}");
    }
}

#[test]
fn a_router_learns_the_same_beside_whatever_experts() {
    let router = RouterConfig {
        channels: 1,
        size: 2,
        patch: 1,
        width: 16,
        depth: 1,
        heads: 2,
        clusters: 2,
        caption_width: None,
    };
    let weights = |objective| {
        let (config, null) = (PartConfig::Router(router.clone()), no_text(1).unwrap());
        let mut trainer = Trainer::new(config, settings(objective), &KEY, &null, &Device::Cpu).unwrap();
        trainer.step(&Gaussian { channels: 1, size: 2 }).unwrap();
        trainer.weights().unwrap()
    };
    assert_eq!(weights(Objective::Velocity), weights(Objective::Epsilon));
}

const PICTURES: usize = 512;

/// Pictures of one number, drawn by an expert that learnt its objective for some steps, the last ones at a tenth of the rate.
fn drawn(objective: Objective) -> Vec<f64> {
    let (config, data, null) = (expert(1, 1), Gaussian { channels: 1, size: 1 }, no_text(1).unwrap());
    let part = PartConfig::Expert(config.clone());
    let fast = settings(objective);
    let slow = TrainSettings { learning_rate: fast.learning_rate / 10.0, ..fast };
    let mut trainer = Trainer::new(part.clone(), fast, &KEY, &null, &Device::Cpu).unwrap();
    for (settings, steps) in [(fast, 1000), (slow, 400)] {
        let state = trainer.state().unwrap();
        trainer = Trainer::resume(part.clone(), settings, &KEY, &null, &state, &Device::Cpu).unwrap();
        for _ in 0..steps {
            trainer.step(&data).unwrap();
        }
    }
    let parameters = Parameters::load(&part, &trainer.weights().unwrap(), &Device::Cpu).unwrap();
    let expert = objective.field(Expert::new(&config, &parameters).unwrap());
    let mixture = Mixture { shape: (1, 1, 1), experts: vec![Some(expert)], router: None, calibration: None };
    let (solver, guidance, routing) = (Solver::Euler, Guidance::NONE, Routing::Full);
    let settings = SampleSettings { steps: 50, solver, guidance, routing, reroute: Reroute::EveryStep, seed: 1 };
    let pictures = sample(&mixture, &no_text(PICTURES).unwrap(), &null, &settings, &mut |_| {}).unwrap();
    pictures.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn an_expert_trained_on_noise_draws_what_one_trained_on_velocities_draws() {
    // A thread each: steps this small gain nothing by more, and sums in one order give one result on every machine.
    let alone = |objective| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| drawn(objective))
    };
    let (velocity, noise) = std::thread::scope(|scope| {
        let other = scope.spawn(|| alone(Objective::Velocity));
        let noise = alone(Objective::Epsilon);
        (other.join().unwrap(), noise)
    });
    let moments = |numbers: &[f64]| {
        let mean = numbers.iter().sum::<f64>() / PICTURES as f64;
        (mean, (numbers.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / PICTURES as f64).sqrt())
    };
    let apart: Vec<f64> = velocity.iter().zip(&noise).map(|(a, b)| a - b).collect();
    let (of_velocity, of_noise, of_apart) = (moments(&velocity), moments(&noise), moments(&apart));
    println!("mean and deviation: velocity {of_velocity:?}, noise {of_noise:?}, between the two {of_apart:?}");
    for (mean, deviation) in [of_velocity, of_noise] {
        assert!((mean - MEAN).abs() < 0.1 * DEVIATION && (deviation / DEVIATION - 1.0).abs() < 0.15);
    }
    assert!((of_velocity.0 - of_noise.0).abs() < 0.1 * DEVIATION && (of_noise.1 / of_velocity.1 - 1.0).abs() < 0.15);
    // From the same noise come the same pictures, not only pictures of the same distribution.
    assert!(of_apart.1 < 0.25 * DEVIATION);
}
