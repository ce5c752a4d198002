//! One k-means after Lloyd, and the rows that it starts from.

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use rayon::prelude::*;

use super::balance::{Assigned, Bounds, assign};
use super::distance::{nearest_centres, squared_distance, squared_distances};

/// Which centre a row is given to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// The nearest.
    Nearest,
    /// The nearest, while the weight of every cluster keeps within these bounds.
    Balanced(Bounds),
}

/// Rows of `width` values that count as often as their weight says.
pub(super) struct Points<'a> {
    pub(super) values: &'a [f32],
    pub(super) width: usize,
    pub(super) weights: &'a [u32],
}

/// What one k-means found.
pub(super) struct Found {
    pub(super) labels: Vec<u32>,
    pub(super) centres: Vec<f32>,
    /// Sum of squared distances of rows to their centres.
    pub(super) inertia: f64,
}

impl Points<'_> {
    /// Improves `centres` until no row moves, or for so many rounds.
    pub(super) fn cluster(&self, mut centres: Vec<f32>, rule: Rule, rounds_max: usize) -> Found {
        let clusters = centres.len() / self.width;
        let mut assigned = self.assign(&centres, rule);
        for _ in 0..rounds_max {
            centres = self.means(&assigned, clusters);
            let next = self.assign(&centres, rule);
            let settled = next.labels == assigned.labels;
            assigned = next;
            if settled {
                break;
            }
        }
        let weighed = assigned.distances.iter().zip(self.weights);
        let inertia = weighed.map(|(distance, weight)| f64::from(*distance) * f64::from(*weight)).sum();
        Found { labels: assigned.labels, centres, inertia }
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    fn assign(&self, centres: &[f32], rule: Rule) -> Assigned {
        match rule {
            Rule::Nearest => {
                let (labels, distances) = nearest_centres(self.values, centres, self.width);
                Assigned { labels, distances }
            }
            Rule::Balanced(bounds) => {
                let distances = squared_distances(self.values, centres, self.width);
                assign(&distances, centres.len() / self.width, Some(self.weights), bounds)
            }
        }
    }

    /// Rows to start from, one drawn from each of as many stretches. Where there are many centres this does as well as k-means++, and costs nothing.
    pub(super) fn drawn(&self, clusters: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
        let begin = |cluster: usize| cluster * self.weights.len() / clusters;
        let rows = (0..clusters).flat_map(|cluster| {
            let length = begin(cluster + 1) - begin(cluster);
            self.row(begin(cluster) + (unit(random) * length as f64) as usize)
        });
        rows.copied().collect()
    }

    /// k-means++: each next centre is a row, drawn with probability in proportion to its weight and its squared distance from those chosen.
    pub(super) fn plus_plus(&self, clusters: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
        let rows = self.weights.len();
        let mut centres = self.row((unit(random) * rows as f64) as usize).to_vec();
        let mut nearest = vec![f32::INFINITY; rows];
        while centres.len() < clusters * self.width {
            let newest = &centres[centres.len() - self.width..];
            nearest.par_iter_mut().zip(self.values.par_chunks_exact(self.width)).for_each(|(near, point)| {
                *near = near.min(squared_distance(point, newest));
            });
            let share = |index: usize| f64::from(nearest[index]) * f64::from(self.weights[index]);
            let mut left = unit(random) * (0..rows).map(share).sum::<f64>();
            let chosen = (0..rows).find(|index| {
                left -= share(*index);
                left < 0.0
            });
            centres.extend_from_slice(self.row(chosen.unwrap_or(rows - 1)));
        }
        centres
    }

    /// The mean of each cluster; an empty one restarts at a row that lies farthest from its own centre.
    fn means(&self, assigned: &Assigned, clusters: usize) -> Vec<f32> {
        let mut sums = vec![0f64; clusters * self.width];
        let mut sizes = vec![0u64; clusters];
        let rows = self.values.chunks_exact(self.width).zip(self.weights).zip(&assigned.labels);
        for ((point, weight), label) in rows {
            let cluster = *label as usize;
            sizes[cluster] += u64::from(*weight);
            for (sum, value) in sums[cluster * self.width..][..self.width].iter_mut().zip(point) {
                *sum += f64::from(*value) * f64::from(*weight);
            }
        }
        let mut outliers: Vec<usize> = Vec::new();
        if sizes.contains(&0) {
            outliers.extend(0..assigned.labels.len());
            outliers.sort_by(|a, b| assigned.distances[*a].total_cmp(&assigned.distances[*b]));
        }
        let mut centres: Vec<f32> = Vec::with_capacity(sums.len());
        for (sum, size) in sums.chunks_exact(self.width).zip(sizes) {
            match size {
                0 => centres.extend_from_slice(self.row(outliers.pop().unwrap_or(0))),
                _ => centres.extend(sum.iter().map(|sum| (sum / size as f64) as f32)),
            }
        }
        centres
    }
}

/// Uniform in 0..1, never 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
