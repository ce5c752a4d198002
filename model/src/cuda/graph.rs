//! How a kernel's output enters candle's graph: it is computed first, from tensors, and then handed to a node that knows the way back.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::launch::{Output, dense};

impl Output {
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

    fn take(&self) -> Result<(CudaStorage, Shape)> {
        match self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Output { storage, shape }) => Ok((storage, shape)),
            None => bail!("{} was asked for its output twice", self.name),
        }
    }

    fn not_here(&self) -> Result<(CpuStorage, Shape)> {
        bail!("{} has no CPU form: it is written for CUDA", self.name)
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
        self.not_here()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
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
        self.not_here()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
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
        self.not_here()
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
        self.take()
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
