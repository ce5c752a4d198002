//! Balanced k-means: which picture belongs to which cluster.
//!
//! Rows are L2-normalised, centres start by k-means++, and no cluster may exceed a cap, because an expert with twice the
//! pictures trains on each half as often. One stage, since the number of clusters here is small; the two stages of Paris
//! (many fine centres, then coarse ones over them) serve its 1024 fine centres. Everything follows from the seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Why features can't be clustered.
#[derive(Debug, thiserror::Error)]
pub enum KMeansError {
    /// Fewer rows than clusters, or no cluster at all.
    #[error(
        "can't make {clusters} clusters of {rows} different pictures: give more pictures or ask for fewer clusters"
    )]
    TooFew {
        /// Rows given.
        rows: usize,
        /// Clusters asked for.
        clusters: usize,
    },
    /// The features are no matrix of finite numbers.
    #[error("features of {values} values are no rows of {width} finite numbers")]
    Features {
        /// Values given.
        values: usize,
        /// Values a row should have.
        width: usize,
    },
}

/// How to cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeans {
    /// Number of clusters.
    pub clusters: usize,
    /// Largest cluster, as a multiple of the mean size; 1 makes all equal, infinity is plain k-means.
    pub size_cap: f64,
    /// How many starts are tried; the one with the least inertia wins.
    pub restarts: usize,
    /// Most rounds of one start.
    pub rounds_max: usize,
    /// What every random choice follows from.
    pub seed: u64,
}

impl KMeans {
    /// The usual settings: a cap of 1.3 times the mean, eight starts.
    pub fn new(clusters: usize, seed: u64) -> Self {
        Self { clusters, size_cap: 1.3, restarts: 8, rounds_max: 100, seed }
    }

    /// Clusters the rows of `features` (row by row, each of `width` values).
    pub fn run(&self, features: &[f32], width: usize) -> Result<Clusters, KMeansError> {
        if width == 0 || !features.len().is_multiple_of(width) || features.iter().any(|value| !value.is_finite()) {
            return Err(KMeansError::Features { values: features.len(), width });
        }
        let rows = features.len() / width;
        if self.clusters == 0 || rows < self.clusters {
            return Err(KMeansError::TooFew { rows, clusters: self.clusters });
        }
        let mut points = features.to_vec();
        points.chunks_exact_mut(width).for_each(normalise);
        let mean = rows as f64 / self.clusters as f64;
        let cap = ((mean * self.size_cap.max(1.0)).ceil() as usize).min(rows);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut best = self.start(&points, width, cap, &mut random);
        for _ in 1..self.restarts {
            let other = self.start(&points, width, cap, &mut random);
            if other.inertia < best.inertia {
                best = other;
            }
        }
        Ok(best)
    }

    fn start(&self, points: &[f32], width: usize, cap: usize, random: &mut ChaCha8Rng) -> Clusters {
        let mut centres = plus_plus(points, width, self.clusters, random);
        let mut distances = distance_table(points, &centres, width);
        let mut labels = assign(&distances, self.clusters, cap);
        for _ in 0..self.rounds_max {
            centres = means(points, width, &labels, &distances, self.clusters);
            distances = distance_table(points, &centres, width);
            let next = assign(&distances, self.clusters, cap);
            if next == labels {
                break;
            }
            labels = next;
        }
        let mut sizes = vec![0; self.clusters];
        labels.iter().for_each(|label| sizes[*label as usize] += 1);
        let own = labels.iter().zip(distances.chunks_exact(self.clusters));
        let inertia = own.map(|(label, row)| f64::from(row[*label as usize])).sum();
        Clusters { labels, sizes, centres, inertia }
    }
}

/// What k-means found.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// The cluster of each row.
    pub labels: Vec<u32>,
    /// Rows of each cluster.
    pub sizes: Vec<usize>,
    /// The centres, row by row; means of L2-normalised rows.
    pub centres: Vec<f32>,
    /// Sum of squared distances of rows to their centres.
    pub inertia: f64,
}

fn normalise(row: &mut [f32]) {
    let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 && norm.is_finite() {
        row.iter_mut().for_each(|value| *value /= norm);
    } else if !norm.is_finite() {
        row.fill(0.0);
    }
}

/// Summed in eight lanes: a fixed order on every machine that the compiler can still turn into vector instructions.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            lanes[lane] += (a[lane] - b[lane]) * (a[lane] - b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Squared distances, `[rows, clusters]`.
fn distance_table(points: &[f32], centres: &[f32], width: usize) -> Vec<f32> {
    let row = |point| centres.chunks_exact(width).map(move |centre| squared_distance(point, centre));
    points.chunks_exact(width).flat_map(row).collect()
}

/// k-means++: each next centre is a row, drawn with probability in proportion to its squared distance from those chosen.
fn plus_plus(points: &[f32], width: usize, clusters: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    let rows = points.len() / width;
    let row = |index: usize| &points[index * width..(index + 1) * width];
    let mut centres = row((unit(random) * rows as f64) as usize).to_vec();
    let mut nearest = vec![f32::INFINITY; rows];
    while centres.len() < clusters * width {
        let newest = &centres[centres.len() - width..];
        for (near, point) in nearest.iter_mut().zip(points.chunks_exact(width)) {
            *near = near.min(squared_distance(point, newest));
        }
        let mut left = unit(random) * nearest.iter().map(|near| f64::from(*near)).sum::<f64>();
        let chosen = nearest.iter().position(|near| {
            left -= f64::from(*near);
            left < 0.0
        });
        centres.extend_from_slice(row(chosen.unwrap_or(rows - 1)));
    }
    centres
}

/// Uniform in 0..1, never 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Each row to its nearest centre; then clusters above the cap give away those rows whose move costs least.
fn assign(distances: &[f32], clusters: usize, cap: usize) -> Vec<u32> {
    let rows = distances.chunks_exact(clusters);
    let mut labels: Vec<u32> = rows.map(|row| nearest(row, |_| true).unwrap_or(0) as u32).collect();
    let mut sizes = vec![0usize; clusters];
    labels.iter().for_each(|label| sizes[*label as usize] += 1);

    let offer = |index: usize, label: u32, sizes: &[usize]| {
        let row = &distances[index * clusters..(index + 1) * clusters];
        let target = nearest(row, |cluster| sizes[cluster] < cap)?;
        // Costs are never negative here, and the bits of such floats order as the floats do.
        let cost = (row[target] - row[label as usize]).max(0.0).to_bits();
        Some(Reverse((cost, index, target)))
    };
    let over = |label: u32, sizes: &[usize]| sizes[label as usize] > cap;
    let mut offers: BinaryHeap<_> = labels
        .iter()
        .enumerate()
        .filter(|(_, label)| over(**label, &sizes))
        .filter_map(|(index, label)| offer(index, *label, &sizes))
        .collect();
    while let Some(Reverse((_, index, target))) = offers.pop() {
        let label = labels[index];
        if !over(label, &sizes) {
            continue;
        }
        if sizes[target] < cap {
            sizes[label as usize] -= 1;
            sizes[target] += 1;
            labels[index] = target as u32;
        } else {
            offers.extend(offer(index, label, &sizes));
        }
    }
    labels
}

fn nearest(row: &[f32], allowed: impl Fn(usize) -> bool) -> Option<usize> {
    (0..row.len()).filter(|cluster| allowed(*cluster)).min_by(|a, b| row[*a].total_cmp(&row[*b]))
}

/// The mean of each cluster; an empty one restarts at a row that lies farthest from its own centre.
fn means(points: &[f32], width: usize, labels: &[u32], distances: &[f32], clusters: usize) -> Vec<f32> {
    let mut sums = vec![0f64; clusters * width];
    let mut sizes = vec![0usize; clusters];
    for (point, label) in points.chunks_exact(width).zip(labels) {
        let cluster = *label as usize;
        sizes[cluster] += 1;
        for (sum, value) in sums[cluster * width..(cluster + 1) * width].iter_mut().zip(point) {
            *sum += f64::from(*value);
        }
    }
    let mut centres: Vec<f32> = Vec::with_capacity(sums.len());
    let own = |index: usize| distances[index * clusters + labels[index] as usize];
    let mut outliers: Vec<usize> = Vec::new();
    if sizes.contains(&0) {
        outliers.extend(0..labels.len());
        outliers.sort_by(|a, b| own(*a).total_cmp(&own(*b)));
    }
    for (sum, size) in sums.chunks_exact(width).zip(sizes) {
        match (size, outliers.pop()) {
            (0, Some(index)) => centres.extend_from_slice(&points[index * width..(index + 1) * width]),
            _ => centres.extend(sum.iter().map(|sum| (sum / size as f64) as f32)),
        }
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tight directions in the plane, `sizes[i]` rows each.
    fn fans(sizes: [usize; 3]) -> Vec<f32> {
        let directions = [(1.0, 0.0), (0.0, 1.0), (-1.0, -1.0)];
        let rows = directions.iter().zip(sizes).flat_map(|((x, y), size)| {
            (0..size).flat_map(move |i| {
                let wobble = i as f32 * 1e-3;
                [x + wobble, y - wobble]
            })
        });
        rows.collect()
    }

    #[test]
    fn separate_groups_are_found() {
        let found = KMeans::new(3, 1).run(&fans([20, 25, 22]), 2).unwrap();
        let groups = [&found.labels[..20], &found.labels[20..45], &found.labels[45..]];
        for group in groups {
            assert!(group.iter().all(|label| *label == group[0]), "{group:?}");
        }
        assert_eq!(found.sizes.iter().sum::<usize>(), 67);
        assert!(found.inertia < 0.1, "{}", found.inertia);
    }

    #[test]
    fn no_cluster_exceeds_the_cap() {
        for seed in 0..5 {
            let found = KMeans::new(3, seed).run(&fans([80, 5, 5]), 2).unwrap();
            assert!(found.sizes.iter().all(|size| *size <= 39), "{:?}", found.sizes);
        }
        let equal = KMeans { size_cap: 1.0, ..KMeans::new(3, 0) }.run(&fans([80, 5, 5]), 2).unwrap();
        assert_eq!(equal.sizes, [30, 30, 30]);
    }

    #[test]
    fn the_seed_decides_everything() {
        let points = fans([30, 30, 30]);
        assert_eq!(KMeans::new(4, 9).run(&points, 2).unwrap(), KMeans::new(4, 9).run(&points, 2).unwrap());
    }

    #[test]
    fn equal_rows_and_zero_rows_do_no_harm() {
        let found = KMeans::new(2, 0).run(&[0.0; 20], 2).unwrap();
        assert_eq!(found.sizes.iter().sum::<usize>(), 10);
        assert!(found.centres.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn what_can_not_be_clustered_is_refused() {
        assert!(matches!(KMeans::new(3, 0).run(&[1.0, 2.0], 1), Err(KMeansError::TooFew { rows: 2, clusters: 3 })));
        assert!(matches!(KMeans::new(0, 0).run(&[1.0], 1), Err(KMeansError::TooFew { .. })));
        assert!(matches!(KMeans::new(1, 0).run(&[f32::NAN], 1), Err(KMeansError::Features { .. })));
        assert!(matches!(KMeans::new(1, 0).run(&[1.0; 3], 2), Err(KMeansError::Features { .. })));
    }
}
