//! Kernels of a card: their arguments, their modules, and how they are started.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_int, c_void};
use std::ptr::{from_ref, null_mut};

use super::CudaDevice;
use super::device::lock;
use super::driver::{self, Handle, Pointer};
use super::kernels::{Source, defines, machine_code};
use crate::error::Result;

/// One argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// A pointer, an integer or a float in the first bytes.
    Number(u64),
    /// A struct, passed by value.
    Struct(&'a [u64]),
}

impl From<u64> for Arg<'_> {
    fn from(x: u64) -> Self {
        Arg::Number(x)
    }
}
impl From<i32> for Arg<'_> {
    fn from(x: i32) -> Self {
        Arg::Number(x as u32 as u64)
    }
}
impl From<u32> for Arg<'_> {
    fn from(x: u32) -> Self {
        Arg::Number(x as u64)
    }
}
impl From<f32> for Arg<'_> {
    fn from(x: f32) -> Self {
        Arg::Number(x.to_bits() as u64)
    }
}
impl From<usize> for Arg<'_> {
    fn from(x: usize) -> Self {
        Arg::Number(x as u64)
    }
}

/// A description of a row-major matrix in bf16 for Hopper's copy engine.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Map(pub [u64; 16]);

impl<'a> From<&'a Map> for Arg<'a> {
    fn from(map: &'a Map) -> Self {
        Arg::Struct(&map.0)
    }
}

pub(super) struct Module {
    handle: Handle,
    functions: HashMap<String, Handle>,
}

/// By the source's name and its variant.
pub(super) type Modules = HashMap<(&'static str, u32), Module>;

impl CudaDevice {
    /// A map of a matrix `[rows, cols]` in bf16 with so many elements from row to row, that is taken in boxes of 64 columns and
    /// `of_box` rows.
    pub(crate) fn map(
        &self,
        pointer: Pointer,
        [rows, cols]: [usize; 2],
        stride: usize,
        of_box: u32,
    ) -> Result<Map> {
        let mut map = Map([0; 16]);
        let (size, pitch) = ([cols as u64, rows as u64], [2 * stride as u64]);
        let (part, every) = ([64, of_box], [1u32, 1]);
        // SAFETY: the driver reads two sizes, a pitch, and the box's, and writes the map, which is aligned as it asks.
        let status = unsafe {
            (self.driver.map)(
                map.0.as_mut_ptr().cast(),
                driver::MAP_OF_BF16,
                2,
                pointer,
                size.as_ptr(),
                pitch.as_ptr(),
                part.as_ptr(),
                every.as_ptr(),
                0,
                driver::MAP_SWIZZLE_128,
                driver::MAP_PROMOTE_128,
                0,
            )
        };
        self.check(status, "describing a matrix")?;
        Ok(map)
    }

    /// Starts a kernel. `variant` is the source's VARIANT, 0 where it has none.
    pub(crate) fn launch(
        &self,
        (source, variant): (&'static Source, u32),
        name: &str,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        self.enter()?;
        if grid.contains(&0) {
            return Ok(());
        }
        if grid[0] > i32::MAX as usize || grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(self.error(format!("{name}: a grid of {grid:?} blocks is too large")));
        }
        if self.is_planned() {
            return Ok(());
        }
        let function = self.function(source, variant, name, shared)?;
        let pointer = |arg: &Arg<'_>| match arg {
            Arg::Number(x) => from_ref(x).cast_mut().cast::<c_void>(),
            Arg::Struct(x) => x.as_ptr().cast_mut().cast(),
        };
        let mut pointers: Vec<*mut c_void> = args.iter().map(pointer).collect();
        let [x, y, z] = grid.map(|n| n as u32);
        // SAFETY: the callers give each kernel the arguments of its signature, with pointers to blocks of the sizes that it
        // works on; the driver copies the arguments before it returns.
        let status = unsafe {
            (self.driver.launch)(
                function,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared as u32,
                self.stream,
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        self.check(status, name)
    }

    fn function(&self, source: &'static Source, variant: u32, name: &str, shared: usize) -> Result<Handle> {
        let mut modules = lock(&self.held.modules);
        let module = match modules.entry((source.name, variant)) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                let defines = defines(variant);
                let code = machine_code(source, self.arch, &defines).map_err(|what| self.error(what))?;
                let mut handle = null_mut();
                // SAFETY: the code is a whole cubin, of NVRTC's making.
                let status = unsafe { (self.driver.load_module)(&mut handle, code.as_ptr().cast()) };
                self.check(status, source.name)?;
                e.insert(Module { handle, functions: HashMap::new() })
            }
        };
        if let Some(&function) = module.functions.get(name) {
            return Ok(function);
        }
        let symbol = CString::new(name).map_err(|_| self.error("a kernel's name with a zero byte"))?;
        let mut function = null_mut();
        // SAFETY: the module is loaded, and the name ends in zero.
        self.check(unsafe { (self.driver.function)(&mut function, module.handle, symbol.as_ptr()) }, name)?;
        if shared > 48 << 10 {
            // SAFETY: the function is valid; too much shared memory is an error of the call.
            let status = unsafe {
                (self.driver.function_attribute)(function, driver::MAX_DYNAMIC_SHARED, shared as c_int)
            };
            self.check(status, name)?;
        }
        module.functions.insert(name.to_string(), function);
        Ok(function)
    }
}
