//! The product on processors with AVX-512.
//!
//! A panel of `b`, 48 columns wide and no deeper than stays in a first cache of 48 KiB, is copied row by row. Eight rows of `a` at a time go past it, read
//! where they are, and their 8x48 sums stay in registers. Meanwhile what comes next of `a` is fetched into the cache. docs/performance.md has numbers
//! beside `gemm`'s.
#![expect(unsafe_code, reason = "a kernel over pointers; its caller has checked the shapes")]

use std::{
    arch::x86_64::{
        __m512, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    },
    array::from_fn,
    mem::MaybeUninit,
    ops::Range,
    ptr,
};

use super::{Matrix, Start};

/// Numbers of a vector.
const LANES: usize = 16;
/// Rows of `a` whose sums are in registers together.
const ROWS: usize = 8;
/// Vectors of columns whose sums are in registers together: with [`ROWS`], 24 of the 32 registers.
const VECTORS: usize = 3;
/// Rows of `b` in a panel, which then takes 36 KiB of a first cache of 48.
const DEPTH: usize = 192;

/// Some columns of some rows of `b`, row by row, in whole vectors.
#[repr(align(64))]
struct Panel([MaybeUninit<f32>; DEPTH * VECTORS * LANES]);

/// What [`Tile::multiply`] works on.
struct Tile {
    depth: usize,
    a: *const f32,
    /// From a row of `a` to the next; or from a column to the next, if a column's numbers are neighbours.
    a_stride: usize,
    panel: *const f32,
    /// What the sums are added to, and from its row to the next; null for nothing.
    start: *const f32,
    start_stride: usize,
    to: *mut f32,
    to_stride: usize,
    scale: f32,
    /// The columns that the last vector has.
    last: __mmask16,
}

/// See [`super::product`].
///
/// # Safety
/// As there; and the processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn product(to: *mut f32, to_stride: usize, a: Matrix, b: Matrix, scale: f32, start: Start) {
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    let (mut start, mut start_stride) = match start {
        Start::Zero => (ptr::null(), 0),
        Start::Itself => (to.cast_const(), to_stride),
        Start::Row(row) => (row.as_ptr(), 0),
    };
    let mut panel = Panel([MaybeUninit::uninit(); DEPTH * VECTORS * LANES]);
    let panel = panel.0.as_mut_ptr().cast::<f32>();
    // In a row of a matrix the numbers are neighbours, or else in a column.
    let rows_follow = a.column_stride == 1;
    for depth in parts(a.columns, DEPTH) {
        for vectors in parts(b.columns.div_ceil(LANES), VECTORS) {
            let columns = vectors.start * LANES..b.columns.min(vectors.end * LANES);
            // SAFETY: rows and columns lie inside of `b`, and the panel has room for them.
            unsafe { pack(b, &depth, &columns, panel) };
            for row in (0..a.rows).step_by(ROWS) {
                let rows = ROWS.min(a.rows - row);
                // SAFETY: row and column lie inside of their matrices, and so do as many rows and columns from there as the tile has.
                unsafe {
                    let tile = Tile {
                        depth: depth.len(),
                        a: a.at(row, depth.start),
                        a_stride: if rows_follow { a.row_stride } else { a.column_stride },
                        panel,
                        start: if start.is_null() { start } else { start.add(row * start_stride + columns.start) },
                        start_stride,
                        to: to.add(row * to_stride + columns.start),
                        to_stride,
                        scale,
                        last: first(columns.len() - (vectors.len() - 1) * LANES),
                    };
                    TILES[usize::from(rows_follow)][vectors.len() - 1][rows - 1](&tile);
                }
            }
        }
        // What further rows of `b` give is added.
        (start, start_stride) = (to, to_stride);
    }
}

impl Matrix<'_> {
    /// Where a number stands.
    fn at(&self, row: usize, column: usize) -> *const f32 {
        self.numbers.as_ptr().wrapping_add(row * self.row_stride + column * self.column_stride)
    }
}

/// `total` in equal parts of at most so many; one empty part of nothing.
fn parts(total: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = total.div_ceil(most).max(1);
    (0..count).map(move |part| part * total / count..(part + 1) * total / count)
}

/// The mask of a vector's first numbers.
fn first(numbers: usize) -> __mmask16 {
    __mmask16::MAX >> (LANES - numbers)
}

/// Copies these rows and columns of a matrix to whole vectors, row by row; what the last vector of a row has beyond them is zero.
///
/// # Safety
/// Rows and columns lie inside of the matrix, and there is room for them.
#[target_feature(enable = "avx512f")]
unsafe fn pack(matrix: Matrix, rows: &Range<usize>, columns: &Range<usize>, to: *mut f32) {
    let Matrix { row_stride, column_stride, .. } = matrix;
    let from = matrix.at(rows.start, columns.start);
    let stride = columns.len().next_multiple_of(LANES);
    // SAFETY: as the caller vouches; masked loads read nothing beyond.
    unsafe {
        if column_stride == 1 {
            for row in 0..rows.len() {
                for column in (0..columns.len()).step_by(LANES) {
                    let mask = first(LANES.min(columns.len() - column));
                    let numbers = _mm512_maskz_loadu_ps(mask, from.add(row * row_stride + column));
                    _mm512_storeu_ps(to.add(row * stride + column), numbers);
                }
            }
            return;
        }
        for column in (0..columns.len()).step_by(LANES) {
            let width = LANES.min(columns.len() - column);
            for row in (0..rows.len()).step_by(LANES) {
                let height = LANES.min(rows.len() - row);
                let from = from.add(row + column * column_stride);
                let square = transposed(from_fn(|column| match column < width {
                    true => _mm512_maskz_loadu_ps(first(height), from.add(column * column_stride)),
                    false => _mm512_setzero_ps(),
                }));
                for (below, numbers) in square.into_iter().take(height).enumerate() {
                    _mm512_storeu_ps(to.add((row + below) * stride + column), numbers);
                }
            }
        }
    }
}

/// The transposed of 16 rows of 16 numbers.
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let pairs = |vector| _mm512_castps_pd(vector);
    let singles = |vector| _mm512_castpd_ps(vector);
    // In each quarter of a vector a 4x4 matrix is transposed: of rows 4 i to 4 i + 3, vector 4 i + j gets columns j, 4 + j, 8 + j and 12 + j.
    let mut quarters = rows;
    for four in quarters.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (ab, cd) = (pairs(_mm512_unpacklo_ps(a, b)), pairs(_mm512_unpacklo_ps(c, d)));
        let (ab_high, cd_high) = (pairs(_mm512_unpackhi_ps(a, b)), pairs(_mm512_unpackhi_ps(c, d)));
        *four = [
            singles(_mm512_unpacklo_pd(ab, cd)),
            singles(_mm512_unpackhi_pd(ab, cd)),
            singles(_mm512_unpacklo_pd(ab_high, cd_high)),
            singles(_mm512_unpackhi_pd(ab_high, cd_high)),
        ];
    }
    // Then, for each j, the 4x4 matrix of quarters.
    let mut columns = rows;
    for j in 0..4 {
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let [a, b, c, d] = [quarters[j], quarters[4 + j], quarters[8 + j], quarters[12 + j]];
        let (ab, cd) = (_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<EVEN>(c, d));
        let (ab_odd, cd_odd) = (_mm512_shuffle_f32x4::<ODD>(a, b), _mm512_shuffle_f32x4::<ODD>(c, d));
        columns[j] = _mm512_shuffle_f32x4::<EVEN>(ab, cd);
        columns[4 + j] = _mm512_shuffle_f32x4::<EVEN>(ab_odd, cd_odd);
        columns[8 + j] = _mm512_shuffle_f32x4::<ODD>(ab, cd);
        columns[12 + j] = _mm512_shuffle_f32x4::<ODD>(ab_odd, cd_odd);
    }
    columns
}

impl Tile {
    /// Writes `R` rows of `V` vectors. In a row of `a` the numbers are neighbours, or else in a column.
    ///
    /// # Safety
    /// The pointers lead to as many rows and columns as it says, and the processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply<const R: usize, const V: usize, const ROWS_FOLLOW: bool>(&self) {
        let Self { depth, a, a_stride, panel, start, start_stride, to, to_stride, scale, last } = *self;
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        // SAFETY: as the caller vouches; what is masked out is neither read nor written.
        unsafe {
            for row in 0..R {
                for vector in 0..V {
                    _mm_prefetch::<_MM_HINT_T0>(to.add(row * to_stride + vector * LANES).cast_const().cast());
                }
            }
            for inner in 0..depth {
                // Of what the next tile reads, a line of each row; or of the columns, one that comes up after some 400 cycles.
                if ROWS_FOLLOW && inner % LANES == 0 {
                    for row in R..2 * R {
                        _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(row * a_stride + inner).cast());
                    }
                } else if !ROWS_FOLLOW {
                    _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add((inner + 32) * a_stride).cast());
                }
                let b: [__m512; V] = from_fn(|vector| _mm512_loadu_ps(panel.add((inner * V + vector) * LANES)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = a.add(if ROWS_FOLLOW { row * a_stride + inner } else { inner * a_stride + row });
                    let a = _mm512_set1_ps(*a);
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
            }
            let scale = _mm512_set1_ps(scale);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    let mask = if vector + 1 == V { last } else { __mmask16::MAX };
                    let result = if start.is_null() {
                        _mm512_mul_ps(sum, scale)
                    } else {
                        let start = start.add(row * start_stride + vector * LANES);
                        _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, start))
                    };
                    _mm512_mask_storeu_ps(to.add(row * to_stride + vector * LANES), mask, result);
                }
            }
        }
    }
}

/// A [`Tile::multiply`].
type Multiply = unsafe fn(&Tile);

/// Each by whether the numbers of a row of `a` are neighbours, by vectors and by rows, one less of each.
static TILES: [[[Multiply; ROWS]; VECTORS]; 2] = {
    macro_rules! of_rows {
        ($vectors:literal, $rows_follow:literal) => {
            [
                Tile::multiply::<1, $vectors, $rows_follow>,
                Tile::multiply::<2, $vectors, $rows_follow>,
                Tile::multiply::<3, $vectors, $rows_follow>,
                Tile::multiply::<4, $vectors, $rows_follow>,
                Tile::multiply::<5, $vectors, $rows_follow>,
                Tile::multiply::<6, $vectors, $rows_follow>,
                Tile::multiply::<7, $vectors, $rows_follow>,
                Tile::multiply::<8, $vectors, $rows_follow>,
            ]
        };
    }
    [
        [of_rows!(1, false), of_rows!(2, false), of_rows!(3, false)],
        [of_rows!(1, true), of_rows!(2, true), of_rows!(3, true)],
    ]
};
