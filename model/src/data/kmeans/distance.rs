//! How far rows lie from centres: plain IEEE arithmetic in a fixed order, so that machines agree on the clusters.

use rayon::prelude::*;

/// Scales a row to length one; one without a direction becomes zero.
pub fn normalise(row: &mut [f32]) {
    let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 && norm.is_finite() {
        row.iter_mut().for_each(|value| *value /= norm);
    } else if !norm.is_finite() {
        row.fill(0.0);
    }
}

/// Summed in eight lanes: a fixed order on every machine that the compiler can still turn into vector instructions.
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
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

/// Squared distances of rows (each of `width` values) from centres, `[rows, centres]`.
pub fn squared_distances(rows: &[f32], centres: &[f32], width: usize) -> Vec<f32> {
    let count = centres.len() / width;
    let mut table = vec![0.0; rows.len() / width * count];
    let each = table.par_chunks_exact_mut(count).zip(rows.par_chunks_exact(width));
    each.for_each(|(distances, row)| {
        for (distance, centre) in distances.iter_mut().zip(centres.chunks_exact(width)) {
            *distance = squared_distance(row, centre);
        }
    });
    table
}

/// The nearest centre of each row, the first of equally near ones, and its squared distance.
pub(super) fn nearest_centres(rows: &[f32], centres: &[f32], width: usize) -> (Vec<u32>, Vec<f32>) {
    let nearest = |row: &[f32]| {
        let distances = centres.chunks_exact(width).map(|centre| squared_distance(row, centre));
        distances.zip(0..).fold(
            (0, f32::INFINITY),
            |best, (distance, label)| {
                if distance < best.1 { (label, distance) } else { best }
            },
        )
    };
    rows.par_chunks_exact(width).map(nearest).unzip()
}
