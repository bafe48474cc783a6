//! Matrix products in f32 and f64 over row-major and transposed operands. The one place that calls the GEMM crate.

use crate::Real;

/// A matrix in a slice: element (i, j) is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, R> {
    data: &'a [R],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Whether a matrix of such rows lies in so many elements; sizes that can't be counted don't.
fn is_inside(rows: usize, cols: usize, stride: usize, len: usize) -> bool {
    let end = || (rows - 1).checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || end().is_some_and(|end| end <= len)
}

impl<'a, R: Real> Mat<'a, R> {
    /// A row-major matrix `[rows, cols]` whose rows are `stride` apart.
    pub fn strided(data: &'a [R], rows: usize, cols: usize, stride: usize) -> Mat<'a, R> {
        assert!(is_inside(rows, cols, stride, data.len()), "matrix outside its data");
        Mat { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub fn new(data: &'a [R], rows: usize, cols: usize) -> Mat<'a, R> {
        Mat::strided(data, rows, cols, cols)
    }

    pub fn t(self) -> Mat<'a, R> {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A row-major destination `[rows, cols]` whose rows are `stride` apart.
pub(crate) struct MatMut<'a, R> {
    data: &'a mut [R],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, R: Real> MatMut<'a, R> {
    pub fn strided(data: &'a mut [R], rows: usize, cols: usize, stride: usize) -> MatMut<'a, R> {
        assert!(is_inside(rows, cols, stride, data.len()), "matrix outside its data");
        assert!(rows <= 1 || stride >= cols, "rows of a destination overlap");
        MatMut { data, rows, cols, stride }
    }

    pub fn new(data: &'a mut [R], rows: usize, cols: usize) -> MatMut<'a, R> {
        MatMut::strided(data, rows, cols, cols)
    }
}

/// Whether a product uses the thread pool. The sums' order does not depend on it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Threads {
    One,
    All,
}

/// c = beta·c + alpha·a·b; with `beta` = 0 the old contents of c are not read.
pub(crate) fn matmul<R: Real>(
    c: MatMut<'_, R>,
    a: Mat<'_, R>,
    b: Mat<'_, R>,
    alpha: R,
    beta: R,
    threads: Threads,
) {
    assert!(
        a.rows == c.rows && b.cols == c.cols && a.cols == b.rows,
        "shapes of a matrix product do not fit"
    );
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::All if rayon::current_num_threads() > 1 => {
            gemm::Parallelism::Rayon(rayon::current_num_threads())
        }
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `Mat` and `MatMut` are only made with every element in bounds of their slices, the shapes agree, the
    // destination is borrowed mutably and its rows do not overlap.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            beta != R::zero(),
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_the_definition_for_any_layout() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 1, 33), (1, 65, 9), (64, 48, 100), (5, 4, 0)] {
            let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.37).sin()).collect();
            let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.73).cos()).collect();
            let at: Vec<f64> = (0..k * m).map(|i| a[(i % m.max(1)) * k + i / m.max(1)]).collect();
            let mut expected = vec![0.5; m * n];
            for i in 0..m {
                for j in 0..n {
                    expected[i * n + j] =
                        2.0 * 0.5 + 3.0 * (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
                }
            }
            for a in [Mat::new(&a, m, k), Mat::new(&at, k, m).t()] {
                let mut c = vec![0.5; m * n];
                matmul(MatMut::new(&mut c, m, n), a, Mat::new(&b, k, n), 3.0, 2.0, Threads::All);
                for (c, e) in c.iter().zip(&expected) {
                    assert!((c - e).abs() < 1e-12, "{m}x{n}x{k}: {c} {e}");
                }
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        for (m, n, k) in [(5, 49, 7), (300, 200, 700), (1024, 576, 1536), (64, 64, 64), (33, 4096, 576)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.73).cos()).collect();
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let mut c = vec![0f32; m * n];
                    matmul(
                        MatMut::new(&mut c, m, n),
                        Mat::new(&a, m, k),
                        Mat::new(&b, n, k).t(),
                        1.0,
                        0.0,
                        Threads::All,
                    );
                    c
                })
            };
            let one = run(1);
            assert!(one == run(2) && one == run(5), "{m}x{n}x{k} differs");
        }
    }
}
