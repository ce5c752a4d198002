//! A file of weights, read strictly: everything that a network asks for must be there, and nothing else.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor, safetensors::Load};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use safetensors::{SafeTensors, tensor::Dtype};

use super::{Network, PretrainedError};

/// Most layers of one kind that are looked for.
const LAYERS_MAX: usize = 256;

/// The tensors of a safetensors file.
pub struct Weights<'a> {
    network: Network,
    tensors: SafeTensors<'a>,
}

impl<'a> Weights<'a> {
    /// The tensors in `bytes`.
    pub fn new(network: Network, bytes: &'a [u8]) -> std::result::Result<Self, PretrainedError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| PretrainedError::Frame { network, error })?;
        Ok(Self { network, tensors })
    }

    /// Extent `axis` of the tensor `name`. Where there is none it is `otherwise`, as the published network has it: that the tensor is missing is
    /// said when it is asked for.
    pub(crate) fn extent(&self, name: &str, axis: usize, otherwise: usize) -> usize {
        let extent = self.tensors.tensor(name).ok().and_then(|tensor| tensor.shape().get(axis).copied());
        extent.unwrap_or(otherwise)
    }

    /// How many layers there are, counted by the names `before` + number + "." ...; `otherwise` if none.
    pub(crate) fn layers(&self, before: &str, otherwise: usize) -> usize {
        let number = |name: &str| name.strip_prefix(before)?.split('.').next()?.parse::<usize>().ok();
        let last = self.tensors.names().into_iter().filter_map(number).filter(|layer| *layer < LAYERS_MAX).max();
        last.map_or(otherwise, |last| last + 1)
    }

    /// True if some tensor's name begins so.
    pub(crate) fn has(&self, prefix: &str) -> bool {
        self.tensors.names().into_iter().any(|name| name.starts_with(prefix))
    }

    /// Builds a network of f32 tensors on `device`. Names that begin with one of `unused`, or end with one that begins with a dot,
    /// may be left over.
    ///
    /// # Errors
    /// One that names every tensor that is missing, left over or misshapen.
    pub(crate) fn build<T>(
        &self,
        device: &Device,
        unused: &[&str],
        build: impl FnOnce(VarBuilder) -> Result<T>,
    ) -> std::result::Result<T, PretrainedError> {
        let network = self.network;
        let ledger = Mutex::default();
        let backend = Strict { tensors: &self.tensors, ledger: &ledger };
        let built = build(VarBuilder::from_backend(Box::new(backend), DType::F32, device.clone()));
        let Ledger { asked, mut faults } = ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        let left_over = self.tensors.names().into_iter().filter(|name| {
            let is = |unused: &&str| name.starts_with(unused) || (unused.starts_with('.') && name.ends_with(unused));
            !asked.contains(*name) && !unused.iter().any(is)
        });
        faults.extend(left_over.map(|name| format!("{name} is left over")));
        if !faults.is_empty() {
            return Err(PretrainedError::Tensors { network, faults: faults.into_iter().collect() });
        }
        built.map_err(|error| PretrainedError::Build { network, error })
    }
}

/// What was asked for, and what was wrong with it.
#[derive(Default)]
struct Ledger {
    asked: BTreeSet<String>,
    faults: BTreeSet<String>,
}

/// Gives zeros for a tensor that can't be given, and notes why, so that all faults are found.
struct Strict<'a> {
    tensors: &'a SafeTensors<'a>,
    ledger: &'a Mutex<Ledger>,
}

impl SimpleBackend for Strict<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.asked.insert(name.to_owned());
        let fault = match self.tensors.tensor(name) {
            Err(_) => format!("{name} {:?} is missing", shape.dims()),
            Ok(tensor) if tensor.shape() != shape.dims() => {
                format!("{name} is {:?} and should be {:?}", tensor.shape(), shape.dims())
            }
            Ok(tensor) if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                format!("{name} holds {:?} and should hold floats", tensor.dtype())
            }
            Ok(tensor) => return tensor.load(device)?.to_dtype(dtype),
        };
        ledger.faults.insert(fault);
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.tensors.tensor(name).map(|tensor| Shape::from(tensor.shape())).unwrap_or(Shape::from(()));
        self.get(shape, name, Init::Const(0.), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }
}
