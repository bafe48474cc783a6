//! Compiling CUDA C++ at run time.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null;
use std::sync::OnceLock;

use super::library::{functions, open};

type Program = *mut c_void;

functions! {
    /// See NVRTC's documentation for each.
    pub struct Nvrtc {
        fn version(*mut c_int, *mut c_int) -> c_int = "nvrtcVersion";
        fn create(
            *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> c_int = "nvrtcCreateProgram";
        fn destroy(*mut Program) -> c_int = "nvrtcDestroyProgram";
        fn compile(Program, c_int, *const *const c_char) -> c_int = "nvrtcCompileProgram";
        fn cubin_size(Program, *mut usize) -> c_int = "nvrtcGetCUBINSize";
        fn cubin(Program, *mut c_char) -> c_int = "nvrtcGetCUBIN";
        fn log_size(Program, *mut usize) -> c_int = "nvrtcGetProgramLogSize";
        fn log(Program, *mut c_char) -> c_int = "nvrtcGetProgramLog";
        fn arch_count(*mut c_int) -> c_int = "nvrtcGetNumSupportedArchs";
        fn archs(*mut c_int) -> c_int = "nvrtcGetSupportedArchs";
    }
}

pub fn nvrtc() -> Result<&'static Nvrtc, String> {
    static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    NVRTC.get_or_init(|| Nvrtc::of(open("nvrtc", &["13", "12"])?)).as_ref().map_err(Clone::clone)
}

impl Nvrtc {
    pub fn release(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers of this frame.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    /// Whether machine code for this architecture (90 for sm_90) can be made.
    pub fn knows(&self, arch: i32) -> bool {
        let mut count = 0;
        // SAFETY: NVRTC writes one integer, and then as many as it said.
        unsafe {
            (self.arch_count)(&mut count);
            let mut archs = vec![0; count.max(0) as usize];
            (self.archs)(archs.as_mut_ptr()) == 0 && archs.contains(&arch)
        }
    }

    /// Machine code of a program for an architecture, such as 90a.
    ///
    /// # Errors
    /// The compiler's messages.
    pub fn cubin(&self, name: &str, source: &str, arch: &str, defines: &[String]) -> Result<Vec<u8>, String> {
        let text = |s: &str| CString::new(s).map_err(|_| format!("{name}: a zero byte in the source"));
        let (source, file) = (text(source)?, text(name)?);
        let mut options = vec![text(&format!("--gpu-architecture=sm_{arch}"))?, text("--std=c++17")?];
        for define in defines {
            options.push(text(&format!("--define-macro={define}"))?);
        }
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end in zero and outlive the calls; buffers are as long as NVRTC says they must be.
        unsafe {
            let status = (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, null(), null());
            if status != 0 {
                return Err(format!("{name}: NVRTC can't take the source (error {status})"));
            }
            let status = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let mut size = 0;
            let result = if status == 0 {
                (self.cubin_size)(program, &mut size);
                let mut code = vec![0u8; size];
                match (self.cubin)(program, code.as_mut_ptr().cast()) {
                    0 => Ok(code),
                    status => Err(format!("{name}: NVRTC gives no machine code (error {status})")),
                }
            } else {
                (self.log_size)(program, &mut size);
                let mut log = vec![0u8; size.max(1)];
                (self.log)(program, log.as_mut_ptr().cast());
                let log = String::from_utf8_lossy(&log);
                Err(format!("{name} does not compile for sm_{arch}: {}", log.trim_end_matches('\0').trim()))
            };
            (self.destroy)(&mut program);
            result
        }
    }
}
