//! The functions of the CUDA driver that the engine uses.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null;
use std::sync::OnceLock;

use super::library::{functions, open};

pub type Pointer = u64;
pub type Handle = *mut c_void;

pub const OUT_OF_MEMORY: c_int = 2;
pub const MULTIPROCESSORS: c_int = 16;
pub const CAPABILITY: [c_int; 2] = [75, 76];
pub const MAX_DYNAMIC_SHARED: c_int = 8;
pub const NON_BLOCKING: c_uint = 1;
pub const NO_TIMING: c_uint = 2;
pub const MAP_OF_BF16: c_int = 9;
pub const MAP_SWIZZLE_128: c_int = 3;
pub const MAP_PROMOTE_128: c_int = 2;

functions! {
    /// See the CUDA driver API's reference for each.
    pub struct Driver {
        fn init(c_uint) -> c_int = "cuInit";
        fn device_count(*mut c_int) -> c_int = "cuDeviceGetCount";
        fn device(*mut c_int, c_int) -> c_int = "cuDeviceGet";
        fn device_name(*mut c_char, c_int, c_int) -> c_int = "cuDeviceGetName";
        fn device_attribute(*mut c_int, c_int, c_int) -> c_int = "cuDeviceGetAttribute";
        fn retain_context(*mut Handle, c_int) -> c_int = "cuDevicePrimaryCtxRetain";
        fn set_context(Handle) -> c_int = "cuCtxSetCurrent";
        fn alloc(*mut Pointer, usize) -> c_int = "cuMemAlloc_v2";
        fn free(Pointer) -> c_int = "cuMemFree_v2";
        fn memory(*mut usize, *mut usize) -> c_int = "cuMemGetInfo_v2";
        fn to_device(Pointer, *const c_void, usize, Handle) -> c_int = "cuMemcpyHtoDAsync_v2";
        fn to_host(*mut c_void, Pointer, usize, Handle) -> c_int = "cuMemcpyDtoHAsync_v2";
        fn copy(Pointer, Pointer, usize, Handle) -> c_int = "cuMemcpyDtoDAsync_v2";
        fn fill(Pointer, u8, usize, Handle) -> c_int = "cuMemsetD8Async";
        fn host_memory(*mut *mut c_void, usize) -> c_int = "cuMemAllocHost_v2";
        fn stream(*mut Handle, c_uint) -> c_int = "cuStreamCreate";
        fn synchronize(Handle) -> c_int = "cuStreamSynchronize";
        fn wait(Handle, Handle, c_uint) -> c_int = "cuStreamWaitEvent";
        fn wait_here(Handle) -> c_int = "cuEventSynchronize";
        fn load_module(*mut Handle, *const c_void) -> c_int = "cuModuleLoadData";
        fn function(*mut Handle, Handle, *const c_char) -> c_int = "cuModuleGetFunction";
        fn function_attribute(Handle, c_int, c_int) -> c_int = "cuFuncSetAttribute";
        fn launch(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> c_int = "cuLaunchKernel";
        fn map(
            *mut c_void, c_int, c_uint, Pointer, *const u64, *const u64, *const c_uint, *const c_uint, c_int, c_int, c_int, c_int
        ) -> c_int = "cuTensorMapEncodeTiled";
        fn event(*mut Handle, c_uint) -> c_int = "cuEventCreate";
        fn record(Handle, Handle) -> c_int = "cuEventRecord";
        fn elapsed(*mut f32, Handle, Handle) -> c_int = "cuEventElapsedTime";
        fn destroy_event(Handle) -> c_int = "cuEventDestroy_v2";
        fn error_text(c_int, *mut *const c_char) -> c_int = "cuGetErrorString";
    }
}

/// The driver, or why there is none.
pub fn driver() -> Result<&'static Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    let load = || {
        let library = open("cuda", &["1"]).map_err(|_| "no NVIDIA driver (libcuda.so.1)".to_string())?;
        let driver = Driver::of(library).map_err(|e| format!("the NVIDIA driver is too old: {e}"))?;
        // SAFETY: cuInit takes no pointers.
        driver.check(unsafe { (driver.init)(0) }, "starting the driver")?;
        Ok(driver)
    };
    DRIVER.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// The driver of cards that are only planned with.
pub fn idle() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(Driver::idle)
}

impl Driver {
    /// # Errors
    /// What the driver says of a status that is not success.
    pub fn check(&self, status: c_int, doing: &str) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the driver writes a pointer to a string that is never freed, or leaves the null.
        let text = unsafe {
            (self.error_text)(status, &mut text);
            if text.is_null() { "unknown error".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{doing}: {text} (CUDA error {status})"))
    }
}
