//! What a device needs before it is used.

use candle_core::{
    DType, Device, Result, Tensor, bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{result, sys::CUmemPool_attribute},
    },
};

use super::launch::load_all;

/// The oldest devices whose tensor cores take bf16 (Ampere), as a major compute capability.
const CAPABILITY_MIN: i32 = 8;

/// Checks that our kernels and candle's can run on a device, and lets it keep freed memory for the next allocation: by default the driver gives all of it back to
/// the system whenever somebody waits for the device, and every wait would be followed by a step of fresh allocations.
pub(crate) fn prepare(device: &Device) -> Result<()> {
    let cuda_device = device.as_cuda_device()?;
    let stream = cuda_device.cuda_stream();
    let context = stream.context();
    let (major, minor) = context.compute_capability().w()?;
    if major < CAPABILITY_MIN {
        bail!("its compute capability is {major}.{minor}, and {CAPABILITY_MIN}.0 or newer is needed");
    }
    load_all(cuda_device)?;
    Tensor::zeros(1, DType::F32, device)?.affine(1.0, 1.0)?;
    if context.has_async_alloc() {
        let mut kept_bytes = u64::MAX;
        #[expect(unsafe_code, reason = "cudarc has no safe form of it")]
        // SAFETY: the context's device is one that the driver named, its default pool lives as long as it, and this attribute is a 64-bit number,
        // which the driver reads before it returns.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
            let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut kept_bytes).cast()).w()?;
        }
    }
    Ok(())
}
