use super::*;
use crate::rng::Key;

/// Every path that this processor has, by name.
type Path<E> = fn(MatMut<'_, E>, bool, &[Term<'_>], Finish<'_, <E as Element>::Acc>, Threads);

fn paths<E: Element>() -> Vec<(&'static str, Path<E>)> {
    let mut paths: Vec<(&'static str, Path<E>)> = vec![
        ("chosen", sum_of_products::<E>),
        ("portable", portable::sum_of_products::<E>),
        ("few", few::sum_of_products::<E>),
    ];
    #[cfg(target_arch = "x86_64")]
    {
        let best = Isa::choose().unwrap();
        let tiles: [(Isa, &'static str, Path<E>); 5] = [
            (Isa::Avx2, "avx2", tiled::sum_of_products::<kernels::avx2::F32, E>),
            (Isa::Avx512, "avx512", tiled::sum_of_products::<kernels::avx512::F32, E>),
            (Isa::Avx512Bf16, "avx512bf16", tiled::sum_of_products::<kernels::avx512::Bf16, E>),
            (Isa::Amx, "amx", tiled::sum_of_products::<kernels::amx::Bf16, E>),
            (Isa::Amx, "thirds", tiled::sum_of_products::<kernels::amx::F32, E>),
        ];
        let thin: Path<E> = |c, add, terms, finish, threads| match thin::takes(&c, terms) {
            true => thin::sum_of_products(c, add, terms, finish, threads),
            false => sum_of_products(c, add, terms, finish, threads),
        };
        if best >= Isa::Avx512 && E::DTYPE != DType::F64 {
            paths.push(("thin", thin));
        }
        let beside: [(Isa, &'static str, Path<E>); 2] = [
            (Isa::Avx512Bf16, "beside in avx512bf16", |c, add, terms, finish, threads| {
                match beside::takes(&c, terms) {
                    true => {
                        beside::sum_of_products::<kernels::avx512::Bf16, E>(c, add, terms, finish, threads)
                    }
                    false => sum_of_products(c, add, terms, finish, threads),
                }
            }),
            (Isa::Amx, "beside in amx", |c, add, terms, finish, threads| match beside::takes(&c, terms) {
                true => beside::sum_of_products::<kernels::amx::Bf16, E>(c, add, terms, finish, threads),
                false => sum_of_products(c, add, terms, finish, threads),
            }),
        ];
        if E::DTYPE != DType::F64 {
            paths.extend(beside.into_iter().filter(|t| t.0 <= best).map(|t| (t.1, t.2)));
        }
        paths.extend(tiles.into_iter().filter(|t| t.0 <= best).map(|t| (t.1, t.2)));
    }
    paths
}

/// A matrix of a type, in either orientation, and what it holds.
struct Random {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    rows: usize,
    cols: usize,
}

impl Random {
    fn new(name: &str, rows: usize, cols: usize) -> Random {
        let key = Key::new(3).named(name);
        let f32: Vec<f32> = (0..(rows * cols) as u64).map(|i| key.normal(i) as f32).collect();
        Random { bf16: f32.iter().map(|&x| bf16::from_f32(x)).collect(), f32, rows, cols }
    }

    fn transposed(&self) -> Random {
        let at = |i: usize| self.f32[(i % self.rows) * self.cols + i / self.rows];
        let f32: Vec<f32> = (0..self.f32.len()).map(at).collect();
        Random {
            bf16: f32.iter().map(|&x| bf16::from_f32(x)).collect(),
            f32,
            rows: self.cols,
            cols: self.rows,
        }
    }

    fn operand(&self, dtype: DType) -> Operand<'_> {
        match dtype {
            DType::BF16 => Operand::of(Mat::new(&self.bf16, self.rows, self.cols)),
            _ => Operand::of(Mat::new(&self.f32, self.rows, self.cols)),
        }
    }

    fn at(&self, dtype: DType, i: usize, j: usize) -> f64 {
        match dtype {
            DType::BF16 => self.bf16[i * self.cols + j].to_f64(),
            _ => self.f32[i * self.cols + j] as f64,
        }
    }
}

/// Relative to the sum of the absolute products: rounding of f32 sums, and of f32 operands as two bf16 numbers.
const TOLERANCE: f64 = 3e-5;

fn check<E: Element>(shape: [usize; 3], types: [DType; 2], second: Option<[DType; 2]>) {
    let [m, n, k] = shape;
    let r = 5;
    let (a, b) = (Random::new("a", m, k), Random::new("b", k, n));
    let (h, u) = (Random::new("h", m, r), Random::new("u", r, n));
    let (at, bt, ut) = (a.transposed(), b.transposed(), u.transposed());
    let scale: Vec<E::Acc> = (0..n).map(|j| E::Acc::of(1.0 + (j % 5) as f64)).collect();
    let bias: Vec<E::Acc> = (0..n).map(|j| E::Acc::of((j % 3) as f64)).collect();
    let start: Vec<E> =
        Random::new("c", m, n).f32.iter().map(|&x| E::from_acc(E::Acc::of(x as f64))).collect();
    for (finished, add) in [(false, false), (false, true), (true, false), (true, true)] {
        for layout in 0..4 {
            let first = match layout & 1 {
                0 => a.operand(types[0]),
                _ => at.operand(types[0]).t(),
            };
            let b_operand = match layout & 2 {
                0 => b.operand(types[1]),
                _ => bt.operand(types[1]).t(),
            };
            let own = if second.is_none() { 0.5 } else { 1.0 };
            let mut terms = vec![Term { a: first, b: b_operand, scale: own }];
            if let Some([x, y]) = second {
                let u = if layout & 2 == 0 { u.operand(y) } else { ut.operand(y).t() };
                terms.push(Term { a: h.operand(x), b: u, scale: 0.5 });
            }
            let finish = match finished {
                true => Finish { scale: Some(&scale[..]), bias: Some(&bias[..]) },
                false => Finish::default(),
            };
            for (name, path) in paths::<E>() {
                let bt_only = name != "few" || (layout & 2 != 0);
                if (k == 0 && name != "chosen" && name != "portable")
                    || !bt_only
                    || (name == "avx512bf16" && types != [DType::BF16; 2])
                {
                    continue;
                }
                let mut c = start.clone();
                path(MatMut::new(&mut c, m, n), add, &terms, finish, Threads::All);
                for i in 0..m {
                    for j in 0..n {
                        let products = (0..k).map(|l| own * a.at(types[0], i, l) * b.at(types[1], l, j));
                        let others = second.map(|[x, y]| (0..r).map(move |l| (x, y, l)));
                        let others =
                            others.into_iter().flatten().map(|(x, y, l)| 0.5 * h.at(x, i, l) * u.at(y, l, j));
                        let (sum, size) =
                            products.chain(others).fold((0.0, 1.0), |(s, z), p| (s + p, z + f64::abs(p)));
                        let mut expected = sum;
                        if finished {
                            expected = expected * scale[j].f64() + bias[j].f64();
                        }
                        if add {
                            expected += start[i * n + j].to_acc().f64();
                        }
                        let rounding = if E::DTYPE == DType::BF16 { expected.abs() / 256.0 } else { 0.0 };
                        let got = c[i * n + j].to_acc().f64();
                        assert!(
                            (got - expected).abs() <= TOLERANCE * size * 5.0 + rounding,
                            "{name} {shape:?} {types:?} {second:?} layout {layout} add {add} finish {finished} \
                             ({i}, {j}): {got}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}

const SHAPES: [[usize; 3]; 11] = [
    [1, 1, 1],
    [3, 5, 7],
    [17, 1, 33],
    [1, 65, 9],
    [64, 48, 100],
    [5, 4, 0],
    [13, 81, 64],
    [50, 100, 37],
    [9, 33, 2100],
    [70, 20, 100],
    [24, 90, 200],
];

#[test]
fn products_equal_the_definition_for_any_type_layout_and_path() {
    use DType::{BF16, F32};
    for shape in SHAPES {
        check::<f32>(shape, [F32, F32], None);
        check::<f32>(shape, [F32, BF16], Some([F32, F32]));
        check::<f32>(shape, [BF16, F32], Some([BF16, F32]));
        check::<f32>(shape, [BF16, F32], None);
        check::<bf16>(shape, [F32, BF16], None);
        check::<bf16>(shape, [BF16, BF16], Some([F32, F32]));
        check::<bf16>(shape, [BF16, BF16], Some([F32, BF16]));
        check::<f32>(shape, [BF16, BF16], Some([BF16, F32]));
    }
}

#[test]
fn products_in_f64_equal_the_definition() {
    for [m, n, k] in SHAPES {
        let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.37).sin()).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.73).cos()).collect();
        let at: Vec<f64> = (0..k * m).map(|i| a[(i % m.max(1)) * k + i / m.max(1)]).collect();
        for a_mat in [Mat::new(&a, m, k), Mat::new(&at, k, m).t()] {
            let mut c = vec![0.5; m * n];
            matmul(MatMut::new(&mut c, m, n), a_mat, Mat::new(&b, k, n), 3.0, 2.0, Threads::All);
            for i in 0..m {
                for j in 0..n {
                    let e = 1.0 + 3.0 * (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f64>();
                    assert!(
                        (c[i * n + j] - e).abs() < 1e-11 * k.max(1) as f64,
                        "{m}x{n}x{k}: {} {e}",
                        c[i * n + j]
                    );
                }
            }
        }
    }
}

#[test]
fn what_lies_beside_a_matrix_does_not_reach_the_product() {
    // Odd k: the element after a row's last is the next row's first, here not a number.
    let (m, n, k) = (20, 50, 3);
    let strided = |rows: usize| -> Vec<bf16> {
        (0..rows * 4).map(|i| if i % 4 == 3 { bf16::NAN } else { bf16::ONE }).collect()
    };
    let (a, b) = (strided(m), strided(n));
    let mut c = vec![0f32; m * n];
    let term = Term::new(Mat::strided(&a, m, k, 4), Mat::strided(&b, n, k, 4).t());
    sum_of_products(MatMut::new(&mut c, m, n), false, &[term], Finish::default(), Threads::All);
    assert!(c.iter().all(|&c| c == 3.0));
    // Thin products of parts of wider matrices, into a part of one: what lies between its rows stays.
    let (m, n, k) = (40, 70, 33);
    let wide = |rows: usize, cols: usize| -> Vec<bf16> {
        (0..rows * (cols + 5)).map(|i| if i % (cols + 5) < cols { bf16::ONE } else { bf16::NAN }).collect()
    };
    let f32s = |x: Vec<bf16>| -> Vec<f32> { x.into_iter().map(bf16::to_f32).collect() };
    let (x, dy) = (wide(m, k), wide(k, n));
    let (second, first) = (f32s(wide(k, 8)), f32s(wide(8, k)));
    for (rows, cols, term) in [
        (m, 8, Term::new(Mat::strided(&x, m, k, k + 5), Mat::strided(&second, k, 8, 13))),
        (8, n, Term::new(Mat::strided(&first, 8, k, k + 5), Mat::strided(&dy, k, n, n + 5))),
        (m, n, Term::new(Mat::strided(&x, m, k, k + 5), Mat::strided(&dy, k, n, n + 5))),
    ] {
        let mut c = vec![bf16::ZERO; rows * (cols + 3)];
        let to = MatMut::strided(&mut c, rows, cols, cols + 3);
        sum_of_products(to, false, &[term], Finish::default(), Threads::All);
        for (i, c) in c.iter().enumerate() {
            let expected = if i % (cols + 3) < cols { 33.0 } else { 0.0 };
            assert_eq!(c.to_f32(), expected, "{rows}x{cols}, place {i}");
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    for (m, n, k) in [
        (5, 49, 7),
        (300, 200, 700),
        (1024, 576, 1536),
        (64, 64, 64),
        (33, 4096, 576),
        (4096, 8, 576),
        (8, 576, 4096),
    ] {
        use DType::{BF16, F32};
        let (a, b) = (Random::new("a", m, k), Random::new("b", n, k));
        let bt = b.transposed();
        let types = [[F32, F32], [BF16, BF16], [BF16, F32], [F32, BF16]];
        for (types, turned) in types.into_iter().flat_map(|types| [(types, false), (types, true)]) {
            let b = if turned { bt.operand(types[1]) } else { b.operand(types[1]).t() };
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let mut c = vec![0f32; m * n];
                    let term = Term { a: a.operand(types[0]), b, scale: 1.0 };
                    let c_mat = MatMut::new(&mut c, m, n);
                    sum_of_products(c_mat, false, &[term], Finish::default(), Threads::All);
                    c
                })
            };
            let one = run(1);
            assert!(one == run(2) && one == run(5), "{m}x{n}x{k} {types:?} {turned} differs");
        }
    }
}

/// Six products of thirds are as good as one of f32, and what is bf16 by itself needs only three of them.
#[test]
#[cfg(target_arch = "x86_64")]
fn products_of_thirds_keep_all_bits_of_f32() {
    if Isa::choose().unwrap() < Isa::Amx {
        return;
    }
    for (types, [m, n, k]) in [([DType::F32; 2], [70, 50, 200]), ([DType::F32, DType::BF16], [33, 65, 577])] {
        let (a, b) = (Random::new("a", m, k), Random::new("b", n, k));
        let of = |path: Path<f32>| {
            let mut c = vec![0f32; m * n];
            let term = Term { a: a.operand(types[0]), b: b.operand(types[1]).t(), scale: 1.0 };
            path(MatMut::new(&mut c, m, n), false, &[term], Finish::default(), Threads::All);
            let error = |(at, c): (usize, &f32)| {
                let product = |l| a.at(types[0], at / n, l) * b.at(types[1], at % n, l);
                let (sum, size) = (0..k).map(product).fold((0.0, 0.0), |(s, z), p| (s + p, z + f64::abs(p)));
                (f64::from(*c) - sum).abs() / size
            };
            c.iter().enumerate().map(error).fold(0.0, f64::max)
        };
        let plain = of(tiled::sum_of_products::<kernels::avx512::F32, f32>);
        let thirds = of(tiled::sum_of_products::<kernels::amx::F32, f32>);
        assert!(thirds < 2.0 * plain && thirds < 3e-7, "{types:?}: errors {thirds:e} and {plain:e}");
    }
}

/// What an infinity makes of a column depends neither on the threads nor on the columns beside it.
#[test]
#[cfg(target_arch = "x86_64")]
fn infinities_do_not_depend_on_the_number_of_threads() {
    if Isa::choose().unwrap() < Isa::Amx {
        return;
    }
    let (m, n, k) = (96, 192, 128);
    let (mut a, mut b) = (Random::new("a", m, k), Random::new("b", n, k));
    a.f32[5 * k + 7] = f32::INFINITY;
    // Of the first columns all numbers are bf16 ones, which have one part that is not zero.
    b.f32[..n / 3 * k].iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut c = vec![0f32; m * n];
        let term = Term { a: a.operand(DType::F32), b: b.operand(DType::F32).t(), scale: 1.0 };
        let to = MatMut::new(&mut c, m, n);
        let product = tiled::sum_of_products::<kernels::amx::F32, f32>;
        pool.install(|| product(to, false, &[term], Finish::default(), Threads::All));
        assert!(c[5 * n..6 * n].iter().all(|x| !x.is_finite()));
        c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let one = run(1);
    assert!([2, 3, 5].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn products_of_blocks_equal_those_of_matrices() {
    fn check<E: Element<Acc = f32>>(of: fn(&Random) -> &[E]) {
        for [m, n, k] in [[64, 64, 64], [1, 1, 1], [64, 37, 64], [50, 64, 21], [33, 80, 128], [7, 3, 70]] {
            let (a, b) = (Random::new("a", m, k), Random::new("b", k, n));
            let (at, bt) = (a.transposed(), b.transposed());
            for layout in 0..4 {
                let a_mat =
                    if layout & 1 == 0 { Mat::new(of(&a), m, k) } else { Mat::new(of(&at), k, m).t() };
                let b_mat =
                    if layout & 2 == 0 { Mat::new(of(&b), k, n) } else { Mat::new(of(&bt), n, k).t() };
                for add in [false, true] {
                    let [mut c, mut expected] = [(); 2].map(|()| vec![1f32; m * n]);
                    block::product(MatMut::new(&mut c, m, n), add, a_mat, b_mat);
                    let expected_mat = MatMut::new(&mut expected, m, n);
                    portable::sum_of_products(
                        expected_mat,
                        add,
                        &[Term::new(a_mat, b_mat)],
                        Finish::default(),
                        Threads::One,
                    );
                    let error = c.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(error < 1e-5 * k as f32, "{m}x{n}x{k} layout {layout} add {add}: {error}");
                }
            }
        }
    }
    check::<f32>(|m| &m.f32);
    check::<bf16>(|m| &m.bf16);
}
