//! Single ops to be timed.

use half::bf16;

use crate::gemm::{Finish, Mat, MatMut, Term, Threads, sum_of_products};
use crate::{Element, Real};

/// A product that can be run again and again.
pub struct Product {
    pub name: &'static str,
    pub run: Box<dyn FnMut()>,
}

/// y = x·Wᵀ and dx = dy·W in f32 and bf16, for x `[n, cols]` and W `[out, cols]`.
pub fn products(n: usize, out: usize, cols: usize) -> Vec<Product> {
    let mut all = of::<f32>(n, out, cols, ["f32", "f32 dx"]);
    all.extend(of::<bf16>(n, out, cols, ["bf16", "bf16 dx"]));
    all
}

fn of<E: Element>(n: usize, out: usize, cols: usize, names: [&'static str; 2]) -> Vec<Product> {
    let values = |len: usize| -> Vec<E> {
        (0..len).map(|i| E::from_acc(E::Acc::of((i % 17) as f64 / 16.0 - 0.5))).collect()
    };
    let w = std::sync::Arc::new(values(out * cols));
    let (x, dy, w2) = (values(n * cols), values(n * out), w.clone());
    let (mut y, mut dx) = (values(n * out), values(n * cols));
    let forward = move || {
        let term = Term::new(Mat::new(&x, n, cols), Mat::new(&w, out, cols).t());
        sum_of_products(MatMut::new(&mut y, n, out), false, &[term], Finish::default(), Threads::All);
    };
    let backward = move || {
        let term = Term::new(Mat::new(&dy, n, out), Mat::new(&w2, out, cols));
        sum_of_products(MatMut::new(&mut dx, n, cols), false, &[term], Finish::default(), Threads::All);
    };
    vec![
        Product { name: names[0], run: Box::new(forward) },
        Product { name: names[1], run: Box::new(backward) },
    ]
}
