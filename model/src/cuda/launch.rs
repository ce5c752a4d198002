//! From tensors to kernels: modules that are loaded once a device, and launches on candle's stream.
//!
//! Everything runs on the one stream of candle's device, in the order in which it is asked for; nothing here waits for it.

use std::sync::Arc;

use candle_core::{
    CudaDevice, CudaStorage, DType, Result, Shape, Storage, Tensor,
    backend::BackendDevice,
    bail,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use crate::graph::Output;

/// Kernels of one source file.
pub(crate) struct Module {
    name: &'static str,
    ptx: &'static str,
}

/// What build.rs made of the sources.
mod ptx {
    #![allow(unreachable_pub, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

pub(crate) const MODULATION: Module = Module { name: "paris_modulation", ptx: ptx::MODULATION };
pub(crate) const POINTWISE: Module = Module { name: "paris_pointwise", ptx: ptx::POINTWISE };
pub(crate) const ATTENTION: Module = Module { name: "paris_attention", ptx: ptx::ATTENTION };
pub(crate) const ATTENTION_TENSOR_CORES: Module =
    Module { name: "paris_attention_tensor_cores", ptx: ptx::ATTENTION_TENSOR_CORES };
pub(crate) const ADAMW: Module = Module { name: "paris_adamw", ptx: ptx::ADAMW };

/// Loads a kernel of every module.
///
/// # Errors
/// Where the driver takes them not: built for another device, or by a newer toolkit than it knows.
pub(crate) fn load_all(device: &CudaDevice) -> Result<()> {
    let kernels = [
        (MODULATION, "modulate_f32"),
        (POINTWISE, "gelu_f32"),
        (ATTENTION, "attend_f32"),
        (ATTENTION_TENSOR_CORES, "attend_bf16_64"),
        (ADAMW, "adamw_f32"),
    ];
    for (Module { name, ptx }, kernel) in kernels {
        device.get_or_load_custom_func(kernel, name, ptx)?;
    }
    Ok(())
}

/// The suffix of kernels for numbers of this type.
pub(crate) fn suffix(precision: DType) -> Result<&'static str> {
    match precision {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        other => bail!("the CUDA kernels compute in f32 and bf16, not in {other:?}"),
    }
}

/// A size as kernels take it.
pub(crate) fn size(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| candle_core::Error::msg(format!("{number} is too large for a CUDA kernel")))
}

/// Where a contiguous tensor's numbers begin in the device's memory.
pub(crate) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cuda(storage), Some((start, _))) => address_in(storage, start),
        _ => bail!("expected contiguous numbers on a CUDA device, not a tensor of {:?}", tensor.shape()),
    }
}

fn address_in(storage: &CudaStorage, start: usize) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    let (address, bytes) = match &storage.slice {
        CudaStorageSlice::F32(numbers) => (numbers.device_ptr(&stream).0, 4),
        CudaStorageSlice::U32(numbers) => (numbers.device_ptr(&stream).0, 4),
        CudaStorageSlice::BF16(numbers) => (numbers.device_ptr(&stream).0, 2),
        CudaStorageSlice::I64(numbers) => (numbers.device_ptr(&stream).0, 8),
        _ => bail!("the CUDA kernels take f32, bf16, u32 and i64"),
    };
    Ok(address + (start * bytes) as u64)
}

/// A device and its stream.
pub(crate) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
}

impl Gpu {
    /// The device that a tensor is on.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let device = tensor.device().as_cuda_device()?.clone();
        Ok(Self { stream: device.cuda_stream(), device })
    }

    /// Memory for a kernel's output.
    pub(crate) fn output(&self, shape: impl Into<Shape>, precision: DType) -> Result<Output> {
        let shape = shape.into();
        #[expect(unsafe_code, reason = "memory that a kernel fills is not cleared before")]
        // SAFETY: numbers of any bits are numbers; the kernels write every one of an output before anything reads it.
        let storage = unsafe { self.device.alloc_uninit(&shape, precision)? };
        Ok(Output { storage: Storage::Cuda(storage), shape })
    }

    /// The beginning of a launch of a kernel.
    pub(crate) fn kernel(&self, module: &Module, name: &str) -> Result<Launch<'_>> {
        let function = self.device.get_or_load_custom_func(name, module.name, module.ptx)?.into_cuda_function();
        Ok(Launch { gpu: self, function, arguments: Vec::new(), held: Vec::new() })
    }
}

/// A kernel with its arguments, in the order of the kernel's own.
pub(crate) struct Launch<'a> {
    gpu: &'a Gpu,
    function: CudaFunction,
    /// The bits of each argument, lowest byte first: the driver takes as many as the kernel's parameter has.
    arguments: Vec<u64>,
    /// Tensors that must outlive the launch. Memory is freed in the stream's order, after the kernel.
    held: Vec<Tensor>,
}

/// How a kernel is spread over the device: blocks, threads of a block, bytes of shared memory of a block.
pub(crate) struct Spread {
    pub(crate) blocks: (usize, usize, usize),
    pub(crate) threads: (usize, usize),
    pub(crate) shared_bytes: usize,
}

impl Spread {
    /// Blocks of so many threads.
    pub(crate) fn new(blocks: (usize, usize, usize), threads: (usize, usize)) -> Self {
        Self { blocks, threads, shared_bytes: 0 }
    }
}

impl Launch<'_> {
    /// A contiguous tensor.
    pub(crate) fn tensor(self, tensor: &Tensor) -> Result<Self> {
        self.tensor_from(tensor, 0)
    }

    /// A contiguous tensor from its number `start` on.
    pub(crate) fn tensor_from(mut self, tensor: &Tensor, start: usize) -> Result<Self> {
        self.arguments.push(address(tensor)? + (start * tensor.dtype().size_in_bytes()) as u64);
        self.held.push(tensor.clone());
        Ok(self)
    }

    /// What the kernel writes.
    pub(crate) fn output(self, output: &Output) -> Result<Self> {
        self.output_from(output, 0)
    }

    /// What the kernel writes from number `start` on.
    pub(crate) fn output_from(mut self, output: &Output, start: usize) -> Result<Self> {
        let Storage::Cuda(storage) = &output.storage else { bail!("a kernel writes to its device's memory") };
        self.arguments.push(address_in(storage, start)?);
        Ok(self)
    }

    /// A size, 32 bits in the kernel.
    pub(crate) fn size(mut self, number: usize) -> Result<Self> {
        self.arguments.push(size(number)?.into());
        Ok(self)
    }

    /// A count, 64 bits in the kernel.
    pub(crate) fn count(mut self, number: usize) -> Self {
        self.arguments.push(number as u64);
        self
    }

    /// A number, f32 in the kernel.
    pub(crate) fn real(mut self, number: f32) -> Self {
        self.arguments.push(number.to_bits().into());
        self
    }

    /// Puts the kernel into the stream.
    pub(crate) fn run(self, spread: Spread) -> Result<()> {
        let (x, y, z) = spread.blocks;
        let mut launch = self.gpu.stream.launch_builder(&self.function);
        for argument in &self.arguments {
            launch.arg(argument);
        }
        let config = LaunchConfig {
            grid_dim: (size(x)?, size(y)?, size(z)?),
            block_dim: (size(spread.threads.0)?, size(spread.threads.1)?, 1),
            shared_mem_bytes: size(spread.shared_bytes)?,
        };
        #[expect(unsafe_code, reason = "a kernel is foreign code")]
        // SAFETY: the callers give each kernel the arguments that its signature names, tensors of the shapes that its comment asks for, checked
        // before; they live until the kernel is in the stream, and memory is freed and reused in the stream's order.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}
