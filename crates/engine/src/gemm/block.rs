//! Products of two blocks that lie in the cache, on the calling thread: attention's, of which a step has many thousands. They
//! take a microsecond, so that tasks, passes and memory of their own would take longer than the product.

use std::cell::RefCell;

use super::kernels::Kernel;
use super::pack::{bits, pack_columns, pack_rows};
use super::scratch::Words;
use super::{Finish, Mat, MatMut, Term, Threads, kernels, sum_of_products};
use crate::isa::{Isa, isa, vectorised};
use crate::{DType, Element};

/// Rows of a that are too few for a tile, as in generation.
const FEW: usize = 4;
/// Sums beside each other, so that the compiler vectorises; their order is fixed.
const LANES: usize = 16;

#[derive(Default)]
struct Scratch {
    first: Words,
    turned: Words,
    panel: Words,
    sums: Words,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// c = a·b, or c += a·b, of types that have one sum type (f32 for bf16).
pub(crate) fn product<E: Element>(c: MatMut<'_, E::Acc>, add: bool, a: Mat<'_, E>, b: Mat<'_, E>) {
    assert!(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows, "shapes of a product do not fit");
    match (isa(), E::DTYPE) {
        _ if a.cols == 0 => {}
        _ if a.rows <= FEW && a.is_row_major() => return few(c, add, a, b),
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, DType::BF16) => return tiles::<kernels::amx::Bf16, E>(c, add, a, b),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, DType::BF16) => return tiles::<kernels::avx512::Bf16, E>(c, add, a, b),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, DType::F32) => {
            return tiles::<kernels::avx512::F32, E>(c, add, a, b);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, DType::F32) => return tiles::<kernels::avx2::F32, E>(c, add, a, b),
        _ => {}
    }
    sum_of_products(c, add, &[Term::new(a, b)], Finish::default(), Threads::One);
}

/// By dot products, or by sums of rows of b: its rows, or columns, are read once, where they lie.
fn few<E: Element>(mut c: MatMut<'_, E::Acc>, add: bool, a: Mat<'_, E>, b: Mat<'_, E>) {
    for i in 0..c.rows {
        let (a, to) = (&a.data[i * a.row_stride..][..a.cols], c.row(i));
        if !add {
            to.fill(E::Acc::default());
        }
        type Acc<E> = <E as Element>::Acc;
        vectorised!([E: Element] (a: &[E], b: Mat<'_, E>, to: &mut [Acc<E>]) {
            match b.is_row_major() {
                true => for (l, &a) in a.iter().enumerate() {
                    let (a, row) = (a.to_acc(), &b.data[l * b.row_stride..][..to.len()]);
                    to.iter_mut().zip(row).for_each(|(to, &b)| *to += a * b.to_acc());
                },
                false => for (j, to) in to.iter_mut().enumerate() {
                    let column = &b.data[j * b.col_stride..][..a.len()];
                    let mut lanes = [Acc::<E>::default(); LANES];
                    let (parts, others) = (a.chunks_exact(LANES), column.chunks_exact(LANES));
                    for (&a, &b) in parts.remainder().iter().zip(others.remainder()) {
                        *to += a.to_acc() * b.to_acc();
                    }
                    for (a, b) in parts.zip(others) {
                        for l in 0..LANES {
                            lanes[l] += a[l].to_acc() * b[l].to_acc();
                        }
                    }
                    lanes.into_iter().for_each(|sum| *to += sum);
                },
            }
        });
    }
}

/// In a kernel that has E's type.
fn tiles<K: Kernel, E: Element>(mut c: MatMut<'_, E::Acc>, add: bool, a: Mat<'_, E>, b: Mat<'_, E>) {
    debug_assert_eq!(K::Of::DTYPE, E::DTYPE);
    let (m, n, k) = (c.rows, c.cols, a.cols);
    let words = k.div_ceil(K::PAIR).next_multiple_of(K::UNIT);
    SCRATCH.with_borrow_mut(|Scratch { first, turned, panel, sums }| {
        let (a, stride) = match a.is_row_major() && k.is_multiple_of(K::UNIT * K::PAIR) {
            true => (a.data.as_ptr(), a.row_stride),
            false => {
                let stride = words.next_multiple_of(K::LANES);
                let room = first.room(m.next_multiple_of(K::LANES) * stride);
                let turned = turned.room(stride * K::LANES);
                // SAFETY: `product` found the instructions; there is room for all rows.
                unsafe { K::within(|| rows::<K, E>(&a, stride, turned, room)) };
                (room.as_ptr().cast(), stride * K::PAIR)
            }
        };
        let most = K::VECTORS * K::LANES;
        let panel = panel.room(words * most);
        let sums = sums.room(K::rows(1) * most);
        // SAFETY: as above; the rows of a hold all words, the panel and the sums have room for those of a tile.
        unsafe {
            K::begin();
            for first in (0..n).step_by(most) {
                let cols = most.min(n - first);
                let vectors = cols.div_ceil(K::LANES);
                let width = vectors * K::LANES;
                let panel = &mut panel[..words * width];
                K::within(|| match b.is_row_major() {
                    true => pack_rows::<K, E>(&b, 0, words, first, cols, panel),
                    false => pack_columns::<K, E>(&b, 0, words, first, cols, panel),
                });
                for row in (0..m).step_by(K::rows(vectors)) {
                    let here = K::rows(vectors).min(m - row);
                    let (a, to) = (a.cast::<K::Of>().add(row * stride), sums.as_mut_ptr().cast());
                    K::tile(here, vectors, words, a, stride, panel.as_ptr().cast(), to, true, K::PARTS);
                    K::within(|| {
                        for i in 0..here {
                            let sums: &[f32] = bytemuck::cast_slice(&sums[i * width..][..cols]);
                            Finish::default().sums(sums, &mut c.row(row + i)[first..][..cols], 0, add);
                        }
                    });
                }
            }
            K::end();
        }
    });
}

/// All rows of a as words of k `[rows, stride]`, filled up with zeros.
///
/// # Safety
/// The processor has the kernel's instructions; `to` has whole multiples of `LANES` rows and of `LANES` words in a row.
#[inline(always)]
unsafe fn rows<K: Kernel, E: Element>(a: &Mat<'_, E>, stride: usize, turned: &mut [u32], to: &mut [u32]) {
    if a.is_row_major() {
        for (i, to) in to.chunks_exact_mut(stride).take(a.rows).enumerate() {
            let mut words = a.data[i * a.row_stride..][..a.cols].chunks(K::PAIR);
            to.iter_mut().for_each(|to| *to = words.next().map_or(0, word::<K, E>));
        }
        return;
    }
    // Words of some columns of aᵀ, which are transposed.
    let turned = &mut turned[..stride * K::LANES];
    for first in (0..a.rows).step_by(K::LANES) {
        // SAFETY: the caller's promise.
        unsafe { pack_rows::<K, E>(&a.t(), 0, stride, first, K::LANES.min(a.rows - first), turned) };
        for at in (0..stride).step_by(K::LANES) {
            let (from, to) = (&turned[at * K::LANES..], &mut to[first * stride + at..]);
            // SAFETY: the caller's promise; `LANES` rows of as many words, to as many rows.
            unsafe { K::transpose(K::LANES, from.as_ptr(), 4 * K::LANES, to.as_mut_ptr(), stride) };
        }
    }
}

/// One or two elements as a word.
#[inline(always)]
fn word<K: Kernel, E: Element>(elements: &[E]) -> u32 {
    match elements {
        [low, high, ..] => bits::<E, K::Of>(*low) | (bits::<E, K::Of>(*high) << 16),
        [low] => bits::<E, K::Of>(*low),
        [] => 0,
    }
}
