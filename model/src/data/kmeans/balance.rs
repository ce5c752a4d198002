//! Rows to centres, so that no cluster exceeds a cap.

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

/// Gives each row to its nearest centre; then clusters above the cap give away those rows whose move costs least.
///
/// `distances` is `[rows, clusters]`; a row counts as often as `weights` says, once where there are none. Rows of weight one always fit under a cap of
/// at least the mean; heavier ones may leave a cluster above it, where none has room for a whole row.
pub fn assign(distances: &[f32], clusters: usize, weights: Option<&[u32]>, cap: u64) -> Assigned {
    let weight = |index: usize| weights.map_or(1, |weights| u64::from(weights[index]));
    let rows = distances.chunks_exact(clusters);
    let mut labels: Vec<u32> = rows.map(|row| nearest(row, |_| true).unwrap_or(0) as u32).collect();
    let mut sizes = vec![0u64; clusters];
    labels.iter().enumerate().for_each(|(index, label)| sizes[*label as usize] += weight(index));

    let offer = |index: usize, label: u32, sizes: &[u64]| {
        let row = &distances[index * clusters..(index + 1) * clusters];
        let target = nearest(row, |cluster| sizes[cluster] + weight(index) <= cap)?;
        // Costs are never negative here, and the bits of such floats order as the floats do.
        let cost = (row[target] - row[label as usize]).max(0.0).to_bits();
        Some(Reverse((cost, index, target)))
    };
    let over = |label: u32, sizes: &[u64]| sizes[label as usize] > cap;
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
        if sizes[target] + weight(index) <= cap {
            sizes[label as usize] -= weight(index);
            sizes[target] += weight(index);
            labels[index] = target as u32;
        } else {
            offers.extend(offer(index, label, &sizes));
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
            let found = assign(distances, clusters, None, cap);
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

    #[test]
    fn a_heavy_row_counts_as_often_as_it_weighs() {
        // All prefer the first centre; the second is little farther for the row of weight 2, much for the others.
        let distances = [0.0, 5.0, 0.0, 1.0, 0.0, 9.0];
        let found = assign(&distances, 2, Some(&[1, 2, 1]), 2);
        assert_eq!((found.labels, found.distances), (vec![0, 1, 0], vec![0.0, 1.0, 0.0]));
    }
}
