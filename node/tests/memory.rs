//! Steps that were cut to fit do fit. A program of its own, since its allocator counts everything that is taken in it.

use std::alloc::System;

use candle_core::{DType, Device, Tensor};
use paris_model::{
    batch::{Batch, BatchSource, Text},
    config::{ExpertConfig, PartConfig},
    footprint::{Footprint, Peak},
    objective::Objective,
    prefetch::Prefetch,
    trainer::{TrainSettings, Trainer},
};
use paris_node::memory::{Counting, is_counted, peak_during};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const TOKENS: usize = 8;
const WIDTH: usize = 32;

/// Grey pictures of 16x16.
#[derive(Clone, Copy)]
struct Grey;

impl BatchSource for Grey {
    fn len(&self) -> usize {
        1000
    }

    fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        let count = indices.len();
        let text = Text { tokens: zeros(&[count, TOKENS, WIDTH])?, pooled: zeros(&[count, WIDTH])? };
        Ok(Batch {
            images: zeros(&[count, 3, 16, 16])?,
            spread: None,
            text,
            labels: Tensor::new(vec![0u32; count], device)?,
        })
    }
}

/// One test, so that nothing else takes memory meanwhile; on one thread, since several have their peaks together only where the machine is idle.
#[test]
fn a_step_takes_what_two_smaller_ones_promise() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(measure_and_compare);
}

fn measure_and_compare() {
    assert!(is_counted());
    let block = 1 << 20;
    let (blocks, peak) = peak_during(|| {
        drop(std::hint::black_box(vec![1u8; 3 * block]));
        std::hint::black_box(vec![1u8; block])
    });
    assert_eq!((blocks.len(), peak), (block, 3 * block as u64));

    let shape = ExpertConfig {
        channels: 3,
        size: 16,
        patch: 2,
        width: 96,
        depth: 3,
        heads: 3,
        text_tokens: TOKENS,
        text_width: WIDTH,
    };
    let settings = TrainSettings {
        batch: 64,
        learning_rate: 1e-3,
        warmup_steps: 1,
        clip: 1.0,
        ema_decay: 0.9,
        caption_drop: 0.1,
        objective: Objective::Velocity,
    };
    let null = Grey.batch(&[0], &Device::Cpu).unwrap().text;
    let mut trainer = Trainer::new(PartConfig::Expert(shape), settings, &[0; 32], &null, &Device::Cpu).unwrap();
    let peak = |trainer: &Trainer, samples| Peak {
        samples,
        bytes: peak_during(|| trainer.rehearse(&Grey, samples).unwrap()).1,
    };
    // What threads make once for good, a matrix product's buffers above all, belongs to no step.
    trainer.rehearse(&Grey, 8).unwrap();
    let footprint = Footprint::from_peaks(peak(&trainer, 4), peak(&trainer, 8));
    println!("{footprint:?}");
    for samples in [16, 32] {
        let (promised, measured) = (footprint.bytes(samples), peak(&trainer, samples).bytes);
        println!("{samples} samples: {promised} promised, {measured} measured");
        assert!(measured <= promised + promised / 20, "{samples} samples take {measured} bytes, not {promised}");
        assert!(promised <= 2 * measured, "{samples} samples take {measured} bytes only, not {promised}");
    }
    // What a thread has in hand at a time is the same in both, so that only more samples than those tell them apart.
    let kept = Footprint::from_peaks(peak(&trainer, 16), peak(&trainer, 32));
    trainer.set_recompute(true);
    let recomputed = Footprint::from_peaks(peak(&trainer, 16), peak(&trainer, 32));
    println!("{kept:?}, recomputed {recomputed:?}");
    assert!(2 * recomputed.sample_bytes < kept.sample_bytes, "{kept:?}, recomputed {recomputed:?}");
    trainer.set_recompute(false);
    let budget = footprint.bytes(32) / 3;
    let samples = footprint.micro_batch(32, budget).unwrap();
    assert!((2..32).contains(&samples), "{samples}");
    trainer.set_micro_batch(samples);
    let draw = trainer.draw_rule().clone();
    let (_, taken) = peak_during(|| {
        let mut draws = Prefetch::start(draw, std::sync::Arc::new(Grey), 0).unwrap();
        for _ in 0..2 {
            trainer.step_from(&mut draws).unwrap();
        }
    });
    println!("micro-batches of {samples}: {taken} bytes in a budget of {budget}");
    assert!(taken <= budget + budget / 20, "{taken} bytes in a budget of {budget}");
}
