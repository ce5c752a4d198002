//! Another trainer goes on from a published state as the owner would have.

use paris_model::{report::StepReport, trainer::Trainer};

use super::part::{Pictures, setup, successor};

/// Losses and gradients may differ by so much where other threads have summed them.
const TOLERANCE: f32 = 1e-4;

/// Takes `steps` on so many threads.
fn train(trainer: &mut Trainer, steps: usize, threads: usize) -> Vec<StepReport> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| (0..steps).map(|_| trainer.step(&Pictures::default()).unwrap()).collect())
}

fn bits(reports: &[StepReport]) -> Vec<(u64, u32, u32)> {
    reports.iter().map(|it| (it.step, it.loss.to_bits(), it.gradient_norm.to_bits())).collect()
}

#[test]
fn a_successor_has_the_owners_losses_to_the_bit() {
    let setup = setup();
    let mut owner = Trainer::new(setup.config, setup.settings, &setup.key, &setup.null_text, &setup.device).unwrap();
    train(&mut owner, 5, 2);
    let published = owner.published().unwrap();
    let (weights, would_have) = (owner.weights().unwrap(), train(&mut owner, 12, 2));
    let mut successor = successor(&published);
    assert_eq!((&published.weights, successor.published().unwrap()), (&weights, published.clone()));
    let had = train(&mut successor, 12, 2);
    assert_eq!(bits(&had), bits(&would_have));
    assert_eq!(successor.state().unwrap(), owner.state().unwrap());
    assert_eq!(successor.weights().unwrap(), owner.weights().unwrap());
}

#[test]
fn a_successor_with_other_threads_has_them_within_rounding() {
    let setup = setup();
    let mut owner = Trainer::new(setup.config, setup.settings, &setup.key, &setup.null_text, &setup.device).unwrap();
    train(&mut owner, 5, 1);
    let published = owner.published().unwrap();
    let would_have = train(&mut owner, 12, 1);
    for threads in [2, 4] {
        let had = train(&mut successor(&published), 12, threads);
        for (had, would_have) in had.iter().zip(&would_have) {
            let close = |a: f32, b: f32| (a - b).abs() <= TOLERANCE * b.abs();
            let equal = close(had.loss, would_have.loss) && close(had.gradient_norm, would_have.gradient_norm);
            assert!(equal, "{threads} threads: {had:?}, {would_have:?}");
        }
    }
}
