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
    /// The same with AMX's tiles of bf16 (`tdpbf16ps`), where the system lets the process use them.
    Amx,
}

/// The environment variable that keeps the kernels to an [`Isa`] below the processor's.
pub const ISA_VARIABLE: &str = "LORATUNE_ISA";

impl Isa {
    const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
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
            (true, true, true) if has_amx() => Isa::Amx,
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

/// Whether the processor has AMX with bf16, and Linux lets this process use its registers, for which it has to be asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16_AND_TILES: u32 = (1 << 22) | (1 << 24);
    /// `ARCH_REQ_XCOMP_PERM` of Linux's arch/x86/include/uapi/asm/prctl.h, and the tiles' state component.
    const REQUEST: (libc::c_long, libc::c_long) = (0x1023, 18);
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & BF16_AND_TILES != BF16_AND_TILES {
        return false;
    }
    // SAFETY: the call only allows the process a larger register state.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST.0, REQUEST.1) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
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
            $crate::isa::Isa::Avx512 | $crate::isa::Isa::Avx512Bf16 | $crate::isa::Isa::Amx => unsafe { for_avx512::<$($g),*>($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Isa::Avx2 => unsafe { for_avx2::<$($g),*>($($arg),*) },
            _ => body::<$($g),*>($($arg),*),
        }
    }};
}
pub(crate) use vectorised;
