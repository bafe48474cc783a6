//! Element types: how numbers are stored, and in what type they are computed.

use half::bf16;

use crate::gemm::{Mat, Operand};
use crate::tensor::Buffer;

/// Storage type of a tensor's elements.
///
/// `F64` exists for the checks of gradients; training uses `F32`, or `BF16` storage with `F32` arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F64,
    F32,
    BF16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::BF16 => 2,
        }
    }

    /// The type that arithmetic on this storage type is done in, and that its trainable parameters have.
    pub fn compute(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            DType::F32 | DType::BF16 => DType::F32,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
        })
    }
}

/// A type that arithmetic is done in: f32 or f64.
pub trait Real:
    Element<Acc = Self> + num_traits::Float + std::ops::AddAssign + std::ops::MulAssign + std::iter::Sum
{
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
    /// eˣ. For f32 a polynomial (relative error below 2e-7, exact 0 for x < -87.3) that compilers vectorise.
    fn exp_fast(self) -> Self;
    /// tanh x. For f32 a polynomial below 0.625 and a quotient of [`Real::exp_fast`]s above (relative error below 3e-7).
    fn tanh_fast(self) -> Self;
    /// ½·(1 + erf(x/√2)), the share of the normal distribution below x. For f32 a polynomial and [`Real::exp_fast`]
    /// (relative error below 2e-6 for x > -6: the lower tail is no difference of large numbers).
    fn normal_cdf(self) -> Self;
}

/// A storage type together with the [`Real`] that arithmetic on it uses.
pub trait Element:
    Copy + Default + Send + Sync + std::fmt::Debug + PartialEq + bytemuck::Zeroable + 'static
{
    type Acc: Real;
    const DTYPE: DType;
    fn to_acc(self) -> Self::Acc;
    fn from_acc(x: Self::Acc) -> Self;
    /// The elements, if they are of this type.
    #[doc(hidden)]
    fn same<E: Element>(slice: &[E]) -> Option<&[Self]>;
    /// The elements, if they are bf16.
    #[doc(hidden)]
    fn bf16s(slice: &[Self]) -> Option<&[bf16]>;
    /// The nearest bf16 number's bits.
    #[doc(hidden)]
    fn to_bf16_bits(self) -> u16;
    fn slice(buffer: &Buffer) -> Option<&[Self]>;
    fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]>;
    fn vec(buffer: Buffer) -> Option<Vec<Self>>;
    fn buffer(data: Vec<Self>) -> Buffer;
    #[doc(hidden)]
    fn operand(mat: Mat<'_, Self>) -> Operand<'_>;
    /// The operand's matrix, if it is of this type.
    #[doc(hidden)]
    fn of_operand(operand: Operand<'_>) -> Option<Mat<'_, Self>>;
}

macro_rules! element {
    ($t:ty, $acc:ty, $dtype:ident, $operand:ident, $to:expr, $from:expr, $bf16:expr, $bf16s:expr) => {
        impl Element for $t {
            type Acc = $acc;
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_acc(self) -> $acc {
                $to(self)
            }
            #[inline(always)]
            fn from_acc(x: $acc) -> Self {
                $from(x)
            }
            #[inline(always)]
            fn to_bf16_bits(self) -> u16 {
                $bf16(self)
            }
            fn same<E: Element>(slice: &[E]) -> Option<&[Self]> {
                // SAFETY: the two types are one.
                (E::DTYPE == Self::DTYPE).then(|| unsafe { &*(std::ptr::from_ref(slice) as *const [Self]) })
            }
            fn bf16s(slice: &[Self]) -> Option<&[bf16]> {
                $bf16s(slice)
            }
            fn slice(buffer: &Buffer) -> Option<&[Self]> {
                match buffer {
                    Buffer::$dtype(v) => Some(v),
                    _ => None,
                }
            }
            fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
                match buffer {
                    Buffer::$dtype(v) => Some(v),
                    _ => None,
                }
            }
            fn vec(buffer: Buffer) -> Option<Vec<Self>> {
                match buffer {
                    Buffer::$dtype(v) => Some(v),
                    _ => None,
                }
            }
            fn buffer(data: Vec<Self>) -> Buffer {
                Buffer::$dtype(data)
            }
            fn operand(mat: Mat<'_, Self>) -> Operand<'_> {
                Operand::$operand(mat)
            }
            fn of_operand(operand: Operand<'_>) -> Option<Mat<'_, Self>> {
                match operand {
                    Operand::$operand(mat) => Some(mat),
                    _ => None,
                }
            }
        }
    };
}

element!(f64, f64, F64, F64, |x| x, |x| x, |x| round_to_bf16(x as f32).to_bits(), |_| None);
element!(f32, f32, F32, F32, |x| x, |x| x, |x| round_to_bf16(x).to_bits(), |_| None);
element!(bf16, f32, BF16, Bf16, widen, round_to_bf16, bf16::to_bits, Some);

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

/// Round to nearest, ties to even; NaN stays NaN. Written without branches so that it vectorises.
#[inline(always)]
fn round_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { nan } else { rounded } as u16)
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp_fast(self) -> f64 {
        self.exp()
    }
    #[inline(always)]
    fn tanh_fast(self) -> f64 {
        self.tanh()
    }
    #[inline(always)]
    fn normal_cdf(self) -> f64 {
        0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn exp_fast(self) -> f32 {
        // eˣ = 2ⁿ · eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2; ln 2 is split in two so that r is exact.
        const LN2_HI: f32 = 0.693_359_4;
        const LN2_LO: f32 = -2.121_944_4e-4;
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer
        let x = self;
        let clamped = x.clamp(-87.336_54, 88.722_83);
        let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (clamped - n * LN2_HI) - n * LN2_LO;
        let p = 1.987_569_1e-4f32;
        let p = p * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_6e-1;
        let p = p * r + 0.5;
        let y = p * (r * r) + r + 1.0;
        // 2ⁿ in two factors: n may be 128, which one exponent field can't hold.
        let whole = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
        let half = whole >> 1;
        let rest = whole - half;
        let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
        let y = y * scale(half) * scale(rest);
        let y = if x < -87.336_54 { 0.0 } else { y };
        let y = if x > 88.722_83 { f32::INFINITY } else { y };
        if x.is_nan() { x } else { y }
    }
    #[inline(always)]
    fn tanh_fast(self) -> f32 {
        let (x, z) = (self.abs(), self * self);
        // (tanh(x)/x - 1)/x² in powers of x² up to 0.65², fitted to the least relative error: 7e-9.
        let p = -5.515_154_5e-3f32;
        let p = p * z + 2.046_941e-2;
        let p = p * z - 5.368_802e-2;
        let p = p * z + 1.333_083e-1;
        let p = p * z - 3.333_326e-1;
        let near = x + x * (z * p);
        let e = (-2.0 * x).exp_fast();
        let far = (1.0 - e) / (1.0 + e);
        let y = if x < 0.625 { near } else { far };
        y.copysign(self)
    }
    #[inline(always)]
    fn normal_cdf(self) -> f32 {
        // erfc(y) = e^(-y²)·t·p(t) with t = 1/(1 + 0.4·y), y = |x|/√2; p fitted to the least relative error for y up to 10:
        // 6e-8.
        const TO_T: f32 = 0.4 * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + TO_T * self.abs());
        let p = 4.125_333_2e-2f32;
        let p = p * t - 1.403_206_3e-1;
        let p = p * t + 8.399_01e-2;
        let p = p * t + 8.796_12e-2;
        let p = p * t + 7.975_865e-2;
        let p = p * t + 1.933_923_4e-1;
        let p = p * t + 2.018_877_9e-1;
        let p = p * t + 2.264_430_8e-1;
        let p = p * t + 2.256_342_3e-1;
        let below = 0.5 * (-0.5 * self * self).exp_fast() * t * p;
        if self < 0.0 { below } else { 1.0 - below }
    }
}

/// Runs a block with `$E` bound to the element type of `$dtype`.
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $E = f64;
                $body
            }
            $crate::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
        }
    };
}

/// Runs a block with `$R` bound to the type that arithmetic on `$dtype` uses.
#[macro_export]
macro_rules! dispatch_real {
    ($dtype:expr, $R:ident => $body:expr) => {
        match $dtype.compute() {
            $crate::DType::F64 => {
                type $R = f64;
                $body
            }
            _ => {
                type $R = f32;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_fast_is_exact_to_2e_7_and_saturates() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = (x as f64).exp();
            worst = worst.max(((x.exp_fast() as f64) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "worst relative error {worst}");
        assert_eq!((-200f32).exp_fast(), 0.0);
        assert_eq!(f32::NEG_INFINITY.exp_fast(), 0.0);
        assert_eq!(100f32.exp_fast(), f32::INFINITY);
        assert!(88.7f32.exp_fast().is_finite());
        assert!(f32::NAN.exp_fast().is_nan());
    }

    #[test]
    fn tanh_fast_is_exact_to_3e_7_and_saturates() {
        for i in -200_000..200_000 {
            let x = i as f32 * 1e-4;
            let exact = (x as f64).tanh();
            assert!(
                (x.tanh_fast() as f64 - exact).abs() <= 3e-7 * exact.abs(),
                "{x}: {} {exact}",
                x.tanh_fast()
            );
        }
        assert_eq!(1e-30f32.tanh_fast(), 1e-30);
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY, 1e30].map(Real::tanh_fast), [1.0, -1.0, 1.0]);
        assert!(f32::NAN.tanh_fast().is_nan());
    }

    #[test]
    fn normal_cdf_is_exact_to_2e_6_in_its_tail_too() {
        for i in -60_000..90_000 {
            let x = i as f32 * 1e-4;
            let exact = (x as f64).normal_cdf();
            assert!((x.normal_cdf() as f64 - exact).abs() <= 2e-6 * exact, "{x}: {} {exact}", x.normal_cdf());
        }
        // A table's values, not another formula's.
        for (x, exact) in [(0f64, 0.5f64), (1.0, 0.841_344_746_068_543), (-3.0, 0.001_349_898_031_630_095)] {
            assert!((Real::normal_cdf(x) - exact).abs() < 1e-15);
        }
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY, -1e30].map(Real::normal_cdf), [1.0, 0.0, 0.0]);
        assert!(f32::NAN.normal_cdf().is_nan());
    }

    #[test]
    fn bf16_rounding_equals_half() {
        for bits in (0..u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (round_to_bf16(x), bf16::from_f32(x));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{x:?}: {ours:?} {theirs:?}");
        }
    }
}
