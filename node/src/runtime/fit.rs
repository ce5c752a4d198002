//! Cuts a part's steps so that they fit the memory: the machine's by measuring them, a GPU's by trying them.

use paris_model::{
    batch::BatchSource,
    config::PartConfig,
    footprint::{Footprint, Peak, micro_batches},
    trainer::{TrainError, Trainer},
};

use crate::memory::{Memory, Reservation, is_counted, peak_during};

/// What a trainer holds between steps, in copies of the parameters: they themselves, their average and two moments, and the same as a snapshot under way.
const TRAINER_COPIES: u64 = 8;
/// What making a checkpoint takes beside: its tensors, and the bytes of weights and state.
const CHECKPOINT_COPIES: u64 = 8;

/// How many times the samples of the largest step measured a step may have that is not.
const EXTRAPOLATED_MAX: usize = 4;

/// A part that cannot be trained on this machine now.
#[derive(Debug, thiserror::Error)]
pub(super) enum FitError {
    /// There is too little memory.
    #[error(
        "too little memory: {} MiB are needed for parameters, optimiser and checkpoint{}, and {} MiB are left for training. The part is given \
         to another node if there is one, and tried again later if not. Close other programs, allow more (--memory), keep less of a step (--recompute), own fewer parts at once \
         (--capacity), or let a larger machine train it",
        .held >> 20,
        match .step { Some(step) => format!(" and {} MiB for a step of one sample at a time, as measured", step >> 20), None => String::new() },
        .left >> 20
    )]
    TooLittle {
        /// Bytes that the trainer holds.
        held: u64,
        /// Bytes that a step of one sample takes beside; none if it was not measured, since already the rest was too much.
        step: Option<u64>,
        /// Bytes that are left.
        left: u64,
    },
    /// There is too little memory on the GPU.
    #[error(
        "too little memory on the GPU for the part and a step of one sample at a time. The part is given to another node if there is one, and tried \
         again later if not. Close other programs that use the GPU, keep less (--recompute), own fewer parts at once (--capacity), or train on the CPU \
         (--device cpu)"
    )]
    TooLittleOnDevice,
    /// The trainer cannot be built, or take a step.
    #[error(transparent)]
    Train(TrainError),
}

impl From<TrainError> for FitError {
    fn from(error: TrainError) -> Self {
        if error.is_out_of_memory() { Self::TooLittleOnDevice } else { Self::Train(error) }
    }
}

/// Builds a part's trainer, with as large a micro-batch as fits. `before` tells whether the one that `build`'s state was trained with is kept where it
/// fits.
pub(super) fn fitted(
    memory: &Memory,
    config: &PartConfig,
    data: &dyn BatchSource,
    before: bool,
    build: impl FnOnce() -> Result<Trainer, TrainError>,
) -> Result<(Trainer, Reservation), FitError> {
    let alone = memory.alone();
    let left = alone.left_bytes();
    let held = 4 * config.parameter_count() as u64 * (TRAINER_COPIES + CHECKPOINT_COPIES);
    if held > left {
        return Err(FitError::TooLittle { held, step: None, left });
    }
    let mut trainer = build()?;
    let (batch, most) = (trainer.batch(), trainer.micro_batch_max());
    let before = before.then_some(trainer.micro_batch());
    if !trainer.device().is_cpu() {
        let tried = |samples| {
            trainer.set_micro_batch(samples);
            trainer.rehearse(data, samples)?;
            // Takes the averaged weights beside those that are trained.
            trainer.held_out_loss(data, samples).map(drop)
        };
        let samples = first_that_fits(before.into_iter().chain(micro_batches(most)), tried)?;
        tracing::info!("steps of {batch} samples, {samples} at a time on the GPU, as tried");
        return Ok((trainer, alone.reserve(held)));
    }
    trainer.set_micro_batch(most);
    if !is_counted() {
        tracing::debug!("this program does not count its memory: steps are not cut to fit");
        return Ok((trainer, alone.reserve(held)));
    }
    let measured = |samples: usize| {
        let peak = |samples: usize| {
            let (rehearsed, bytes) = peak_during(|| trainer.rehearse(data, samples));
            rehearsed.map(|()| Peak { samples, bytes })
        };
        // The larger first: what threads make once for good then counts as the samples', too much rather than too little.
        let large = peak((2 * samples).min(most))?;
        Ok::<_, TrainError>(Footprint::from_peaks(peak(samples)?, large))
    };
    // Half is left for parts that come later, unless this one needs more.
    let budgets = [left / 2, left].map(|bytes| bytes.saturating_sub(held));
    let mut footprint = measured(1)?;
    // Up to one sample a thread, every sample brings a thread's own memory. Where that may be what does not fit, it is told apart, if there is room to.
    let threads = rayon::current_num_threads();
    if footprint.bytes(most) > budgets[0] && footprint.bytes(2 * threads) <= budgets[0] && 2 * threads <= most {
        footprint = measured(threads)?;
    }
    // The cut decides the last bits, so that of the state stands before a larger one wherever it fits at all.
    let choose = |footprint: &Footprint| {
        let kept = before.filter(|before| footprint.bytes(*before) <= budgets[1]);
        kept.or_else(|| budgets.iter().find_map(|budget| footprint.micro_batch(most, *budget)))
    };
    let mut fitting = choose(&footprint);
    // Small steps have their peak elsewhere than large ones, which take more a sample: measured again nearer to what seems to fit.
    let mut largest = 2 * threads;
    while fitting.is_some_and(|samples| samples > EXTRAPOLATED_MAX * largest) {
        footprint = measured(largest)?;
        largest *= 2;
        fitting = choose(&footprint);
    }
    let Some(samples) = fitting else {
        return Err(FitError::TooLittle { held, step: Some(footprint.bytes(1)), left });
    };
    trainer.set_micro_batch(samples);
    let taken = held + footprint.bytes(samples);
    tracing::info!(
        "steps of {batch} samples, {samples} at a time: measured {} KiB and {} KiB a sample, with what is held {} MiB of the {} MiB that were left",
        footprint.fixed_bytes >> 10,
        footprint.sample_bytes >> 10,
        taken >> 20,
        left >> 20
    );
    Ok((trainer, alone.reserve(taken)))
}

/// The first of `samples` for which there is memory.
fn first_that_fits(
    samples: impl Iterator<Item = usize>,
    mut tried: impl FnMut(usize) -> Result<(), TrainError>,
) -> Result<usize, FitError> {
    for samples in samples {
        match tried(samples) {
            Ok(()) => return Ok(samples),
            Err(error) if error.is_out_of_memory() => tracing::debug!("{samples} samples at a time do not fit the GPU"),
            Err(error) => return Err(FitError::Train(error)),
        }
    }
    Err(FitError::TooLittleOnDevice)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::{DType, Device, Tensor};
    use paris_model::{
        batch::{Batch, Text},
        config::ExpertConfig,
        draw::DrawError,
        objective::Objective,
        trainer::TrainSettings,
    };

    use super::*;

    const BATCH: usize = 64;

    fn config() -> PartConfig {
        PartConfig::Expert(ExpertConfig {
            channels: 3,
            size: 16,
            patch: 2,
            width: 64,
            depth: 2,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
        })
    }

    /// One grey picture, again and again.
    struct Grey;

    impl BatchSource for Grey {
        fn len(&self) -> usize {
            1000
        }

        fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
            let count = indices.len();
            let text = Text { tokens: zeros(&[count, 4, 8])?, pooled: zeros(&[count, 8])? };
            Ok(Batch {
                images: zeros(&[count, 3, 16, 16])?,
                spread: None,
                text,
                labels: Tensor::new(vec![0u32; count], device)?,
            })
        }
    }

    fn build(micro_batch: usize) -> Result<Trainer, TrainError> {
        let settings = TrainSettings {
            batch: BATCH,
            learning_rate: 1e-3,
            warmup_steps: 1,
            clip: 1.0,
            ema_decay: 0.9,
            caption_drop: 0.1,
            objective: Objective::Velocity,
        };
        let null = Grey.batch(&[0], &Device::Cpu)?.text;
        let mut trainer = Trainer::new(config(), settings, &[0; 32], &null, &Device::Cpu)?;
        trainer.set_micro_batch(micro_batch);
        Ok(trainer)
    }

    fn held() -> u64 {
        4 * config().parameter_count() as u64 * (TRAINER_COPIES + CHECKPOINT_COPIES)
    }

    #[test]
    fn a_part_that_is_too_large_is_not_even_built() {
        let built = Cell::new(false);
        let memory = Memory::new(Some(held() - 1));
        let refused = fitted(&memory, &config(), &Grey, false, || {
            built.set(true);
            build(BATCH)
        });
        assert!(matches!(refused, Err(FitError::TooLittle { step: None, .. })));
        assert!(!built.get());
    }

    #[test]
    fn a_part_whose_smallest_step_is_too_large_is_refused_with_what_was_measured() {
        let memory = Memory::new(Some(held() + 1000));
        let Err(refused) = fitted(&memory, &config(), &Grey, false, || build(BATCH)) else { panic!("it fits nowhere") };
        let FitError::TooLittle { step: Some(step), left, .. } = refused else { panic!("{refused}") };
        assert!(step > 1000 && left == held() + 1000);
        assert!(refused.to_string().contains("--capacity"), "{refused}");
        assert_eq!(memory.alone().left_bytes(), left, "nothing stays reserved");
    }

    /// Words of a driver, in what candle makes of them.
    fn failed(words: &str) -> TrainError {
        TrainError::Candle(candle_core::Error::msg(words).bt())
    }

    #[test]
    fn on_a_gpu_fewer_samples_are_tried_until_they_fit() {
        let full = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let tries = |before: Option<usize>, room: usize| {
            let mut tried = Vec::new();
            let found = first_that_fits(before.into_iter().chain(micro_batches(24)), |samples| {
                tried.push(samples);
                if samples <= room { Ok(()) } else { Err(failed(full)) }
            });
            (found, tried)
        };
        let (found, tried) = tries(None, 9);
        assert_eq!((found.unwrap(), tried), (8, vec![24, 16, 8]));
        let (found, tried) = tries(Some(4), 9);
        assert_eq!((found.unwrap(), tried), (4, vec![4]), "what the state was trained with comes first");
        let (found, tried) = tries(Some(4), 0);
        assert!(matches!(found, Err(FitError::TooLittleOnDevice)) && tried.last() == Some(&1), "{found:?} {tried:?}");
        assert!(matches!(FitError::from(failed(full)), FitError::TooLittleOnDevice));

        let drawn = TrainError::Draw(DrawError::Data(candle_core::Error::msg(full)));
        assert!(matches!(FitError::from(drawn), FitError::TooLittleOnDevice), "of an encoder of captions");

        let other = || failed(r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access")"#);
        let found = first_that_fits(micro_batches(24), |_| Err(other()));
        assert!(matches!(found, Err(FitError::Train(_))), "{found:?}");
    }

    /// Other tests of this program take memory meanwhile, so no cut can be foretold here: see `tests/memory.rs`.
    #[test]
    fn what_a_part_takes_is_reserved_and_the_cut_of_its_state_is_kept() {
        let ample = Memory::new(Some(64 << 30));
        let (trainer, reserved) = fitted(&ample, &config(), &Grey, false, || build(4)).unwrap();
        assert_eq!(trainer.micro_batch(), trainer.micro_batch_max());
        assert!(ample.alone().left_bytes() < (64 << 30) - held());
        drop(reserved);
        assert_eq!(ample.alone().left_bytes(), 64 << 30);
        let (trainer, _reserved) = fitted(&ample, &config(), &Grey, true, || build(4)).unwrap();
        assert_eq!(trainer.micro_batch(), 4, "what the state was trained with is kept");
    }
}
