//! Which experts draw a picture, and with what weight (paper, section on sampling).

use candle_core::{D, Result, Tensor, bail};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use crate::random::Stream;

/// The most bins of a [`Calibration`].
pub const CALIBRATION_BINS_MAX: usize = 1000;

/// How many experts draw each picture, and who chooses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The router: the k most probable, their weights renormalised.
    Top(usize),
    /// The router: all, by their probabilities.
    Full,
    /// Nobody: each picture is drawn by one expert that is picked blindly, from this seed, and stays with it. What a router must beat.
    Random(u64),
    /// Who knows: the cluster of each picture, in their order. What a router can hope for.
    Oracle(Vec<usize>),
}

/// When the router is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reroute {
    /// At every step, as in the paper.
    EveryStep,
    /// At the first step only.
    Once,
}

impl Routing {
    /// True if the router has a say.
    pub fn asks_router(&self) -> bool {
        matches!(self, Self::Top(_) | Self::Full)
    }

    /// Weights of each picture from its probabilities `[pictures][experts]`: rows sum to 1, absent experts have 0.
    ///
    /// # Errors
    /// If the oracle names an expert that is absent, or not one for each picture.
    pub fn weights(&self, probabilities: &[Vec<f32>], present: &[bool]) -> Result<Vec<Vec<f32>>> {
        let here: Vec<usize> = (0..present.len()).filter(|cluster| present[*cluster]).collect();
        if here.is_empty() {
            bail!("the mixture has no expert");
        }
        let row = |(picture, probabilities): (usize, &Vec<f32>)| {
            Ok(match self {
                Self::Top(k) => strongest(probabilities, &here, (*k).max(1)),
                Self::Full => strongest(probabilities, &here, here.len()),
                Self::Random(seed) => {
                    let mut stream = Stream::seeded(*seed, &format!("expert of picture {picture}"));
                    only(here[stream.below(here.len())], present.len())
                }
                Self::Oracle(clusters) => match clusters.get(picture) {
                    Some(cluster) if here.contains(cluster) => only(*cluster, present.len()),
                    Some(cluster) => bail!("picture {picture} is of cluster {cluster}, whose expert is missing"),
                    None => bail!("{} clusters are given, and there is a picture {picture}", clusters.len()),
                },
            })
        };
        probabilities.iter().enumerate().map(row).collect()
    }
}

/// The best k of those that are here, renormalised. Ties go to the lower cluster.
fn strongest(probabilities: &[f32], here: &[usize], k: usize) -> Vec<f32> {
    let mut order = here.to_vec();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    order.truncate(k);
    let total: f32 = order.iter().map(|cluster| probabilities[*cluster]).sum();
    let mut weights = vec![0.0; probabilities.len()];
    for cluster in &order {
        // A router that gives every present expert nothing says nothing: they count alike.
        weights[*cluster] = if total > 0.0 { probabilities[*cluster] / total } else { 1.0 / order.len() as f32 };
    }
    weights
}

fn only(cluster: usize, clusters: usize) -> Vec<f32> {
    (0..clusters).map(|it| if it == cluster { 1.0 } else { 0.0 }).collect()
}

/// How much a router's confidence is to be believed at each time: what its logits are divided by before the softmax (Guo et al., arXiv 1706.04599), fitted on
/// held-out data. As JSON `{"temperatures": [..]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Uncalibrated", deny_unknown_fields)]
pub struct Calibration {
    temperatures: Vec<f32>,
}

/// What stands in a file, before it is checked.
#[derive(Deserialize)]
struct Uncalibrated {
    temperatures: Vec<f32>,
}

/// Temperatures that no router can have.
#[derive(Debug, thiserror::Error)]
#[error(
    "a calibration is 1 to {CALIBRATION_BINS_MAX} temperatures above 0, one for each bin of the time, and this one has {count}{}",
    .wrong.map(|it| format!(", of which one is {it}")).unwrap_or_default()
)]
pub struct CalibrationError {
    count: usize,
    wrong: Option<f32>,
}

impl Calibration {
    /// A temperature for each of so many equal bins of the time, t = 0 (picture) first, t = 1 (noise) last.
    ///
    /// # Errors
    /// Where there is no bin or too many, or a temperature is not above 0.
    pub fn new(temperatures: Vec<f32>) -> std::result::Result<Self, CalibrationError> {
        let wrong = temperatures.iter().copied().find(|it| !(it.is_finite() && *it > 0.0));
        match wrong.is_none() && (1..=CALIBRATION_BINS_MAX).contains(&temperatures.len()) {
            true => Ok(Self { temperatures }),
            false => Err(CalibrationError { count: temperatures.len(), wrong }),
        }
    }

    /// The temperatures, a bin each.
    pub fn temperatures(&self) -> &[f32] {
        &self.temperatures
    }

    /// The temperature at `t` in 0..1.
    pub fn temperature(&self, t: f64) -> f32 {
        let bins = self.temperatures.len();
        self.temperatures[((t.max(0.0) * bins as f64) as usize).min(bins - 1)]
    }
}

impl TryFrom<Uncalibrated> for Calibration {
    type Error = CalibrationError;

    fn try_from(file: Uncalibrated) -> std::result::Result<Self, CalibrationError> {
        Self::new(file.temperatures)
    }
}

/// What a router's logits `[B,K]` at `t` in 0..1 say each picture's clusters are, `[pictures][clusters]`; rows sum to 1.
pub fn probabilities(logits: &Tensor, t: f64, calibration: Option<&Calibration>) -> Result<Vec<Vec<f32>>> {
    let logits = match calibration {
        Some(calibration) => (logits / f64::from(calibration.temperature(t)))?,
        None => logits.clone(),
    };
    softmax(&logits, D::Minus1)?.to_vec2()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn weights(routing: &Routing, probabilities: &[f32], present: &[bool]) -> Vec<f32> {
        routing.weights(&[probabilities.to_vec()], present).unwrap().remove(0)
    }

    #[test]
    fn routing_keeps_the_best_and_renormalises() {
        let (probabilities, all) = ([0.1, 0.4, 0.3, 0.2], [true; 4]);
        assert_eq!(weights(&Routing::Top(1), &probabilities, &all), [0.0, 1.0, 0.0, 0.0]);
        let two = weights(&Routing::Top(2), &probabilities, &all);
        assert!((two[1] - 4.0 / 7.0).abs() < 1e-6 && (two[2] - 3.0 / 7.0).abs() < 1e-6 && two[0] == 0.0);
        assert_eq!(weights(&Routing::Full, &probabilities, &all), probabilities);
        assert_eq!(weights(&Routing::Top(1), &probabilities, &[true, false, true, true]), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(weights(&Routing::Full, &[0.0, 1.0], &[true, false]), [1.0, 0.0]);
    }

    #[test]
    fn an_oracle_is_followed_and_one_that_cannot_be_is_an_error() {
        let (even, present) = (vec![vec![0.25; 4]; 3], [true, true, false, true]);
        let routed = Routing::Oracle(vec![3, 0, 1]).weights(&even, &present).unwrap();
        assert_eq!(routed, [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]);
        let says = |clusters: &[usize]| Routing::Oracle(clusters.to_vec()).weights(&even, &present).unwrap_err();
        assert!(says(&[3, 2, 1]).to_string().contains("picture 1 is of cluster 2"));
        assert!(says(&[3, 9, 1]).to_string().contains("picture 1 is of cluster 9"));
        assert!(says(&[3, 1]).to_string().contains("picture 2"));
    }

    #[test]
    fn blind_routing_is_even_over_those_present_and_follows_from_its_seed() {
        let (even, present) = (vec![vec![0.25; 4]; 400], [true, true, false, true]);
        let routed = Routing::Random(7).weights(&even, &present).unwrap();
        assert_eq!(routed, Routing::Random(7).weights(&even, &present).unwrap());
        assert_ne!(routed, Routing::Random(8).weights(&even, &present).unwrap());
        let share = |cluster: usize| routed.iter().map(|row| row[cluster]).sum::<f32>() / 400.0;
        assert!([0, 1, 3].iter().all(|cluster| (share(*cluster) - 1.0 / 3.0).abs() < 0.1) && share(2) == 0.0);
    }

    #[test]
    fn a_calibration_divides_the_logits_of_its_bin() {
        let calibration = Calibration::new(vec![1.0, 2.0, 4.0]).unwrap();
        assert_eq!([0.0, 0.4, 0.99, 1.0].map(|t| calibration.temperature(t)), [1.0, 2.0, 4.0, 4.0]);
        let logits = Tensor::new(&[[4f32, 0.0]], &Device::Cpu).unwrap();
        let first = |t, calibration| probabilities(&logits, t, calibration).unwrap()[0][0];
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        assert!((first(0.9, Some(&calibration)) - sigmoid(1.0)).abs() < 1e-6);
        assert!((first(0.9, None) - sigmoid(4.0)).abs() < 1e-6);
    }

    #[test]
    fn a_calibration_survives_json_and_a_wrong_one_is_refused() {
        let calibration = Calibration::new(vec![0.5, 1.5]).unwrap();
        let json = serde_json::to_string(&calibration).unwrap();
        assert_eq!(json, r#"{"temperatures":[0.5,1.5]}"#);
        assert_eq!(serde_json::from_str::<Calibration>(&json).unwrap(), calibration);
        for wrong in [vec![], vec![1.0, 0.0], vec![f32::NAN], vec![1.0; CALIBRATION_BINS_MAX + 1]] {
            assert!(Calibration::new(wrong).is_err());
        }
        assert!(serde_json::from_str::<Calibration>(r#"{"temperatures":[-1.0]}"#).is_err());
    }
}
