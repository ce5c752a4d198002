//! How what was computed outside of candle's graph enters it: it is computed first, from tensors, and then handed to a node that knows the way back.

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor,
    backprop::GradStore, bail,
};

/// What vector loads ask of an address, bytes.
const ALIGNMENT: usize = 16;

/// A tensor as kernels read it: contiguous, and beginning where vector loads may.
pub(crate) fn dense(tensor: &Tensor) -> Result<Tensor> {
    let start_bytes = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if start_bytes.is_multiple_of(ALIGNMENT) { tensor.contiguous() } else { tensor.force_contiguous() }
}

/// What was computed.
pub(crate) struct Output {
    pub(crate) storage: Storage,
    pub(crate) shape: Shape,
}

/// The gradients of whatever `out` came from, where its own gradient is `gradient`.
pub(crate) fn backward_from(out: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    let gradient = gradient.clone();
    // candle begins at a number: here one that has nothing to do with `out` but its place after it.
    let end = Output::copy_of(&Tensor::zeros((), out.dtype(), out.device())?)?;
    end.of1("end", [out], move |_, _, _| Ok([Some(gradient.clone())]))?.backward()
}

impl Output {
    /// A copy of a tensor's numbers, without its past.
    pub(crate) fn copy_of(tensor: &Tensor) -> Result<Self> {
        let from_its_start = match tensor.layout().start_offset() {
            0 => tensor.contiguous()?,
            _ => tensor.force_contiguous()?,
        };
        let (storage, layout) = from_its_start.storage_and_layout();
        Ok(Self { storage: storage.try_clone(layout)?, shape: tensor.shape().clone() })
    }

    /// As a tensor without a past.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }

    /// As what became of one tensor. `backward` takes what was read, what was written and its gradient, and gives the gradients of what was read.
    pub(crate) fn of1<B>(self, name: &'static str, [x]: [&Tensor; 1], backward: B) -> Result<Tensor>
    where
        B: Fn([&Tensor; 1], &Tensor, &Tensor) -> Result<[Option<Tensor>; 1]> + Send + Sync + 'static,
    {
        x.apply_op1(Node::new(name, self, backward))
    }

    /// As what became of two tensors.
    pub(crate) fn of2<B>(self, name: &'static str, [x, y]: [&Tensor; 2], backward: B) -> Result<Tensor>
    where
        B: Fn([&Tensor; 2], &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
    {
        x.apply_op2(y, Node::new(name, self, backward))
    }

    /// As what became of three tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn of3<B>(self, name: &'static str, [x, y, z]: [&Tensor; 3], backward: B) -> Result<Tensor>
    where
        B: Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
    {
        x.apply_op3(y, z, Node::new(name, self, backward))
    }
}

/// A node of candle's graph whose output is there already.
struct Node<B> {
    name: &'static str,
    /// Taken by the graph, once.
    output: Mutex<Option<Output>>,
    backward: B,
}

impl<B> Node<B> {
    fn new(name: &'static str, output: Output, backward: B) -> Self {
        Self { name, output: Mutex::new(Some(output)), backward }
    }

    fn take(&self) -> Result<Output> {
        match self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(output) => Ok(output),
            None => bail!("{} was asked for its output twice", self.name),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Output { storage: Storage::Cpu(storage), shape } => Ok((storage, shape)),
            _ => bail!("{} was computed on another device than the CPU, where its inputs are", self.name),
        }
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Output { storage: Storage::Cuda(storage), shape } => Ok((storage, shape)),
            _ => bail!("{} was computed on another device than CUDA, where its inputs are", self.name),
        }
    }
}

impl<B> CustomOp1 for Node<B>
where
    B: Fn([&Tensor; 1], &Tensor, &Tensor) -> Result<[Option<Tensor>; 1]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = (self.backward)([x], out, &dense(gradient)?)?;
        Ok(dx)
    }
}

impl<B> CustomOp2 for Node<B>
where
    B: Fn([&Tensor; 2], &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dy] = (self.backward)([x, y], out, &dense(gradient)?)?;
        Ok((dx, dy))
    }
}

impl<B> CustomOp3 for Node<B>
where
    B: Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Option<Tensor>; 3]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dy, dz] = (self.backward)([x, y, z], out, &dense(gradient)?)?;
        Ok((dx, dy, dz))
    }
}
