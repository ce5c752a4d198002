//! Eigenvalues and eigenvectors of symmetric matrices, f64: Householder's reduction to tridiagonal form, then QL with implicit shifts (Golub and Van Loan,
//! Matrix Computations, sections 8.3.1 and 8.3.3; EISPACK's tred2 and tql2).
//!
//! Written here since the libraries that have it bring more than they give: LAPACK a Fortran compiler, nalgebra other features of what candle is built on.

/// Shifts that are tried for one eigenvalue; a few are usual.
const SHIFTS_MAX: usize = 60;

/// The eigenvalues of a symmetric matrix, in no order, and their eigenvectors.
pub(super) struct Eigen {
    /// The eigenvalues.
    pub(super) values: Vec<f64>,
    /// Row i is the unit eigenvector of value i; empty if they were not asked for.
    pub(super) vectors: Vec<f64>,
}

impl Eigen {
    /// Of `matrix`, n x n in any order of its numbers, which must be symmetric and finite.
    pub(super) fn of(matrix: Vec<f64>, n: usize, with_vectors: bool) -> Self {
        let mut reduced = Tridiagonal::of(matrix, n, with_vectors);
        reduced.diagonalise();
        Self { values: reduced.diagonal, vectors: reduced.vectors }
    }
}

struct Tridiagonal {
    n: usize,
    diagonal: Vec<f64>,
    /// Beside the diagonal; the last is 0.
    beside: Vec<f64>,
    /// The transposed transformation, row by row; empty if it is not wanted.
    vectors: Vec<f64>,
}

impl Tridiagonal {
    /// Reflections that bring row after row to tridiagonal form.
    fn of(mut matrix: Vec<f64>, n: usize, with_vectors: bool) -> Self {
        let mut vectors = if with_vectors { identity(n) } else { Vec::new() };
        let mut beside = vec![0.0; n];
        let mut product = vec![0.0; n];
        for k in 0..n.saturating_sub(1) {
            let mut reflector: Vec<f64> = matrix[k * n + k + 1..][..n - k - 1].to_vec();
            let norm = dot(&reflector, &reflector).sqrt();
            let length = if reflector[0] > 0.0 { -norm } else { norm };
            beside[k] = length;
            reflector[0] -= length;
            let square = dot(&reflector, &reflector);
            if square == 0.0 {
                continue;
            }
            let beta = 2.0 / square;
            let product = &mut product[..n - k - 1];
            for (row, value) in product.iter_mut().enumerate() {
                *value = beta * dot(&matrix[(k + 1 + row) * n + k + 1..][..n - k - 1], &reflector);
            }
            let half = beta / 2.0 * dot(product, &reflector);
            product.iter_mut().zip(&reflector).for_each(|(value, along)| *value -= half * along);
            for row in 0..n - k - 1 {
                let (ours, theirs) = (reflector[row], product[row]);
                let numbers = &mut matrix[(k + 1 + row) * n + k + 1..][..n - k - 1];
                for ((number, reflector), product) in numbers.iter_mut().zip(&reflector).zip(&*product) {
                    *number -= ours * product + theirs * reflector;
                }
            }
            if with_vectors {
                reflect(&mut vectors[(k + 1) * n..], n, &reflector, beta);
            }
        }
        let diagonal = (0..n).map(|k| matrix[k * n + k]).collect();
        Self { n, diagonal, beside, vectors }
    }

    /// Rotations that take what is beside the diagonal away.
    fn diagonalise(&mut self) {
        for first in 0..self.n {
            for _ in 0..SHIFTS_MAX {
                let last = self.block(first);
                if last == first {
                    break;
                }
                self.shift(first, last);
            }
        }
    }

    /// The last row of the block that begins at `first`: after it what is beside the diagonal is nothing but rounding.
    fn block(&self, first: usize) -> usize {
        let is_end = |row: &usize| {
            let size = self.diagonal[*row].abs() + self.diagonal[row + 1].abs();
            self.beside[*row].abs() <= f64::EPSILON * size
        };
        (first..self.n - 1).find(is_end).unwrap_or(self.n - 1)
    }

    /// One implicit QL step on rows `first` to `last`.
    fn shift(&mut self, first: usize, last: usize) {
        let Self { n, diagonal, beside, vectors } = self;
        let slope = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
        let mut g = diagonal[last] - diagonal[first] + beside[first] / (slope + slope.hypot(1.0).copysign(slope));
        let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
        for row in (first..last).rev() {
            let (f, b) = (sine * beside[row], cosine * beside[row]);
            let radius = f.hypot(g);
            beside[row + 1] = radius;
            if radius == 0.0 {
                // The block falls in two here.
                diagonal[row + 1] -= moved;
                beside[last] = 0.0;
                return;
            }
            (sine, cosine) = (f / radius, g / radius);
            g = diagonal[row + 1] - moved;
            let r = (diagonal[row] - g) * sine + 2.0 * cosine * b;
            moved = sine * r;
            diagonal[row + 1] = g + moved;
            g = cosine * r - b;
            if !vectors.is_empty() {
                let (above, below) = vectors[row * *n..][..2 * *n].split_at_mut(*n);
                for (above, below) in above.iter_mut().zip(below) {
                    let old = *below;
                    *below = sine * *above + cosine * old;
                    *above = cosine * *above - sine * old;
                }
            }
        }
        diagonal[first] -= moved;
        beside[first] = g;
        beside[last] = 0.0;
    }
}

/// Applies the reflection I - beta v v^T to rows of length n from the left.
fn reflect(rows: &mut [f64], n: usize, reflector: &[f64], beta: f64) {
    let mut sum = vec![0.0; n];
    for (row, along) in rows.chunks_exact(n).zip(reflector) {
        sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += along * number);
    }
    for (row, along) in rows.chunks_exact_mut(n).zip(reflector) {
        let share = beta * along;
        row.iter_mut().zip(&sum).for_each(|(number, sum)| *number -= share * sum);
    }
}

fn identity(n: usize) -> Vec<f64> {
    let mut numbers = vec![0.0; n * n];
    numbers.iter_mut().step_by(n + 1).for_each(|number| *number = 1.0);
    numbers
}

/// Four sums at once, so that the processor's vectors are used.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (blocks, rest) = a.as_chunks::<4>();
    let (others, others_rest) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (a, b) in blocks.iter().zip(others) {
        (0..4).for_each(|lane| sums[lane] += a[lane] * b[lane]);
    }
    sums.iter().sum::<f64>() + rest.iter().zip(others_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// A symmetric matrix of this rank.
    fn matrix(n: usize, rank: usize) -> Vec<f64> {
        let factor = Stream::seeded(n as u64, "symmetric").normals(n * rank);
        let row = |i: usize| &factor[i * rank..][..rank];
        let product = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (0..n * n).map(|at| product(at / n, at % n)).collect()
    }

    #[test]
    fn vectors_and_values_make_the_matrix_again() {
        for (n, rank) in [(1, 1), (2, 2), (3, 1), (30, 30), (40, 7)] {
            let matrix = matrix(n, rank);
            let Eigen { values, vectors } = Eigen::of(matrix.clone(), n, true);
            let vector = |k: usize| &vectors[k * n..][..n];
            for i in 0..n {
                for j in 0..n {
                    let made: f64 = (0..n).map(|k| values[k] * vector(k)[i] * vector(k)[j]).sum();
                    assert!((made - matrix[i * n + j]).abs() < 1e-10 * n as f64, "{n} {rank}: {made}");
                    let unit = if i == j { 1.0 } else { 0.0 };
                    assert!((dot(vector(i), vector(j)) - unit).abs() < 1e-10);
                }
            }
            assert_eq!(values.iter().filter(|value| value.abs() > 1e-9).count(), rank);
            let mut alone = Eigen::of(matrix, n, false).values;
            let mut sorted = values;
            alone.sort_by(f64::total_cmp);
            sorted.sort_by(f64::total_cmp);
            assert!(alone.iter().zip(&sorted).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }

    #[test]
    fn a_diagonal_and_a_null_matrix_are_their_own_answer() {
        let mut values = Eigen::of(vec![3.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 2.0], 3, true).values;
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [-1.0, 2.0, 3.0]);
        assert_eq!(Eigen::of(vec![0.0; 16], 4, true).values, [0.0; 4]);
    }
}
