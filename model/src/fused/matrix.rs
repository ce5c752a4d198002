//! Products of matrices that are views into rows of numbers.

use gemm::Parallelism;

/// A matrix whose rows or columns follow each other at a fixed distance.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// All of `numbers`, row by row.
    pub(crate) fn new(numbers: &'a [f32], columns: usize) -> Self {
        Self::strided(numbers, numbers.len() / columns, columns, columns)
    }

    /// `columns` numbers of each row, the rows `row_stride` apart.
    ///
    /// # Panics
    /// If the last row ends beyond `numbers`.
    pub(crate) fn strided(numbers: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_inside(numbers.len(), rows, columns, row_stride);
        Self { numbers, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed.
    pub(crate) fn t(self) -> Self {
        let Self { numbers, rows, columns, row_stride, column_stride } = self;
        Self { numbers, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// `self b`, row by row.
    #[expect(unsafe_code, reason = "the result's memory need not be zeroed before it is written")]
    pub(crate) fn times(self, b: Matrix) -> Vec<f32> {
        let mut result = Vec::with_capacity(self.rows * b.columns);
        // SAFETY: the vector has room for the rows, and all of it is written before it is read.
        unsafe {
            product(result.as_mut_ptr(), b.columns, self, b, 1.0, false);
            result.set_len(self.rows * b.columns);
        }
        result
    }
}

/// A matrix to write to, row by row.
pub(crate) struct MatrixMut<'a> {
    numbers: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// All of `numbers`.
    pub(crate) fn new(numbers: &'a mut [f32], columns: usize) -> Self {
        let rows = numbers.len() / columns;
        Self::strided(numbers, rows, columns, columns)
    }

    /// `columns` numbers of each row, the rows `row_stride` apart.
    ///
    /// # Panics
    /// If the last row ends beyond `numbers`.
    pub(crate) fn strided(numbers: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_inside(numbers.len(), rows, columns, row_stride);
        Self { numbers, rows, columns, row_stride }
    }

    /// Becomes `scale a b`.
    pub(crate) fn set(self, a: Matrix, b: Matrix, scale: f32) {
        self.product(a, b, scale, false);
    }

    /// Grows by `a b`.
    pub(crate) fn add(self, a: Matrix, b: Matrix) {
        self.product(a, b, 1.0, true);
    }

    #[expect(unsafe_code, reason = "the product takes pointers")]
    fn product(self, a: Matrix, b: Matrix, scale: f32, add: bool) {
        assert_eq!((self.rows, self.columns), (a.rows, b.columns), "shape of a matrix product");
        // SAFETY: `strided` has checked that the view lies inside its numbers, which are borrowed mutably and initialised.
        unsafe { product(self.numbers.as_mut_ptr(), self.row_stride, a, b, scale, add) }
    }
}

/// Writes `scale a b` to the rows at `to`, `row_stride` apart; or adds it, if so told.
///
/// # Safety
/// The rows are this function's alone to write, and initialised if they are added to.
#[expect(unsafe_code, reason = "the product takes pointers; the views' strides are checked where they are made")]
unsafe fn product(to: *mut f32, row_stride: usize, a: Matrix, b: Matrix, scale: f32, add: bool) {
    assert_eq!(a.columns, b.rows, "shapes of a matrix product");
    // SAFETY: `strided` has checked that both views lie inside their numbers, and transposing keeps that; for the rest the caller vouches.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            to,
            1,
            row_stride as isize,
            add,
            a.numbers.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.numbers.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            // The samples of a batch are shared among threads further up.
            Parallelism::None,
        );
    }
}

fn assert_inside(len: usize, rows: usize, columns: usize, row_stride: usize) {
    assert!(rows == 0 || (rows - 1) * row_stride + columns <= len, "a view of {rows} rows ends beyond its numbers");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views_are_those_of_their_numbers() {
        // The columns 1..3 of a 2x4 matrix, times its transposed.
        let numbers = [0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0];
        let view = Matrix::strided(&numbers[1..], 2, 2, 4);
        let mut result = [1.0; 4];
        MatrixMut::new(&mut result, 2).add(view, view.t());
        assert_eq!(result, [6.0, 12.0, 12.0, 26.0]);
        MatrixMut::new(&mut result, 2).set(view.t(), view, 2.0);
        assert_eq!(result, [20.0, 28.0, 28.0, 40.0]);
        assert_eq!(view.times(view.t()), [5.0, 11.0, 11.0, 25.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its numbers")]
    fn a_view_beyond_its_numbers_is_refused() {
        Matrix::strided(&[0.0; 7], 2, 4, 4);
    }
}
