//! How well a router tells clusters apart at each time, and the temperatures at which its confidence is right.

use candle_core::{Device, Result};
use serde::{Deserialize, Serialize};

use super::{
    greatest,
    held_out::{ByTime, HeldOut},
    table::Table,
};
use crate::{
    report::{LossByTime, TIME_BINS, time_bin},
    sampler::{Calibration, Posterior},
};

/// Natural logarithms of the lowest and the highest temperature that are tried.
const LOG_TEMPERATURES: (f64, f64) = (-3.0, 3.0);
/// How far from 0 the logarithm of a temperature is thought to lie before anything was seen (its standard deviation): a few answers that are all right would
/// else make a router sure beyond reason.
const LOG_TEMPERATURE_SPREAD: f64 = 0.5;
/// Halvings of the interval in which the best lies; 40 leave less than f32 resolves.
const HALVINGS: usize = 40;

/// What a router said of held-out samples.
pub struct Answers(Vec<Answer>);

struct Answer {
    sample: usize,
    t: f32,
    label: usize,
    logits: Vec<f32>,
}

/// How well a router classifies, before and after its temperatures are fitted.
///
/// Temperatures are fitted on the even samples, and all numbers here are of the odd ones, which the fit has not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// Share of samples whose most probable cluster is theirs; temperatures do not change it.
    pub accuracy: ByTime,
    /// Mean of -ln p(own cluster).
    pub cross_entropy: ByTime,
    /// The same with the fitted temperatures.
    pub calibrated: ByTime,
    /// The temperatures.
    pub temperatures: Calibration,
}

impl Answers {
    /// Asks a router about held-out samples of all clusters.
    ///
    /// # Errors
    /// If there are no samples, or candle refuses.
    pub fn of(router: &dyn Posterior, held_out: &HeldOut, device: &Device) -> Result<Self> {
        let mut answers = Vec::with_capacity(held_out.questions());
        held_out.ask(device, |question| {
            let logits = router.logits(&question.point.x, &question.point.time, &question.batch.text.pooled)?;
            let rows = logits.to_vec2::<f32>()?.into_iter().zip(question.batch.labels.to_vec1::<u32>()?);
            for ((sample, t), (logits, label)) in question.samples.into_iter().zip(question.times).zip(rows) {
                answers.push(Answer { sample, t, label: label as usize, logits });
            }
            Ok(())
        })?;
        Ok(Self(answers))
    }

    /// Fits temperatures and measures, on different samples.
    pub fn classification(self) -> Result<Classification> {
        let (fit, check): (Vec<_>, Vec<_>) = self.0.into_iter().partition(|answer| answer.sample % 2 == 0);
        let temperatures = calibrate(&fit)?;
        let by_time = |measure: &dyn Fn(&Answer) -> f64| {
            let mut sums = LossByTime::default();
            check.iter().for_each(|answer| sums.add(answer.t, measure(answer) as f32));
            ByTime::from(&sums)
        };
        Ok(Classification {
            accuracy: by_time(&|answer| f64::from(u8::from(greatest(&answer.logits) == answer.label))),
            cross_entropy: by_time(&|answer| cross_entropy(answer, 1.0)),
            calibrated: by_time(&|answer| cross_entropy(answer, temperatures.temperature(answer.t.into()).into())),
            temperatures,
        })
    }
}

/// Routers by name, three rows and the temperatures each, a column for each part of the time.
pub fn table<'a>(routers: impl IntoIterator<Item = (&'a str, &'a Classification)>) -> Table {
    let bins = (0..TIME_BINS).map(|bin| format!("{:.1}", bin as f64 / TIME_BINS as f64));
    let mut table = Table::new(["router, by t from".to_owned(), "mean".to_owned()].into_iter().chain(bins));
    for (name, router) in routers {
        let kinds = [
            ("accuracy", &router.accuracy),
            ("cross-entropy", &router.cross_entropy),
            ("calibrated", &router.calibrated),
        ];
        for (kind, by_time) in kinds {
            let number = |value: &f32| format!("{value:.3}");
            let bins = by_time.bins.iter().map(|bin| bin.as_ref().map_or(String::new(), number));
            table.add([format!("{name}: {kind}"), number(&by_time.mean)].into_iter().chain(bins));
        }
        let temperatures = router.temperatures.temperatures().iter().map(|it| format!("{it:.2}"));
        table.add([format!("{name}: temperature"), String::new()].into_iter().chain(temperatures));
    }
    table
}

/// The temperature of each part of the time at which the answers' cross-entropy, with what is thought beforehand, is least; 1 where there are no answers.
fn calibrate(answers: &[Answer]) -> Result<Calibration> {
    let fit = |bin: usize| {
        let of_bin = |answer: &&Answer| time_bin(answer.t) == bin;
        let answers: Vec<_> = answers.iter().filter(of_bin).collect();
        if answers.is_empty() { 1.0 } else { best_temperature(&answers) as f32 }
    };
    Calibration::new((0..TIME_BINS).map(fit).collect()).map_err(candle_core::Error::wrap)
}

/// Bisection on the slope: cross-entropy is convex in 1 / T, so its slope in ln T has one sign below the best and the other above.
fn best_temperature(answers: &[&Answer]) -> f64 {
    let (mut low, mut high) = LOG_TEMPERATURES;
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let temperature = middle.exp();
        // d/d(1/T) of the mean cross-entropy is E_p[logit] - logit of the label.
        let slope: f64 = answers
            .iter()
            .map(|answer| {
                let probabilities = softmax(&answer.logits, temperature);
                let expected: f64 =
                    probabilities.iter().zip(&answer.logits).map(|(p, logit)| p * f64::from(*logit)).sum();
                expected - f64::from(answer.logits[answer.label])
            })
            .sum();
        // The slope in ln T of the sum, and of a normal density's logarithm.
        let slope = middle / LOG_TEMPERATURE_SPREAD.powi(2) - slope / temperature;
        if slope < 0.0 { low = middle } else { high = middle }
    }
    ((low + high) / 2.0).exp()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (f64::from(logit - most) / temperature).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

fn cross_entropy(answer: &Answer, temperature: f64) -> f64 {
    -softmax(&answer.logits, temperature)[answer.label].max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Answers of a router that is `overconfident` times as sure as it should be.
    fn answers(overconfident: f32) -> Vec<Answer> {
        let mut stream = Stream::seeded(4, "answers");
        let one = |sample: usize| {
            let honest = stream.normals(3);
            let probabilities = softmax(&honest, 1.0);
            let mut left = f64::from(stream.uniform());
            let label = probabilities.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            let logits = honest.iter().map(|logit| logit * overconfident).collect();
            Answer { sample, t: stream.uniform(), label: label.unwrap_or(2), logits }
        };
        (0..40_000).map(one).collect()
    }

    #[test]
    fn the_temperature_undoes_overconfidence_on_samples_it_has_not_seen() {
        for overconfident in [0.5, 1.0, 3.0] {
            let measured = Answers(answers(overconfident)).classification().unwrap();
            for temperature in measured.temperatures.temperatures() {
                assert!((temperature / overconfident - 1.0).abs() < 0.15, "{temperature} for {overconfident}");
            }
            let (before, after) = (measured.cross_entropy.mean, measured.calibrated.mean);
            assert!(after < before + 1e-3, "{before} to {after}");
            assert!(overconfident < 3.0 || after < 0.9 * before, "{before} to {after}");
        }
    }

    #[test]
    fn a_few_answers_that_are_all_right_change_little() {
        let sure = |sample| Answer { sample, t: 0.05, label: 1, logits: vec![0.0, 9.0] };
        let measured = Answers((0..10).map(sure).collect()).classification().unwrap();
        assert_eq!(
            (measured.accuracy.mean, measured.accuracy.bins[0], measured.accuracy.bins[5]),
            (1.0, Some(1.0), None)
        );
        let temperatures = [0.05, 0.5].map(|t| measured.temperatures.temperature(t));
        assert!(temperatures[0] > 0.9 && temperatures[0] < 1.0 && temperatures[1] == 1.0, "{temperatures:?}");
    }
}
