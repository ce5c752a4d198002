//! How far rows lie from centres: plain IEEE arithmetic in a fixed order, so that machines agree on the clusters.

use rayon::prelude::*;

use crate::vector::vectorised;

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
#[inline(always)]
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
    let tasks = table.par_chunks_mut(ROWS_A_TASK * count).zip(rows.par_chunks(ROWS_A_TASK * width));
    tasks.for_each(|(table, rows)| vectorised!(fill(table, rows, centres, width)));
    table
}

#[inline(always)]
fn fill(table: &mut [f32], rows: &[f32], centres: &[f32], width: usize) {
    for (distances, row) in table.chunks_exact_mut(centres.len() / width).zip(rows.chunks_exact(width)) {
        for (distance, centre) in distances.iter_mut().zip(centres.chunks_exact(width)) {
            *distance = squared_distance(row, centre);
        }
    }
}

/// Centres side by side in a panel: as many sums are taken at once.
const LANES: usize = 16;
/// Rows that meet a panel together, so that each of its values is loaded once for all of them.
const ROWS_AT_ONCE: usize = 4;
/// Rows that meet all panels one after the other, while they are near.
const ROWS_A_TASK: usize = 64;

/// The nearest centre of each row, and its squared distance.
///
/// A matrix product: the nearest centre is the one whose |c|^2 / 2 - x c is least. Each of its sums runs over the values in their order, whatever the vectors
/// of the machine hold, so machines agree. Of equally near centres the first is taken.
pub(super) fn nearest_centres(rows: &[f32], centres: &[f32], width: usize) -> (Vec<u32>, Vec<f32>) {
    let panels = Panels::new(centres, width);
    let mut labels = vec![0; rows.len() / width];
    let tasks = labels.par_chunks_mut(ROWS_A_TASK).zip(rows.par_chunks(ROWS_A_TASK * width));
    tasks.for_each(|(labels, rows)| vectorised!(panels.nearest(rows, labels)));
    let own = labels.par_iter().zip(rows.par_chunks_exact(width));
    let distances =
        own.map(|(label, row)| squared_distance(row, &centres[*label as usize * width..][..width])).collect();
    (labels, distances)
}

/// Centres, [`LANES`] to a panel: first all their first values, then all their second ones, and so on.
struct Panels {
    columns: Vec<[f32; LANES]>,
    /// |c|^2 / 2; infinite where the last panel has no centre.
    half_norms: Vec<[f32; LANES]>,
    width: usize,
}

impl Panels {
    fn new(centres: &[f32], width: usize) -> Self {
        let panels = (centres.len() / width).div_ceil(LANES);
        let mut columns = vec![[0.0; LANES]; panels * width];
        let mut half_norms = vec![[f32::INFINITY; LANES]; panels];
        for (number, centre) in centres.chunks_exact(width).enumerate() {
            let (panel, lane) = (number / LANES, number % LANES);
            for (column, value) in columns[panel * width..][..width].iter_mut().zip(centre) {
                column[lane] = *value;
            }
            half_norms[panel][lane] = centre.iter().map(|value| value * value).sum::<f32>() / 2.0;
        }
        Self { columns, half_norms, width }
    }

    /// The number of the nearest centre of at most [`ROWS_A_TASK`] rows.
    #[inline(always)]
    fn nearest(&self, rows: &[f32], labels: &mut [u32]) {
        let mut least = [[f32::INFINITY; LANES]; ROWS_A_TASK];
        let mut panel_of_least = [[0u32; LANES]; ROWS_A_TASK];
        let panels = self.columns.chunks_exact(self.width).zip(&self.half_norms);
        for ((panel, half_norms), number) in panels.zip(0..) {
            for first in (0..labels.len()).step_by(ROWS_AT_ONCE) {
                // At the end the last row is taken again.
                let places: [usize; ROWS_AT_ONCE] = std::array::from_fn(|at| (first + at).min(labels.len() - 1));
                let products = products(panel, places.map(|place| &rows[place * self.width..][..self.width]));
                for (place, products) in places.into_iter().zip(products) {
                    let (least, panel_of_least) = (&mut least[place], &mut panel_of_least[place]);
                    for lane in 0..LANES {
                        let score = half_norms[lane] - products[lane];
                        let nearer = score < least[lane];
                        least[lane] = if nearer { score } else { least[lane] };
                        panel_of_least[lane] = if nearer { number } else { panel_of_least[lane] };
                    }
                }
            }
        }
        for (label, (least, panels)) in labels.iter_mut().zip(least.iter().zip(&panel_of_least)) {
            let centres = (0..LANES).map(|lane| (least[lane], panels[lane] * LANES as u32 + lane as u32));
            let nearest = centres.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            *label = nearest.map_or(0, |(_, centre)| centre);
        }
    }
}

/// The scalar products of some rows with the centres of a panel.
///
/// Each row's sums are a value of their own: in an array of arrays the compiler leaves them in memory, twenty times slower.
#[inline(always)]
fn products(panel: &[[f32; LANES]], rows: [&[f32]; ROWS_AT_ONCE]) -> [[f32; LANES]; ROWS_AT_ONCE] {
    let [a, b, c, d] = rows.map(|row| &row[..panel.len()]);
    let [mut with_a, mut with_b, mut with_c, mut with_d] = [[0.0; LANES]; ROWS_AT_ONCE];
    for (at, column) in panel.iter().enumerate() {
        with_a = added(with_a, a[at], column);
        with_b = added(with_b, b[at], column);
        with_c = added(with_c, c[at], column);
        with_d = added(with_d, d[at], column);
    }
    [with_a, with_b, with_c, with_d]
}

/// `sums + value * column`, each of the two rounded.
#[inline(always)]
fn added(sums: [f32; LANES], value: f32, column: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|lane| sums[lane] + value * column[lane])
}
