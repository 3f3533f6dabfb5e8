//! Dense matrices in slices, and their products.
//!
//! Each product runs on the calling thread or on several threads of its pool. Results do not depend
//! on their number, nor on the vectors and caches of the processor: every number is a sum of fused
//! products in the order of the inner dimension, in parts of at most 512.

use gemm::Parallelism;

/// Most terms of a sum before it is added to the destination. The `gemm` crate never divides sums of
/// this length; it divides longer ones by the sizes of the processor's caches and vectors, and the
/// results differ in the last bits.
const INNER: usize = 512;

/// Most numbers of a product for which the `gemm` crate adds up within vectors.
const FEW: usize = 256;

/// A strided matrix in a slice.
#[derive(Clone, Copy)]
pub struct View<'a, T = f32> {
    numbers: &'a [T],
    rows: usize,
    columns: usize,
    /// Row stride and column stride.
    steps: (usize, usize),
}

impl<'a, T> View<'a, T> {
    /// `rows` rows of `columns` numbers each, with a stride of `step` numbers.
    pub fn new(numbers: &'a [T], rows: usize, columns: usize, step: usize) -> View<'a, T> {
        View {
            numbers,
            rows,
            columns,
            steps: (step, 1),
        }
    }

    /// The transpose.
    pub fn transposed(self) -> View<'a, T> {
        View {
            numbers: self.numbers,
            rows: self.columns,
            columns: self.rows,
            steps: (self.steps.1, self.steps.0),
        }
    }

    /// A range of rows.
    pub fn range(self, rows: std::ops::Range<usize>) -> View<'a, T> {
        View {
            numbers: &self.numbers[rows.start * self.steps.0..],
            rows: rows.len(),
            ..self
        }
    }

    /// The numbers, row by row.
    pub fn to_vec(self) -> Vec<T>
    where
        T: Copy,
    {
        let (rows, columns) = self.steps;
        let mut all = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            match columns {
                1 => all.extend_from_slice(&self.numbers[row * rows..][..self.columns]),
                _ => {
                    let places = (0..self.columns).map(|column| row * rows + column * columns);
                    all.extend(places.map(|place| self.numbers[place]));
                }
            }
        }
        all
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// `rows` rows, of which a single one is repeated.
    fn with_rows(self, rows: usize) -> View<'a, T> {
        match self.rows {
            1 => View {
                rows,
                steps: (0, self.steps.1),
                ..self
            },
            _ => self,
        }
    }

    fn is_inside(&self) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        (self.rows - 1) * self.steps.0 + (self.columns - 1) * self.steps.1 < self.numbers.len()
    }
}

/// f32 or f64.
pub trait Number: Copy + Default + Send + Sync + 'static {
    /// 0, 1 and -1.
    const SIGNS: [Self; 3];
}

impl Number for f32 {
    const SIGNS: [f32; 3] = [0.0, 1.0, -1.0];
}

impl Number for f64 {
    const SIGNS: [f64; 3] = [0.0, 1.0, -1.0];
}

/// Destination of a product.
struct Place<'o, T> {
    out: &'o mut [T],
    /// Row stride.
    step: usize,
}

/// Effect of a product on its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Overwrites it.
    Replace,
    /// Is added to it.
    Add,
    /// Is subtracted from it.
    Subtract,
}

/// `out = a b`, with a row stride of `step`; numbers between rows are unchanged. `split` is the
/// maximum number of threads and does not affect the result.
///
/// # Panics
/// If the shapes do not match each other or the slices.
pub fn multiply<T: Number>(
    a: View<'_, T>,
    b: View<'_, T>,
    out: &mut [T],
    step: usize,
    split: usize,
) {
    product(a, b, Place { out, step }, split, Effect::Replace);
}

/// `out -= a b`; otherwise as [`multiply`].
///
/// # Panics
/// If the shapes do not match each other or the slices.
pub(crate) fn subtract_product<T: Number>(
    a: View<'_, T>,
    b: View<'_, T>,
    out: &mut [T],
    step: usize,
    split: usize,
) {
    product(a, b, Place { out, step }, split, Effect::Subtract);
}

/// `out += a b`; otherwise as [`multiply`].
///
/// # Panics
/// If the shapes do not match each other or the slices.
pub fn add_product<T: Number>(
    a: View<'_, T>,
    b: View<'_, T>,
    out: &mut [T],
    step: usize,
    split: usize,
) {
    product(a, b, Place { out, step }, split, Effect::Add);
}

/// Adds to `out[i][j]` the product of column `i` of `left` with column `j` of `right`, for `i` in
/// `some` and `j >= from`: some rows of `left^T right`, both `[n, columns]`. Runs on the calling
/// thread; `out` is `[some.len(), columns - from]`.
///
/// # Panics
/// If the lengths are inconsistent.
pub(crate) fn add_columns_times_columns(
    [left, right]: [&[f32]; 2],
    columns: usize,
    some: std::ops::Range<usize>,
    from: usize,
    out: &mut [f32],
) {
    let n = left.len() / columns;
    assert!(
        left.len().is_multiple_of(columns) && left.len() == right.len(),
        "rows of {columns} columns"
    );
    assert!(
        some.end <= columns && from < columns,
        "columns {some:?} and from {from} on, of {columns}"
    );
    if n == 0 {
        return;
    }
    let right = View::new(&right[from..], n, columns - from, columns);
    let left = View::new(&left[some.start..], n, some.len(), columns);
    product(
        left.transposed(),
        right,
        Place {
            out,
            step: columns - from,
        },
        1,
        Effect::Add,
    );
}

fn product<T: Number>(
    a: View<'_, T>,
    b: View<'_, T>,
    place: Place<'_, T>,
    split: usize,
    effect: Effect,
) {
    let Place { out, step } = place;
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(
        b.rows == k && a.is_inside() && b.is_inside(),
        "a product of {m} x {k} and {} x {n}",
        b.rows
    );
    assert!(
        m == 0 || n == 0 || (step >= n && (m - 1) * step + n <= out.len()),
        "a product of {m} x {n} does not fit"
    );
    let [zero, ..] = T::SIGNS;
    if m == 0 || n == 0 || k == 0 {
        if effect == Effect::Replace {
            out.chunks_mut(step.max(1))
                .take(m)
                .for_each(|row| row[..n].fill(zero));
        }
        return;
    }
    // For single rows, single columns and few numbers, `gemm` has routines whose order of additions
    // depends on the width of vectors. So a row or column is taken twice, and few numbers are taken
    // from `b` in rows.
    let (rows, columns) = (m.max(2), n.max(2));
    let a = a.with_rows(rows);
    let b = b.transposed().with_rows(columns).transposed();
    let copy;
    let b = if rows * columns <= FEW {
        copy = b.to_vec();
        View::new(&copy, k, columns, columns)
    } else {
        b
    };
    if (rows, columns) == (m, n) {
        return in_parts(a, b, Place { out, step }, split, effect);
    }
    let mut result = vec![zero; rows * columns];
    for (at, number) in result.iter_mut().enumerate() {
        *number = out[(at / columns).min(m - 1) * step + (at % columns).min(n - 1)];
    }
    let place = Place {
        out: &mut result,
        step: columns,
    };
    in_parts(a, b, place, split, effect);
    for row in 0..m {
        out[row * step..][..n].copy_from_slice(&result[row * columns..][..n]);
    }
}

/// A product in parts of the inner dimension.
fn in_parts<T: Number>(
    a: View<'_, T>,
    b: View<'_, T>,
    place: Place<'_, T>,
    split: usize,
    effect: Effect,
) {
    let Place { out, step } = place;
    let [zero, one, minus_one] = T::SIGNS;
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let parallelism = if split > 1 {
        Parallelism::Rayon(split)
    } else {
        Parallelism::None
    };
    let factor = match effect {
        Effect::Replace | Effect::Add => one,
        Effect::Subtract => minus_one,
    };
    let most = k.div_ceil(k.div_ceil(INNER));
    for start in (0..k).step_by(most) {
        let part = most.min(k - start);
        let is_kept = effect != Effect::Replace || start > 0;
        // SAFETY: every number of the three matrices is inside its slice, as checked in `product`,
        // and `out` is borrowed exclusively.
        unsafe {
            gemm::gemm(
                m,
                n,
                part,
                out.as_mut_ptr(),
                1,
                step as isize,
                is_kept,
                a.numbers[start * a.steps.1..].as_ptr(),
                a.steps.1 as isize,
                a.steps.0 as isize,
                b.numbers[start * b.steps.0..].as_ptr(),
                b.steps.1 as isize,
                b.steps.0 as isize,
                if is_kept { one } else { zero },
                factor,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views_are_multiplied() {
        // 2 x 3 in rows of 4, times 3 x 2 as the transpose of 2 x 3, into rows of 3.
        let a = [1.0, 2.0, 3.0, 99.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 2.0, 0.0, 1.0, 1.0];
        let mut out = [7.0; 5];
        multiply(
            View::new(&a, 2, 3, 4),
            View::new(&b, 2, 3, 3).transposed(),
            &mut out,
            3,
            1,
        );
        assert_eq!(out, [7.0, 5.0, 7.0, 16.0, 11.0]);
        multiply(
            View::new(&a, 2, 0, 4),
            View::new(&b, 0, 2, 2),
            &mut out,
            3,
            1,
        );
        assert_eq!(out, [0.0, 0.0, 7.0, 0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn products_beyond_the_slice_are_refused() {
        multiply(
            View::new(&[1.0; 4], 2, 2, 2),
            View::new(&[1.0; 4], 2, 2, 2),
            &mut [0.0; 3],
            2,
            1,
        );
    }

    #[test]
    #[should_panic(expected = "a product of")]
    fn views_beyond_the_slice_are_refused() {
        multiply(
            View::new(&[1.0; 4], 2, 2, 3),
            View::new(&[1.0; 4], 2, 2, 2),
            &mut [0.0; 4],
            2,
            1,
        );
    }

    #[test]
    fn column_products_are_added_by_panel() {
        let rows = [1.0, 2.0, 3.0, -1.0, 0.5, 4.0];
        let mut out = [100.0; 2];
        add_columns_times_columns([&rows, &rows], 3, 1..2, 1, &mut out);
        assert_eq!(out, [100.0 + 4.0 + 0.25, 100.0 + 6.0 + 2.0]);
        add_columns_times_columns([&[], &[]], 3, 1..2, 1, &mut out);
        assert_eq!(out, [104.25, 108.0]);
        let mut other = [0.0; 6];
        add_columns_times_columns(
            [&rows, &[1.0, 0.0, 2.0, 0.0, 1.0, 0.0]],
            3,
            1..3,
            0,
            &mut other,
        );
        assert_eq!(other, [2.0, 0.5, 4.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn sums_have_the_same_order_on_every_processor() {
        // Fused multiplications and additions, one after the other, in equal parts of at most INNER.
        let in_order = |a: &[f32], b: &[f32], start: f32| -> f32 {
            let part = a.len().div_ceil(a.len().div_ceil(INNER));
            let parts = a.chunks(part).zip(b.chunks(part));
            parts.fold(start, |all, (a, b)| {
                let pairs = a.iter().zip(b);
                all + pairs.fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
            })
        };
        if cfg!(target_arch = "x86_64") && !std::is_x86_feature_detected!("fma") {
            return;
        }
        let numbers = |count: usize, step: usize| -> Vec<f32> {
            (0..count)
                .map(|i| ((i * step) % 1009) as f32 / 1009.0 - 0.5)
                .collect()
        };
        for (m, n, k) in [
            (1, 1, 3),
            (1, 40, 300),
            (40, 1, 700),
            (2, 17, 513),
            (33, 65, 1536),
            (70, 5, 512),
            (300, 1, 100),
            (1, 500, 600),
            (16, 16, 40),
        ] {
            let (a, b, before) = (
                numbers(m * k, 7919),
                numbers(n * k, 104_729),
                numbers(m * n, 31),
            );
            let (a_view, b_view) = (View::new(&a, m, k, k), View::new(&b, n, k, k).transposed());
            let [mut out, mut added] = [(); 2].map(|()| before.clone());
            multiply(a_view, b_view, &mut out, n, 1);
            add_product(a_view, b_view, &mut added, n, 1);
            for (at, (out, added)) in out.iter().zip(added).enumerate() {
                let (a, b) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
                assert_eq!(*out, in_order(a, b, 0.0), "{m} x {n} x {k}");
                assert_eq!(added, in_order(a, b, before[at]), "{m} x {n} x {k}, added");
            }
        }
    }

    #[test]
    fn products_are_subtracted_in_both_precisions() {
        let (a, b) = ([1.0f64, 2.0, 3.0, 4.0], [1.0f64, 0.0, 1.0, 1.0]);
        let mut out = [10.0f64; 5];
        subtract_product(
            View::new(&a, 2, 2, 2),
            View::new(&b, 2, 2, 2),
            &mut out,
            3,
            1,
        );
        assert_eq!(out, [7.0, 8.0, 10.0, 3.0, 6.0]);
        let mut kept = [1.0f32; 4];
        subtract_product(
            View::new(&[1.0; 4], 2, 0, 2),
            View::new(&[], 0, 2, 2),
            &mut kept,
            2,
            1,
        );
        assert_eq!(kept, [1.0; 4]);
    }
}
