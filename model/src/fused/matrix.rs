//! Products of matrices that are views into rows of numbers: by a kernel of our own on Intel's processors with AVX-512, and else by `gemm`.

#[cfg(target_arch = "x86_64")]
mod avx512;

use gemm::Parallelism;

/// Whether the kernel for AVX-512 is used: where the processor has that and is Intel's. Beside `gemm` on others it has not been measured.
#[cfg(target_arch = "x86_64")]
static AVX512_KERNEL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
    let vendor = raw_cpuid::CpuId::new().get_vendor_info();
    avx512_is_there() && vendor.is_some_and(|vendor| vendor.as_str() == "GenuineIntel")
});

#[cfg(target_arch = "x86_64")]
fn avx512_is_there() -> bool {
    matches!(*crate::vector::ARCH, pulp::Arch::V4(_))
}

/// A matrix whose rows or columns follow each other at a fixed distance: the numbers of the one or the other are neighbours.
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
    pub(crate) fn times(self, b: Matrix) -> Vec<f32> {
        self.product(b, Start::Zero)
    }

    /// `self b`, and `row` added to each row.
    ///
    /// # Panics
    /// If `row` has not as many numbers as a row.
    pub(crate) fn times_plus(self, b: Matrix, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len(), b.columns, "numbers to add to a row of a matrix product");
        self.product(b, Start::Row(row))
    }

    #[expect(unsafe_code, reason = "the result's memory need not be zeroed before it is written")]
    fn product(self, b: Matrix, start: Start) -> Vec<f32> {
        let mut result = Vec::with_capacity(self.rows * b.columns);
        // SAFETY: the vector has room for the rows, and all of it is written before it is read.
        unsafe {
            product(result.as_mut_ptr(), b.columns, self, b, 1.0, start);
            result.set_len(self.rows * b.columns);
        }
        result
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Start<'a> {
    /// Nothing.
    Zero,
    /// What stands where it is written.
    Itself,
    /// In each row, this.
    Row(&'a [f32]),
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
        self.product(a, b, scale, Start::Zero);
    }

    /// Grows by `a b`.
    pub(crate) fn add(self, a: Matrix, b: Matrix) {
        self.product(a, b, 1.0, Start::Itself);
    }

    #[expect(unsafe_code, reason = "the product takes pointers")]
    fn product(self, a: Matrix, b: Matrix, scale: f32, start: Start) {
        assert_eq!((self.rows, self.columns), (a.rows, b.columns), "shape of a matrix product");
        // SAFETY: `strided` has checked that the view lies inside its numbers, which are borrowed mutably and initialised.
        unsafe { product(self.numbers.as_mut_ptr(), self.row_stride, a, b, scale, start) }
    }
}

/// Writes `scale a b` and its start to the rows at `to`, `row_stride` apart.
///
/// # Safety
/// The rows are this function's alone to write, and initialised if they are the start. A row to start from is as long as they.
#[expect(unsafe_code, reason = "the product takes pointers; the views' strides are checked where they are made")]
unsafe fn product(to: *mut f32, row_stride: usize, a: Matrix, b: Matrix, scale: f32, start: Start) {
    assert_eq!(a.columns, b.rows, "shapes of a matrix product");
    #[cfg(target_arch = "x86_64")]
    if *AVX512_KERNEL {
        // SAFETY: the processor has AVX-512; for the rest the caller vouches.
        return unsafe { avx512::product(to, row_stride, a, b, scale, start) };
    }
    // SAFETY: the caller vouches.
    unsafe { product_of_gemm(to, row_stride, a, b, scale, start) }
}

/// [`product`] for any processor.
///
/// # Safety
/// As there.
#[expect(unsafe_code, reason = "`gemm` takes pointers")]
unsafe fn product_of_gemm(to: *mut f32, row_stride: usize, a: Matrix, b: Matrix, scale: f32, start: Start) {
    if let Start::Row(row) = start {
        for index in 0..a.rows {
            // SAFETY: the rows are the caller's to have written, and `row` is as long as they.
            unsafe { to.add(index * row_stride).copy_from_nonoverlapping(row.as_ptr(), row.len()) };
        }
    }
    // SAFETY: `strided` has checked that both views lie inside their numbers, and transposing keeps that; for the rest the caller vouches.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            to,
            1,
            row_stride as isize,
            !matches!(start, Start::Zero),
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
    use proptest::prelude::*;

    use super::*;

    /// A view into numbers that go on right of its rows, or below its columns if it is transposed, and around it.
    fn view(numbers: &[f32], rows: usize, columns: usize, transposed: bool) -> Matrix<'_> {
        match transposed {
            true => Matrix::strided(&numbers[1..], columns, rows, rows + 3).t(),
            false => Matrix::strided(&numbers[1..], rows, columns, columns + 3),
        }
    }

    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        (0..len as u64).map(|index| ((index * 7919 + seed) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    type Product = unsafe fn(*mut f32, usize, Matrix, Matrix, f32, Start);

    /// All ways to a product that this processor has, whichever is used.
    fn products() -> Vec<Product> {
        let mut products: Vec<Product> = vec![product_of_gemm];
        #[cfg(target_arch = "x86_64")]
        if avx512_is_there() {
            products.push(avx512::product);
        }
        products
    }

    proptest! {
        #[test]
        fn products_are_their_sums_and_touch_nothing_else(
            rows in 1usize..20,
            columns in 1usize..110,
            inner in 0usize..420,
            [transposed_a, transposed_b]: [bool; 2],
            start in 0usize..3,
            seed in 0u64..1000,
        ) {
            let (a, b) = (numbers((rows + 3) * (inner + 3), seed), numbers((inner + 3) * (columns + 3), seed + 1));
            let (a, b) = (view(&a, rows, inner, transposed_a), view(&b, inner, columns, transposed_b));
            let row = numbers(columns, seed + 2);
            let before = numbers(rows * (columns + 2), seed + 3);
            let scale = if start == 0 { 0.5 } else { 1.0 };
            let at = |matrix: Matrix, row: usize, column: usize| {
                f64::from(matrix.numbers[row * matrix.row_stride + column * matrix.column_stride])
            };
            for product in products() {
                let mut result = before.clone();
                let start = [Start::Zero, Start::Itself, Start::Row(&row)][start];
                // SAFETY: the result has as many rows, so far apart, and is initialised.
                #[expect(unsafe_code, reason = "both ways to a product take pointers")]
                unsafe { product(result.as_mut_ptr(), columns + 2, a, b, scale, start) };
                for (place, (result, before)) in result.iter().zip(&before).enumerate() {
                    let (y, x) = (place / (columns + 2), place % (columns + 2));
                    if x >= columns {
                        prop_assert_eq!(result, before);
                        continue;
                    }
                    let first = match start {
                        Start::Zero => 0.0,
                        Start::Itself => *before,
                        Start::Row(row) => row[x],
                    };
                    let terms = (0..inner).map(|k| at(a, y, k) * at(b, k, x));
                    let (sum, magnitude) = terms.fold((0.0, 1.0), |(sum, all), term| (sum + term, all + term.abs()));
                    let expected = f64::from(first) + f64::from(scale) * sum;
                    prop_assert!((f64::from(*result) - expected).abs() < 1e-6 * magnitude, "{result} for {expected} at {y}, {x}");
                }
            }
        }
    }

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
        assert_eq!(view.times_plus(view.t(), &[1.0, 2.0]), [6.0, 13.0, 12.0, 27.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its numbers")]
    fn a_view_beyond_its_numbers_is_refused() {
        Matrix::strided(&[0.0; 7], 2, 4, 4);
    }
}
