//! Rows to centres, so that no cluster is too large or too small.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Where rows belong.
#[derive(Debug, Clone, PartialEq)]
pub struct Assigned {
    /// The cluster of each row.
    pub labels: Vec<u32>,
    /// The squared distance of each row from the centre of its cluster.
    pub distances: Vec<f32>,
}

/// How much a cluster may weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// At least this: at most the mean.
    pub least: u64,
    /// At most this: at least the mean.
    pub most: u64,
}

/// Gives each row to its nearest centre; then clusters that are too large give away those rows whose move costs least, and those that are too small take such rows
/// from clusters that can spare them.
///
/// `distances` is `[rows, clusters]`; a row counts as often as `weights` says, once where there are none. Rows of weight one always fit between the bounds;
/// heavier ones may leave a cluster outside, where none has room for, or can spare, a whole row.
pub fn assign(distances: &[f32], clusters: usize, weights: Option<&[u32]>, bounds: Bounds) -> Assigned {
    let weight = |index: usize| weights.map_or(1, |weights| u64::from(weights[index]));
    let rows = distances.chunks_exact(clusters);
    let mut labels: Vec<u32> = rows.map(|row| nearest(row, |_| true).unwrap_or(0) as u32).collect();
    let mut sizes = vec![0u64; clusters];
    labels.iter().enumerate().for_each(|(index, label)| sizes[*label as usize] += weight(index));

    let row = |index: usize| &distances[index * clusters..(index + 1) * clusters];
    // Costs aren't negative, but for rows that were sent away from nearer centres; and the bits of such floats order as the floats do.
    let cost = |index: usize, from: u32, to: usize| (row(index)[to] - row(index)[from as usize]).max(0.0).to_bits();
    let offer = |index: usize, label: u32, sizes: &[u64]| {
        let target = nearest(row(index), |cluster| sizes[cluster] + weight(index) <= bounds.most)?;
        Some(Reverse((cost(index, label, target), index, target)))
    };
    let over = |label: u32, sizes: &[u64]| sizes[label as usize] > bounds.most;
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
        if sizes[target] + weight(index) <= bounds.most {
            sizes[label as usize] -= weight(index);
            sizes[target] += weight(index);
            labels[index] = target as u32;
        } else {
            offers.extend(offer(index, label, &sizes));
        }
    }
    for target in 0..clusters {
        if sizes[target] >= bounds.least {
            continue;
        }
        let others = labels.iter().enumerate().filter(|(_, label)| sizes[**label as usize] > bounds.least);
        let mut offers: BinaryHeap<_> =
            others.map(|(index, label)| Reverse((cost(index, *label, target), index))).collect();
        while sizes[target] < bounds.least {
            let Some(Reverse((_, index))) = offers.pop() else { break };
            let (label, weight) = (labels[index] as usize, weight(index));
            if sizes[label] >= bounds.least + weight && sizes[target] + weight <= bounds.most {
                sizes[label] -= weight;
                sizes[target] += weight;
                labels[index] = target as u32;
            }
        }
    }
    let own = labels.iter().zip(distances.chunks_exact(clusters));
    let distances = own.map(|(label, row)| row[*label as usize]).collect();
    Assigned { labels, distances }
}

fn nearest(row: &[f32], allowed: impl Fn(usize) -> bool) -> Option<usize> {
    (0..row.len()).filter(|cluster| allowed(*cluster)).min_by(|a, b| row[*a].total_cmp(&row[*b]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sizes_keep_under_the_cap_and_only_full_clusters_send_rows_away(
            (clusters, distances) in (1usize..6).prop_flat_map(|clusters| {
                (Just(clusters), prop::collection::vec(0.0f32..10.0, clusters..clusters * 40))
            }),
            slack in 1.0f64..2.0,
        ) {
            let rows = distances.len() / clusters;
            let distances = &distances[..rows * clusters];
            let cap = (rows as f64 / clusters as f64 * slack).ceil() as u64;
            let found = assign(distances, clusters, None, Bounds { least: 0, most: cap });
            let mut sizes = vec![0u64; clusters];
            found.labels.iter().for_each(|label| sizes[*label as usize] += 1);
            prop_assert!(sizes.iter().all(|size| *size <= cap), "{sizes:?} over {cap}");
            for (label, row) in found.labels.iter().zip(distances.chunks_exact(clusters)) {
                let best = nearest(row, |_| true).unwrap();
                // Whoever isn't with its nearest centre was sent away by a cluster that stayed full.
                prop_assert!(best == *label as usize || sizes[best] == cap, "{sizes:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_cluster_is_left_too_small_or_too_large(
            (clusters, distances) in (1usize..6).prop_flat_map(|clusters| {
                (Just(clusters), prop::collection::vec(0.0f32..10.0, clusters..clusters * 40))
            }),
            (above, below) in (1.0f64..2.0, 0.0f64..1.0),
        ) {
            let mean = (distances.len() / clusters) as f64 / clusters as f64;
            let bounds = Bounds { least: (mean * below) as u64, most: (mean * above).ceil() as u64 };
            let found = assign(&distances[..distances.len() / clusters * clusters], clusters, None, bounds);
            for cluster in 0..clusters as u32 {
                let size = found.labels.iter().filter(|label| **label == cluster).count() as u64;
                prop_assert!((bounds.least..=bounds.most).contains(&size), "{size} outside {bounds:?}");
            }
        }
    }

    #[test]
    fn a_cluster_that_nobody_is_nearest_to_takes_those_who_lose_least() {
        let distances = [0.0, 9.0, 0.0, 2.0, 0.0, 1.0, 0.0, 5.0];
        let found = assign(&distances, 2, None, Bounds { least: 2, most: 4 });
        assert_eq!((found.labels, found.distances), (vec![0, 1, 1, 0], vec![0.0, 2.0, 1.0, 0.0]));
        // A row that weighs too much for its cluster to spare stays; lighter ones go, as far as they suffice.
        let heavy = assign(&distances, 2, Some(&[1, 2, 11, 1]), Bounds { least: 5, most: 15 });
        assert_eq!(heavy.labels, [1, 1, 0, 1]);
    }

    #[test]
    fn a_heavy_row_counts_as_often_as_it_weighs() {
        // All prefer the first centre; the second is little farther for the row of weight 2, much for the others.
        let distances = [0.0, 5.0, 0.0, 1.0, 0.0, 9.0];
        let found = assign(&distances, 2, Some(&[1, 2, 1]), Bounds { least: 0, most: 2 });
        assert_eq!((found.labels, found.distances), (vec![0, 1, 0], vec![0.0, 1.0, 0.0]));
    }
}
