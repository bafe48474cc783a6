//! The processor's vector instructions, found once at run time.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The widest instructions that the kernels use, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor of the architecture has (SSE2 or NEON); products by the `gemm` crate.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with bf16 dot products (`vdpbf16ps`).
    Avx512Bf16,
}

/// The environment variable that keeps the kernels to an [`Isa`] below the processor's.
pub const ISA_VARIABLE: &str = "LORATUNE_ISA";

impl Isa {
    const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Isa {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
            (true, true, true) => Isa::Avx512Bf16,
            (true, true, false) => Isa::Avx512,
            (true, false, _) => Isa::Avx2,
            (false, ..) => Isa::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Isa {
        Isa::Portable
    }

    /// What the kernels use: the processor's best, or less if [`ISA_VARIABLE`] says so.
    ///
    /// # Errors
    /// If the variable names no instruction set, or one that the processor doesn't have.
    pub fn choose() -> Result<Isa> {
        let best = Isa::of_processor();
        let Some(wanted) = std::env::var_os(ISA_VARIABLE) else { return Ok(best) };
        let known = Isa::ALL.into_iter().filter(|isa| *isa <= best);
        match known.clone().find(|isa| wanted.to_str() == Some(isa.name())) {
            Some(isa) => Ok(isa),
            None => Err(Error::Invalid(format!(
                "{ISA_VARIABLE}={}: expected one that this processor has: {}",
                wanted.to_string_lossy(),
                known.map(Isa::name).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

/// [`Isa::choose`], asked once; a variable that can't be followed counts as not set.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| Isa::choose().unwrap_or_else(|_| Isa::of_processor()))
}

/// Runs a block compiled for the processor at hand, so that its loops use the widest vectors. The results do not depend on
/// which: no multiplication and addition are contracted.
///
/// The block is a function of its own, because only that is sure to be compiled for each instruction set: it names its type
/// parameters, the variables that it takes and their types. Functions that it calls must be inlined (`#[inline(always)]`, or
/// small).
macro_rules! vectorised {
    ([$($g:ident: $bound:path),*] ($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {{
        #[inline(always)]
        fn body<$($g: $bound),*>($($arg: $ty),*) $(-> $out)? $body

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]
        fn for_avx512<$($g: $bound),*>($($arg: $ty),*) $(-> $out)? {
            body::<$($g),*>($($arg),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi2")]
        fn for_avx2<$($g: $bound),*>($($arg: $ty),*) $(-> $out)? {
            body::<$($g),*>($($arg),*)
        }

        match $crate::isa::isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has these features, by `isa`.
            $crate::isa::Isa::Avx512 | $crate::isa::Isa::Avx512Bf16 => unsafe { for_avx512::<$($g),*>($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Isa::Avx2 => unsafe { for_avx2::<$($g),*>($($arg),*) },
            _ => body::<$($g),*>($($arg),*),
        }
    }};
}
pub(crate) use vectorised;
