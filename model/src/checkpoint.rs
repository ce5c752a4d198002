//! Tensors as bytes: safetensors without metadata, so that equal tensors are equal bytes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::config::Shapes;

/// The longest header that is read, bytes.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Bytes that are no tensors of the wanted kind.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The header claims to be longer than any model's.
    #[error("the header is {0} bytes long, over the limit of {HEADER_BYTES_MAX}: not read")]
    Header(u64),
    /// Not safetensors, or cut off.
    #[error("not a whole safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor is missing.
    #[error("the tensor {0} is missing: these are the weights of another architecture")]
    Missing(String),
    /// A tensor is there that should not be.
    #[error("the tensor {0} does not belong to this architecture")]
    Extra(String),
    /// A tensor has another shape or type.
    #[error("the tensor {name} is {found}, expected {expected}")]
    Shape {
        /// Its name.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A number is infinite or not a number.
    #[error("the tensor {0} holds numbers that are not finite: training had failed")]
    NotFinite(String),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The wire form of tensors.
pub fn write(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = BTreeMap::new();
    for (name, tensor) in tensors {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        bytes.insert(name, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    let view = |name: &String| TensorView::new(Dtype::F32, tensors[name].dims().to_vec(), &bytes[name]);
    let views =
        bytes.keys().map(|name| Ok((name.as_str(), view(name)?))).collect::<Result<Vec<_>, CheckpointError>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// Reads tensors of exactly these names and shapes, f32 and finite. Nothing is allocated by what the bytes claim.
pub fn read(bytes: &[u8], shapes: &Shapes, device: &Device) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    if let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length))
        && length > HEADER_BYTES_MAX as u64
    {
        return Err(CheckpointError::Header(length));
    }
    let file = SafeTensors::deserialize(bytes)?;
    if let Some(extra) = file.names().into_iter().find(|name| !shapes.contains_key(*name)) {
        return Err(CheckpointError::Extra(extra.to_owned()));
    }
    let mut tensors = BTreeMap::new();
    for (name, shape) in shapes {
        let view = file.tensor(name).map_err(|_| CheckpointError::Missing(name.clone()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(CheckpointError::Shape { name: name.clone(), found, expected: format!("F32 {shape:?}") });
        }
        let numbers = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let values: Vec<f32> = numbers.collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite(name.clone()));
        }
        tensors.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), device)?);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> BTreeMap<String, Tensor> {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        [("b".to_owned(), tensor(&[1.0, 2.0])), ("a".to_owned(), tensor(&[3.0]))].into()
    }

    fn shapes() -> Shapes {
        [("a".to_owned(), vec![1]), ("b".to_owned(), vec![2])].into()
    }

    #[test]
    fn tensors_survive_and_equal_tensors_are_equal_bytes() {
        let bytes = write(&tensors()).unwrap();
        assert_eq!(bytes, write(&tensors()).unwrap());
        let back = read(&bytes, &shapes(), &Device::Cpu).unwrap();
        assert_eq!(back["b"].to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn foreign_bytes_are_refused_with_a_reason() {
        let good = write(&tensors()).unwrap();
        let read = |bytes: &[u8], shapes: &Shapes| read(bytes, shapes, &Device::Cpu).unwrap_err();
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&(4u64 << 30).to_le_bytes());
        assert!(matches!(read(&huge, &shapes()), CheckpointError::Header(_)));
        for end in 0..good.len() {
            assert!(matches!(read(&good[..end], &shapes()), CheckpointError::Format(_)), "cut off at {end}");
        }
        let mut wrong = shapes();
        wrong.insert("b".into(), vec![1, 2]);
        assert!(matches!(read(&good, &wrong), CheckpointError::Shape { .. }));
        wrong.remove("b");
        assert!(matches!(read(&good, &wrong), CheckpointError::Extra(_)));
        wrong.insert("b".into(), vec![2]);
        wrong.insert("c".into(), vec![2]);
        assert!(matches!(read(&good, &wrong), CheckpointError::Missing(_)));
        let mut poisoned = tensors();
        poisoned.insert("a".into(), Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
        assert!(matches!(read(&write(&poisoned).unwrap(), &shapes()), CheckpointError::NotFinite(_)));
    }
}
