//! The identities that mixed sampling must keep, on fields whose answer is known.

use candle_core::{Device, Result, Tensor};
use paris_model::{
    batch::Text,
    objective::EpsilonField,
    sampler::{
        Calibration, Field, Guidance, Mixture, Posterior, Reroute, Routing, SampleSettings, Shelf, ShelfUse, Solver,
        Trace, sample,
    },
};

/// The flow of a Gaussian N(mean, deviation^2) in every number: x_t = (1 - t) x_0 + t eps has a velocity in closed form.
#[derive(Clone, Copy)]
struct Gaussian {
    mean: f64,
    deviation: f64,
}

impl Gaussian {
    /// E[eps - x_0 | x_t = x], x_0 ~ N(mean, deviation^2).
    fn velocity(self, x: f64, t: f64) -> f64 {
        let variance = ((1.0 - t) * self.deviation).powi(2) + t * t;
        let from_centre = (x - (1.0 - t) * self.mean) / variance;
        t * from_centre - (self.mean + (1.0 - t) * self.deviation.powi(2) * from_centre)
    }

    /// The logarithm of x_t's density, up to a constant.
    fn log_density(self, x: f64, t: f64) -> f64 {
        let variance = ((1.0 - t) * self.deviation).powi(2) + t * t;
        -0.5 * (x - (1.0 - t) * self.mean).powi(2) / variance - 0.5 * variance.ln()
    }
}

/// Applies a function of (x, t in 0..1) to every number of a batch.
fn pointwise(x: &Tensor, t: &Tensor, f: impl Fn(f64, f64) -> f64) -> Result<Tensor> {
    let times = t.to_vec1::<f32>()?;
    let mut out = Vec::new();
    for (row, t) in x.flatten_from(1)?.to_vec2::<f32>()?.iter().zip(times) {
        out.extend(row.iter().map(|x| f(f64::from(*x), f64::from(t) / 1000.0) as f32));
    }
    Tensor::from_vec(out, x.shape(), x.device())
}

impl Field for Gaussian {
    /// The caption's first number moves the mean, so that guidance has an effect.
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        let shifts = text.flatten_from(1)?.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = Vec::new();
        for (row, shift) in shifts.into_iter().enumerate() {
            let moved = Gaussian { mean: self.mean + f64::from(shift), ..*self };
            rows.push(pointwise(&x.narrow(0, row, 1)?, &t.narrow(0, row, 1)?, |x, t| moved.velocity(x, t))?);
        }
        Tensor::cat(&rows, 0)
    }
}

/// p(cluster | x_t) of Gaussians of equal weight; pictures are one number.
struct Exact(Vec<Gaussian>);

impl Posterior for Exact {
    fn logits(&self, x: &Tensor, t: &Tensor, _caption: &Tensor) -> Result<Tensor> {
        let columns = self.0.iter().map(|it| pointwise(x, t, |x, t| it.log_density(x, t))?.reshape(((), 1)));
        Tensor::cat(&columns.collect::<Result<Vec<_>>>()?, 1)
    }
}

const CLUSTERS: [Gaussian; 3] = [
    Gaussian { mean: -2.0, deviation: 0.3 },
    Gaussian { mean: 0.5, deviation: 0.5 },
    Gaussian { mean: 3.0, deviation: 0.2 },
];

fn mixture(experts: &[Option<Gaussian>], router: bool) -> Mixture {
    let field = |expert: &Option<Gaussian>| expert.map(|it| Box::new(it) as Box<dyn Field>);
    let posterior = Exact(CLUSTERS.to_vec());
    Mixture {
        shape: (1, 1, 1),
        experts: experts.iter().map(field).collect(),
        router: router.then(|| Box::new(posterior) as Box<dyn Posterior>),
        calibration: None,
    }
}

/// Captions whose only token is a shift.
fn captions(shifts: &[f32]) -> Text {
    let tokens = Tensor::from_slice(shifts, (shifts.len(), 1, 1), &Device::Cpu).unwrap();
    Text { pooled: tokens.squeeze(1).unwrap(), tokens }
}

fn settings(routing: Routing, guidance: f64) -> SampleSettings {
    let guidance = Guidance::of(guidance);
    SampleSettings { steps: 12, solver: Solver::Euler, guidance, routing, reroute: Reroute::EveryStep, seed: 5 }
}

fn draw(mixture: &Mixture, text: &Text, settings: SampleSettings) -> Vec<f32> {
    let drawn = sample(mixture, text, &captions(&[0.0]), &settings, &mut |_| {}).unwrap();
    drawn.flatten_all().unwrap().to_vec1().unwrap()
}

const ROUTINGS: [Routing; 4] = [Routing::Top(1), Routing::Top(2), Routing::Top(3), Routing::Full];

#[test]
fn the_mixture_of_exact_fields_is_the_field_of_the_mixture() {
    // The velocity of the whole data by its definition: the posterior mean over a fine grid of x_0, not over clusters.
    let whole = |x: f64, t: f64| {
        let (mut weight, mut sum) = (0.0, 0.0);
        for index in 0..80_000 {
            let x0 = -6.0 + index as f64 * 12.0 / 80_000.0;
            let density = CLUSTERS
                .iter()
                .map(|it| (-0.5 * ((x0 - it.mean) / it.deviation).powi(2)).exp() / it.deviation)
                .sum::<f64>();
            let eps = (x - (1.0 - t) * x0) / t;
            let joint = density * (-0.5 * eps * eps).exp();
            weight += joint;
            sum += joint * (eps - x0);
        }
        sum / weight
    };
    let mixture = mixture(&CLUSTERS.map(Some), true);
    let points = [-2.5f32, -0.4, 0.1, 1.7, 2.9];
    let x = Tensor::from_slice(&points, (points.len(), 1, 1, 1), &Device::Cpu).unwrap();
    let text = captions(&[0.0; 5]);
    for t in [0.2, 0.5, 0.9] {
        let weights = mixture.weights(&x, t, &text, &Routing::Full).unwrap();
        let mixed = mixture.velocity(&x, t, &text, &captions(&[0.0]), Guidance::NONE, &weights).unwrap();
        for (point, mixed) in points.iter().zip(mixed.flatten_all().unwrap().to_vec1::<f32>().unwrap()) {
            let expected = whole(f64::from(*point), t);
            assert!((f64::from(mixed) - expected).abs() < 1e-5, "at {point}, {t}: {mixed}, not {expected}");
        }
    }
}

#[test]
fn samples_of_exact_fields_come_from_their_clusters() {
    let mixture = mixture(&CLUSTERS.map(Some), true);
    let settings = SampleSettings { steps: 200, ..settings(Routing::Full, 1.0) };
    let drawn = draw(&mixture, &captions(&[0.0; 300]), settings);
    for cluster in CLUSTERS {
        let near = drawn.iter().filter(|x| (f64::from(**x) - cluster.mean).abs() < 3.0 * cluster.deviation).count();
        // A third of 300 each; five standard deviations are 41.
        assert!((59..=141).contains(&near), "{near} samples near {}", cluster.mean);
    }
}

#[test]
fn equal_experts_draw_alike_under_any_routing() {
    let one = Gaussian { mean: 1.0, deviation: 0.5 };
    let text = captions(&[0.0, 0.5, -0.5]);
    let alone = draw(&mixture(&[Some(one)], false), &text, settings(Routing::Full, 3.0));
    for routing in ROUTINGS {
        let together = draw(&mixture(&[Some(one); 3], true), &text, settings(routing.clone(), 3.0));
        for (together, alone) in together.iter().zip(&alone) {
            assert!((together - alone).abs() < 1e-5, "{routing:?}: {together}, alone {alone}");
        }
    }
}

#[test]
fn guidance_before_mixing_is_guidance_after_mixing() {
    let mixture = mixture(&CLUSTERS.map(Some), true);
    let x = Tensor::from_slice(&[0.3f32, -1.0], (2, 1, 1, 1), &Device::Cpu).unwrap();
    let (text, null) = (captions(&[0.4, -0.2]), captions(&[0.0]));
    for routing in ROUTINGS {
        let weights = mixture.weights(&x, 0.6, &text, &routing).unwrap();
        let velocity = |text: &Text, guidance: f64| {
            let velocity = mixture.velocity(&x, 0.6, text, &null, Guidance::of(guidance), &weights).unwrap();
            velocity.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (guided, with, without) = (velocity(&text, 3.0), velocity(&text, 1.0), velocity(&captions(&[0.0; 2]), 1.0));
        for index in 0..2 {
            let after = without[index] + 3.0 * (with[index] - without[index]);
            assert!((guided[index] - after).abs() < 1e-5, "{routing:?}: {} and {after}", guided[index]);
        }
    }
}

#[test]
fn a_picture_depends_on_its_own_caption_only() {
    let mixture = mixture(&CLUSTERS.map(Some), true);
    let together = draw(&mixture, &captions(&[0.1, 0.2]), settings(Routing::Top(2), 2.0));
    let changed = draw(&mixture, &captions(&[0.1, -0.7]), settings(Routing::Top(2), 2.0));
    assert_eq!(together[0], changed[0]);
    assert_ne!(together[1], changed[1]);
    assert_eq!(together, draw(&mixture, &captions(&[0.1, 0.2]), settings(Routing::Top(2), 2.0)), "not reproducible");
}

#[test]
fn missing_experts_take_no_part() {
    let [first, _, last] = CLUSTERS;
    let text = captions(&[0.0; 4]);
    let without_middle = mixture(&[Some(first), None, Some(last)], true);
    let x = Tensor::from_slice(&[0.5f32], (1, 1, 1, 1), &Device::Cpu).unwrap();
    let weights = without_middle.weights(&x, 0.1, &captions(&[0.0]), &Routing::Full).unwrap();
    assert_eq!(weights[0][1], 0.0);
    assert!((weights[0].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    let alone = draw(&mixture(&[Some(first)], false), &text, settings(Routing::Full, 1.0));
    let only_first = draw(&mixture(&[Some(first), None, None], true), &text, settings(Routing::Full, 1.0));
    assert_eq!(alone, only_first);
    let none = sample(&mixture(&[None], true), &text, &captions(&[0.0]), &settings(Routing::Full, 1.0), &mut |_| {});
    assert!(none.unwrap_err().to_string().contains("no expert"));
}

#[test]
fn without_a_router_all_experts_that_are_there_count_alike() {
    let x = Tensor::zeros((2, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    let [first, _, last] = CLUSTERS.map(Some);
    let routerless = mixture(&[first, None, last], false);
    for routing in ROUTINGS {
        let weights = routerless.weights(&x, 0.5, &captions(&[0.0; 2]), &routing).unwrap();
        assert_eq!(weights, [[0.5, 0.0, 0.5]; 2], "{routing:?}");
    }
}

#[test]
fn halving_the_step_halves_eulers_error_and_quarters_heuns() {
    // The flow of a Gaussian takes the noise x_1 to mean + deviation x_1.
    let one = Gaussian { mean: 1.0, deviation: 0.5 };
    let (mixture, text) = (mixture(&[Some(one)], false), captions(&[0.0; 20]));
    let drawn = |solver, steps| draw(&mixture, &text, SampleSettings { steps, solver, ..settings(Routing::Full, 1.0) });
    let still = Mixture { experts: vec![Some(Box::new(Still))], ..self::mixture(&[], false) };
    let noise = draw(&still, &text, settings(Routing::Full, 1.0));
    let error = |solver, steps| {
        let off =
            |(found, noise): (&f32, &f32)| (f64::from(*found) - one.mean - one.deviation * f64::from(*noise)).abs();
        drawn(solver, steps).iter().zip(&noise).map(off).fold(0.0, f64::max)
    };
    let ratio = |solver| error(solver, 16) / error(solver, 32);
    let (euler, heun) = (ratio(Solver::Euler), ratio(Solver::Heun));
    assert!((1.8..2.2).contains(&euler) && (3.6..4.6).contains(&heun), "Euler {euler}, Heun {heun}");
    assert!(error(Solver::Heun, 16) < 0.1 * error(Solver::Euler, 16));
}

/// A field that goes nowhere: what is drawn is the noise.
struct Still;

impl Field for Still {
    fn velocity(&self, x: &Tensor, _t: &Tensor, _text: &Tensor) -> Result<Tensor> {
        x.zeros_like()
    }
}

/// The clusters' experts on a shelf, of a size of 10 bytes each.
fn on_shelf(budget_bytes: u64) -> (Mixture, std::rc::Rc<Shelf>) {
    let load = |cluster: usize| Ok(Box::new(CLUSTERS[cluster]) as Box<dyn Field>);
    let shelf = Shelf::new(vec![Some(10); 3], budget_bytes, load);
    (Mixture { experts: shelf.experts(), ..mixture(&[], true) }, shelf)
}

#[test]
fn pictures_do_not_depend_on_how_many_experts_fit_into_memory() {
    let text = captions(&[0.0, 0.3, -0.3, 0.1]);
    for routing in ROUTINGS {
        let expected = draw(&mixture(&CLUSTERS.map(Some), true), &text, settings(routing.clone(), 2.0));
        for budget in [0, 10, 25, 30, u64::MAX] {
            let (mixture, _) = on_shelf(budget);
            assert_eq!(draw(&mixture, &text, settings(routing.clone(), 2.0)), expected, "{routing:?}, {budget} bytes");
        }
    }
}

#[test]
fn experts_are_read_when_first_used_and_make_room_for_each_other() {
    let text = captions(&[0.0; 2]);
    let used = |budget, routing| {
        let (mixture, shelf) = on_shelf(budget);
        draw(&mixture, &text, settings(routing, 1.0));
        shelf.used()
    };
    let steps = 12;
    assert_eq!(used(30, Routing::Full), ShelfUse { loads: 3, evictions: 0, most_bytes: 30 });
    // Those at hand are asked first: each step after the first reads one expert, not all three.
    let read = 3 + (steps - 1);
    assert_eq!(used(29, Routing::Full), ShelfUse { loads: read, evictions: read - 2, most_bytes: 20 });
    // One is held even where none fits.
    let read = 3 + 2 * (steps - 1);
    assert_eq!(used(0, Routing::Full), ShelfUse { loads: read, evictions: read - 1, most_bytes: 10 });
    assert_eq!(used(10, Routing::Oracle(vec![2, 2])), ShelfUse { loads: 1, evictions: 0, most_bytes: 10 });
}

#[test]
fn an_expert_that_cannot_be_read_stops_the_drawing_with_its_reason() {
    let load = |cluster: usize| candle_core::bail!("expert {cluster} is torn");
    let shelf = Shelf::new(vec![Some(1); 3], 3, load);
    let mixture = Mixture { experts: shelf.experts(), ..mixture(&[], true) };
    let text = captions(&[0.0]);
    let drawn = sample(&mixture, &text, &text, &settings(Routing::Oracle(vec![1]), 1.0), &mut |_| {});
    assert!(drawn.unwrap_err().to_string().contains("expert 1 is torn"));
}

#[test]
fn a_calibrated_router_is_believed_less() {
    let x = Tensor::from_slice(&[1.5f32], (1, 1, 1, 1), &Device::Cpu).unwrap();
    let strongest = |calibration| {
        let mixture = Mixture { calibration, ..mixture(&CLUSTERS.map(Some), true) };
        let weights = mixture.weights(&x, 0.4, &captions(&[0.0]), &Routing::Full).unwrap();
        weights[0].iter().copied().fold(0.0, f32::max)
    };
    let calibrated = |temperatures: [f32; 2]| strongest(Some(Calibration::new(temperatures.to_vec()).unwrap()));
    assert_eq!(calibrated([1.0, 9.0]), strongest(None), "0.4 lies in the first bin");
    assert!(calibrated([4.0, 1.0]) < strongest(None) - 0.1);
}

#[test]
fn a_trace_tells_every_steps_weights() {
    let (mixture, text) = (mixture(&CLUSTERS.map(Some), true), captions(&[0.0, 0.2]));
    let mut trace = Trace::default();
    for solver in [Solver::Euler, Solver::Heun] {
        let settings = SampleSettings { steps: 5, solver, ..settings(Routing::Top(2), 2.0) };
        trace = Trace::default();
        sample(&mixture, &text, &captions(&[0.0]), &settings, &mut |step| trace.add(step)).unwrap();
        let json = serde_json::to_value(&trace).unwrap();
        let steps = json["steps"].as_array().unwrap();
        let times: Vec<f64> = steps.iter().map(|step| step["t"].as_f64().unwrap()).collect();
        assert!(times.iter().zip([1.0, 0.8, 0.6, 0.4, 0.2]).all(|(found, t)| (found - t).abs() < 1e-9), "{times:?}");
        for weights in steps.iter().flat_map(|step| step["weights"].as_array().unwrap()) {
            let weights: Vec<f64> = weights.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
            assert!(weights.len() == 3 && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{weights:?}");
        }
    }
    let svg = trace.svg(&["a <red> heart", "a & b"]);
    assert!(svg.contains("0: a &lt;red> heart") && svg.contains("1: a &amp; b") && svg.contains("expert 2"), "{svg}");
}

/// The same Gaussian as an expert that predicts the noise of the cosine schedule.
struct NoiseOf(Gaussian);

impl Field for NoiseOf {
    fn velocity(&self, x: &Tensor, t: &Tensor, _text: &Tensor) -> Result<Tensor> {
        pointwise(x, t, |x, s| {
            let angle = |s: f64| ((s + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos();
            let alpha = angle(s) / angle(0.0);
            let sigma = (1.0 - alpha * alpha).sqrt();
            // E[eps | x], x = alpha x_0 + sigma eps.
            let Gaussian { mean, deviation } = self.0;
            sigma * (x - alpha * mean) / ((alpha * deviation).powi(2) + sigma * sigma)
        })
    }
}

#[test]
fn an_expert_that_predicts_noise_draws_what_one_that_predicts_velocity_draws() {
    let one = Gaussian { mean: 1.5, deviation: 0.5 };
    let text = captions(&[0.0; 30]);
    let points = [-1.0f32, 0.2, 1.4, 3.0];
    let x = Tensor::from_slice(&points, (4, 1, 1, 1), &Device::Cpu).unwrap();
    let converted = EpsilonField(NoiseOf(one));
    for t in [0.02, 0.3, 0.6, 0.9, 0.98] {
        let time = Tensor::full((1000.0 * t) as f32, 4, &Device::Cpu).unwrap();
        let found = converted.velocity(&x, &time, &captions(&[0.0; 4]).tokens).unwrap();
        for (point, found) in points.iter().zip(found.flatten_all().unwrap().to_vec1::<f32>().unwrap()) {
            let expected = one.velocity(f64::from(*point), t);
            assert!((f64::from(found) - expected).abs() < 2e-4, "at {point}, {t}: {found}, not {expected}");
        }
    }
    // Alone, and in a mixture beside experts that predict velocities.
    let [first, _, last] = CLUSTERS.map(|it| Some(Box::new(it) as Box<dyn Field>));
    let noise = |it: Gaussian| Some(Box::new(EpsilonField(NoiseOf(it))) as Box<dyn Field>);
    let alone = Mixture { experts: vec![noise(one)], ..mixture(&[], false) };
    let mixed = Mixture { experts: vec![first, noise(CLUSTERS[1]), last], ..mixture(&[], true) };
    let settings = || SampleSettings { steps: 30, ..settings(Routing::Full, 1.0) };
    for (found, expected) in [(alone, mixture(&[Some(one)], false)), (mixed, mixture(&CLUSTERS.map(Some), true))] {
        let (found, expected) = (draw(&found, &text, settings()), draw(&expected, &text, settings()));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-2, "{worst}");
    }
}
