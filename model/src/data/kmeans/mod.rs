//! Balanced k-means in two stages: which picture belongs to which cluster.
//!
//! As Paris does it (after DDM, arXiv 2501.05450): many fine centres first, on a bounded sample, then few coarse ones over those, each fine centre
//! weighing as much as it has rows. So the coarse stage costs the same for a thousand pictures as for a million, and rare kinds of picture, which have
//! fine centres of their own, aren't drowned. Rows are L2-normalised. No cluster may exceed a cap, because an expert with twice the pictures trains
//! on each half as often; nor fall below a floor, because one with few learns them by heart, and has next to none held out. The fine stage has
//! neither: its sizes are what the weights carry. Everything follows from the seed, whatever the number of threads.
//!
//! `lloyd` is one k-means; `balance` gives rows to centres within those bounds; `distance` is what both measure with.

mod balance;
mod distance;
mod lloyd;

pub use balance::{Assigned, Bounds, assign};
pub use distance::{normalise, squared_distances};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use lloyd::{Points, Rule};

/// Most fine centres, as many as DDM used.
pub const FINE_CENTRES_MAX: usize = 1024;
/// Rows of the sample to each fine centre.
const ROWS_A_FINE_CENTRE: usize = 32;
/// Fine centres to each coarse one, at least, where there are so many rows.
const FINE_A_COARSE: usize = 4;
/// Most memory that the sample takes, in bytes.
const SAMPLE_BYTES_MAX: usize = 128 << 20;
/// Most rounds of the fine stage: it costs the most, and later ones don't make the coarse stage any better.
const FINE_ROUNDS_MAX: usize = 2;
/// Most rounds of one start of the coarse stage.
const COARSE_ROUNDS_MAX: usize = 100;
/// How many starts of the coarse stage are tried; the one with the least inertia wins.
const COARSE_STARTS: usize = 8;

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
    /// Smallest cluster, as a multiple of the mean size; 1 makes all equal, 0 is plain k-means.
    pub size_floor: f64,
    /// What every random choice follows from.
    pub seed: u64,
}

impl KMeans {
    /// The usual settings: a cap of 1.3 times the mean, a floor of half the mean.
    pub fn new(clusters: usize, seed: u64) -> Self {
        Self { clusters, size_cap: 1.3, size_floor: 0.5, seed }
    }

    /// How many rows of `width` values the centres are found on, at most: more wouldn't move them.
    pub fn sample_rows(width: usize) -> usize {
        (SAMPLE_BYTES_MAX / (4 * width.max(1))).min(FINE_CENTRES_MAX * ROWS_A_FINE_CENTRE)
    }

    /// The centres of the clusters, row by row, found on `sample` (row by row, each of `width` values; a random part of all rows, or all).
    pub fn centres(&self, mut sample: Vec<f32>, width: usize) -> Result<Vec<f32>, KMeansError> {
        if width == 0 || !sample.len().is_multiple_of(width) || sample.iter().any(|value| !value.is_finite()) {
            return Err(KMeansError::Features { values: sample.len(), width });
        }
        let rows = sample.len() / width;
        if self.clusters == 0 || rows < self.clusters {
            return Err(KMeansError::TooFew { rows, clusters: self.clusters });
        }
        sample.chunks_exact_mut(width).for_each(normalise);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let wanted = (rows / ROWS_A_FINE_CENTRE).min(FINE_CENTRES_MAX).max(FINE_A_COARSE * self.clusters).min(rows);
        let all = Points { values: &sample, width, weights: &vec![1; rows] };
        let fine = all.cluster(all.drawn(wanted, &mut random), Rule::Nearest, FINE_ROUNDS_MAX);
        drop(sample);

        let mut sizes = vec![0u32; wanted];
        fine.labels.iter().for_each(|label| sizes[*label as usize] += 1);
        // Rows that are equal can leave fine centres without any.
        let kept = fine.centres.chunks_exact(width).zip(sizes).filter(|(_, size)| *size > 0);
        let (centres, weights): (Vec<&[f32]>, Vec<u32>) = kept.unzip();
        let centres = centres.concat();
        let fine = Points { values: &centres, width, weights: &weights };
        let rule = Rule::Balanced(self.bounds(rows));
        let mut found = || fine.cluster(fine.plus_plus(self.clusters, &mut random), rule, COARSE_ROUNDS_MAX);
        let mut best = found();
        for _ in 1..COARSE_STARTS {
            let other = found();
            if other.inertia < best.inertia {
                best = other;
            }
        }
        Ok(best.centres)
    }

    /// How large a cluster of `rows` rows in all may be.
    pub fn bounds(&self, rows: usize) -> Bounds {
        let mean = rows as f64 / self.clusters as f64;
        let most = (mean * self.size_cap.max(1.0)).ceil() as u64;
        Bounds { least: (mean * self.size_floor.clamp(0.0, 1.0)) as u64, most: most.min(rows as u64) }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::RngCore;

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

    /// Clusters all rows on themselves.
    fn cluster(how: KMeans, rows: &[f32], width: usize) -> Assigned {
        let centres = how.centres(rows.to_vec(), width).unwrap();
        let mut rows = rows.to_vec();
        rows.chunks_exact_mut(width).for_each(normalise);
        assign(&squared_distances(&rows, &centres, width), how.clusters, None, how.bounds(rows.len() / width))
    }

    fn sizes(labels: &[u32], clusters: usize) -> Vec<usize> {
        (0..clusters).map(|cluster| labels.iter().filter(|label| **label as usize == cluster).count()).collect()
    }

    #[test]
    fn separate_groups_are_found() {
        let found = cluster(KMeans::new(3, 1), &fans([20, 25, 22]), 2);
        for group in [&found.labels[..20], &found.labels[20..45], &found.labels[45..]] {
            assert!(group.iter().all(|label| *label == group[0]), "{group:?}");
        }
        assert!(found.distances.iter().sum::<f32>() < 0.1, "{:?}", found.distances);
    }

    /// Sixteen directions in 24 dimensions with noise around them, dealt out in turn.
    #[test]
    fn planted_clusters_are_recovered_through_the_fine_stage() {
        let (planted, width, rows) = (16, 24, 3200);
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut value = || (random.next_u32() as f32 / u32::MAX as f32) * 2.0 - 1.0;
        let directions: Vec<f32> = (0..planted * width).map(|_| value()).collect();
        let near = |row: usize| directions[row % planted * width..][..width].to_vec();
        let values: Vec<f32> =
            (0..rows).flat_map(|row| near(row).into_iter().map(|x| x + 0.3 * value()).collect::<Vec<_>>()).collect();
        for seed in 0..3 {
            let found = cluster(KMeans::new(planted, seed), &values, width);
            let agreeing = (0..planted).map(|group| {
                let labels: Vec<u32> = found.labels.iter().skip(group).step_by(planted).copied().collect();
                sizes(&labels, planted).into_iter().max().unwrap()
            });
            let agreeing = agreeing.sum::<usize>();
            assert!(agreeing as f64 > 0.95 * rows as f64, "seed {seed}: {agreeing} of {rows}");
        }
    }

    #[test]
    fn clusters_keep_between_floor_and_cap() {
        for seed in 0..5 {
            let found = cluster(KMeans::new(3, seed), &fans([80, 5, 5]), 2);
            assert!(
                sizes(&found.labels, 3).iter().all(|size| (15..=39).contains(size)),
                "{:?}",
                sizes(&found.labels, 3)
            );
        }
        let equal = cluster(KMeans { size_cap: 1.0, ..KMeans::new(3, 0) }, &fans([80, 5, 5]), 2);
        assert_eq!(sizes(&equal.labels, 3), [30, 30, 30]);
    }

    #[test]
    fn the_seed_decides_everything_whatever_the_number_of_threads() {
        let points = fans([300, 300, 300]);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| KMeans::new(4, 9).centres(points.clone(), 2).unwrap())
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn equal_rows_and_zero_rows_do_no_harm() {
        let found = cluster(KMeans::new(2, 0), &[0.0; 20], 2);
        assert_eq!(found.labels.len(), 10);
        assert!(found.distances.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn what_can_not_be_clustered_is_refused() {
        let refuse =
            |clusters, rows: &[f32], width| KMeans::new(clusters, 0).centres(rows.to_vec(), width).unwrap_err();
        assert!(matches!(refuse(3, &[1.0, 2.0], 1), KMeansError::TooFew { rows: 2, clusters: 3 }));
        assert!(matches!(refuse(0, &[1.0], 1), KMeansError::TooFew { .. }));
        assert!(matches!(refuse(1, &[f32::NAN], 1), KMeansError::Features { .. }));
        assert!(matches!(refuse(1, &[1.0; 3], 2), KMeansError::Features { .. }));
    }
}
