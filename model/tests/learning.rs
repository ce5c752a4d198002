//! What a run is for, end to end without the network, on the bundled pictures: experts learn their clusters, and their mixture draws.

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use paris_model::{
    batch::BatchSource,
    config::{ExpertConfig, PartConfig, RouterConfig},
    data::{Dataset, PrepareSettings, Source, Split, Splits, prepare},
    evaluation::{
        classification::Answers,
        contest::{self, ContestSettings, Prompts, Strategy},
        distances::{NamedFeatures, Reference, pictures as pictures_of},
        held_out::HeldOut,
        kernel::kernel_distance,
        losses::LossMatrix,
    },
    expert::Expert,
    features::{ColourAndEdges, ImageFeatures},
    image_codec::Pixels,
    objective::Objective,
    parameters::Parameters,
    router::Router,
    sampler::{Guidance, Mixture, Reroute, Routing, SampleSettings, Solver, sample},
    text::{HashedText, TextEncoder},
    trainer::{TrainSettings, Trainer},
};

const CLUSTERS: usize = 2;
const SIDE: usize = 16;
const TEXT: HashedText = HashedText { tokens: 8, width: 32 };
const STEPS: usize = 250;
/// One key for all, so that losses are measured on equal noise.
const KEY: [u8; 32] = [3; 32];

fn expert() -> PartConfig {
    PartConfig::Expert(ExpertConfig {
        channels: 3,
        size: SIDE,
        patch: 4,
        width: 64,
        depth: 2,
        heads: 4,
        text_tokens: TEXT.tokens,
        text_width: TEXT.width,
    })
}

fn router() -> PartConfig {
    PartConfig::Router(RouterConfig {
        channels: 3,
        size: SIDE,
        patch: 4,
        width: 48,
        depth: 1,
        heads: 4,
        clusters: CLUSTERS,
        caption_width: Some(TEXT.width),
    })
}

/// The bundled pictures, prepared in `folder`.
fn pictures(folder: &Path) -> Splits {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji32-512.tar");
    let settings = PrepareSettings { clusters: CLUSTERS, size: SIDE as u32, ..PrepareSettings::default() };
    prepare(&Source::open(&archive).unwrap(), folder, &settings, &ColourAndEdges, &Pixels, &mut |_| {}).unwrap();
    let encoder: Arc<dyn TextEncoder> = Arc::new(TEXT);
    Splits::open(folder, &encoder).unwrap()
}

fn trainer(config: PartConfig) -> Trainer {
    let settings = TrainSettings {
        batch: 32,
        learning_rate: 2e-3,
        warmup_steps: 20,
        clip: 1.0,
        ema_decay: 0.98,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    Trainer::new(config, settings, &KEY, &TEXT.encode(&[""], &Device::Cpu).unwrap(), &Device::Cpu).unwrap()
}

fn mixture(experts: &[Trainer], router: &Trainer) -> Mixture {
    let weights = |config: &PartConfig, trainer: &Trainer| {
        Parameters::load(config, &trainer.weights().unwrap(), &Device::Cpu).unwrap()
    };
    let (PartConfig::Expert(expert), PartConfig::Router(router_config)) = (self::expert(), self::router()) else {
        unreachable!("made above")
    };
    let open = |trainer| Some(Box::new(Expert::new(&expert, &weights(&self::expert(), trainer)).unwrap()) as Box<_>);
    let router = Router::new(&router_config, &weights(&self::router(), router)).unwrap();
    Mixture {
        shape: (3, SIDE, SIDE),
        experts: experts.iter().map(open).collect(),
        router: Some(Box::new(router)),
        calibration: None,
    }
}

#[test]
fn experts_learn_their_clusters_and_their_mixture_draws_pictures_like_the_held_out_ones() {
    let folder = tempfile::tempdir().unwrap();
    let Splits { clusters, all } = pictures(folder.path());
    let mut experts: Vec<Trainer> = (0..CLUSTERS).map(|_| trainer(expert())).collect();
    let mut router = trainer(router());
    let untrained = mixture(&experts, &router);
    let held_out_loss =
        |trainer: &Trainer, cluster: usize| trainer.held_out_loss(&*clusters[cluster].held_out, usize::MAX).unwrap();

    for (cluster, expert) in experts.iter_mut().enumerate() {
        let before = held_out_loss(expert, cluster);
        for _ in 0..STEPS {
            expert.step(&*clusters[cluster].train).unwrap();
        }
        let after = held_out_loss(expert, cluster);
        println!("expert {cluster}: held-out loss {before} to {after}");
        assert!(after < 0.5 * before);
    }
    for _ in 0..STEPS / 2 {
        router.step(&*all.train).unwrap();
    }
    measure(&mixture(&experts, &router), &clusters, &all);

    let indices: Vec<usize> = (0..all.held_out.len()).collect();
    let real = all.held_out.batch(&indices, &Device::Cpu).unwrap().images;
    let captions: Vec<String> = indices.iter().filter_map(|index| all.held_out.caption(*index).unwrap()).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let settings = SampleSettings {
        steps: 12,
        solver: Solver::Euler,
        guidance: Guidance::of(2.0),
        routing: Routing::Top(2),
        reroute: Reroute::EveryStep,
        seed: 1,
    };
    let distance = |mixture: &Mixture| {
        let encode = |captions: &[&str]| TEXT.encode(captions, &Device::Cpu).unwrap();
        let drawn = sample(mixture, &encode(&captions), &encode(&[""]), &settings, &mut |_| {}).unwrap();
        let features = |pictures: &Tensor| ColourAndEdges.extract(pictures).unwrap();
        kernel_distance(&features(&drawn), &features(&real)).unwrap()
    };
    let (before, after) = (distance(&untrained), distance(&mixture(&experts, &router)));
    println!("kernel distance to {} held-out pictures: untrained {before:e}, trained {after:e}", captions.len());
    assert!(after < 0.2 * before);
}

/// What the evaluation says of a trained mixture: every expert is the best on its own cluster, the router beats chance by far, more so near the picture than
/// near noise, and the true cluster's expert draws better than a random one.
fn measure(mixture: &Mixture, clusters: &[Split], all: &Split) {
    fn ask(data: &Dataset) -> HeldOut<'_> {
        HeldOut { data, samples: 64, draws: 10, seed: 1 }
    }
    let held_out: Vec<HeldOut> = clusters.iter().map(|split| ask(&split.held_out)).collect();
    let mut losses = LossMatrix::default();
    for (cluster, expert) in mixture.experts.iter().enumerate() {
        losses
            .measure(&format!("expert-{cluster}"), Some(cluster), expert.as_deref().unwrap(), &held_out, &Device::Cpu)
            .unwrap();
    }
    println!("{losses}");
    assert_eq!(losses.diagonal_wins(), CLUSTERS);
    let router = mixture.router.as_deref().unwrap();
    let said = Answers::of(router, &ask(&all.held_out), &Device::Cpu).unwrap().classification().unwrap();
    println!("{said:?}");
    let accuracy = |bin: usize| said.accuracy.bins[bin].unwrap();
    assert!(said.accuracy.mean > 0.6 && accuracy(0) >= accuracy(9), "{said:?}");
    assert!(said.calibrated.mean < said.cross_entropy.mean + 0.05, "{said:?}");

    let null = TEXT.encode(&[""], &Device::Cpu).unwrap();
    let prompts = Prompts::of(&*all.held_out, &null, 96, 0, &Device::Cpu).unwrap();
    let real = pictures_of(&*all.train, &Pixels, 1000).unwrap();
    let features = NamedFeatures { name: "ColourAndEdges", features: &ColourAndEdges };
    let reference = [Reference::of(features, &real, prompts.len()).unwrap()];
    let settings = ContestSettings { steps: 8, guidance: 1.0, seeds: vec![1] };
    let compete = |strategy| {
        let drawn = contest::compete(mixture, &Pixels, strategy, &prompts, &reference, &settings, &mut |_| {});
        let outcome = drawn.unwrap().0;
        println!("{strategy}: {outcome:?}");
        (outcome.spread("FD64-ColourAndEdges").unwrap().mean, outcome.agreement)
    };
    let ((oracle, right), (random, by_chance)) = (compete(Strategy::Oracle), compete(Strategy::Random));
    assert!(oracle < random, "{oracle} {random}");
    assert!(right.iter().all(|share| *share == 1.0) && by_chance.iter().all(|share| *share < 0.8));
}
