//! Tensors as bytes: safetensors without metadata, so that equal tensors are equal bytes.

use std::{collections::BTreeMap, io::Write};

use candle_core::{Device, Tensor};
use pulp::bytemuck::cast_slice;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo},
};

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
    /// A file's tensors are not those of the model.
    #[error("these are the weights of another architecture: {0}")]
    Different(String),
    /// A number is infinite or not a number.
    #[error("the tensor {0} holds numbers that are not finite: training had failed")]
    NotFinite(String),
    /// A count of steps, batches or samples is none.
    #[error("the {0} of the state is no count: these bytes were made up")]
    Count(String),
    /// The bytes could not be written.
    #[error("cannot write the tensors: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes could not be read.
    #[error("cannot read the tensors: {0}")]
    Read(std::io::Error),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The wire form of tensors.
pub fn write(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, CheckpointError> {
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    let mut bytes = header(&shapes)?;
    bytes.reserve(4 * tensors.values().map(Tensor::elem_count).sum::<usize>());
    for tensor in tensors.values() {
        write_numbers(&tensor.flatten_all()?.to_vec1::<f32>()?, &mut bytes)?;
    }
    Ok(bytes)
}

/// What stands before the numbers of f32 tensors of these shapes; the numbers follow, tensor by tensor in the order of the names.
pub(crate) fn header(shapes: &Shapes) -> Result<Vec<u8>, CheckpointError> {
    let mut end = 0;
    let info = |(name, shape): (&String, &Vec<usize>)| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        (name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) })
    };
    let metadata = Metadata::new(None, shapes.iter().map(info).collect())?;
    let mut text = serde_json::to_vec(&metadata).map_err(std::io::Error::from)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// Writes numbers as they stand in a checkpoint, little endian.
pub(crate) fn write_numbers(numbers: &[f32], out: &mut impl Write) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(cast_slice(numbers));
    }
    numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
}

/// Reads tensors of exactly these names and shapes, f32 and finite. Nothing is allocated by what the bytes claim.
pub fn read(bytes: &[u8], shapes: &Shapes, device: &Device) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for (name, numbers) in read_numbers(bytes, shapes)? {
        let tensor = Tensor::from_vec(numbers, shapes[&name].as_slice(), device)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The same as plain numbers.
pub(crate) fn read_numbers(bytes: &[u8], shapes: &Shapes) -> Result<BTreeMap<String, Vec<f32>>, CheckpointError> {
    let whole = |numbers: Numbers<'_>| numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Ok(find_numbers(bytes, shapes)?.into_iter().map(|(name, numbers)| (name, whole(numbers))).collect())
}

/// The numbers of a tensor as they stand in a checkpoint, little endian.
pub(crate) type Numbers<'a> = &'a [[u8; 4]];

/// The same where they lie in the bytes: as strict, and nothing is copied.
pub(crate) fn find_numbers<'a>(
    bytes: &'a [u8],
    shapes: &Shapes,
) -> Result<BTreeMap<String, Numbers<'a>>, CheckpointError> {
    if let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length))
        && length > HEADER_BYTES_MAX as u64
    {
        return Err(CheckpointError::Header(length));
    }
    let file = SafeTensors::deserialize(bytes)?;
    if let Some(extra) = file.names().into_iter().find(|name| !shapes.contains_key(*name)) {
        return Err(CheckpointError::Extra(extra.to_owned()));
    }
    let mut found = BTreeMap::new();
    for (name, shape) in shapes {
        let view = file.tensor(name).map_err(|_| CheckpointError::Missing(name.clone()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(CheckpointError::Shape { name: name.clone(), found, expected: format!("F32 {shape:?}") });
        }
        let numbers = view.data().as_chunks().0;
        if numbers.iter().any(|bytes| !f32::from_le_bytes(*bytes).is_finite()) {
            return Err(CheckpointError::NotFinite(name.clone()));
        }
        found.insert(name.clone(), numbers);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

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
        // The crate's own writer, which wants all bytes at hand, says the same.
        let all = tensors();
        let numbers =
            |name: &String| all[name].to_vec1::<f32>().unwrap().iter().flat_map(|it| it.to_le_bytes()).collect();
        let by_name: BTreeMap<&String, Vec<u8>> = all.keys().map(|name| (name, numbers(name))).collect();
        let view = |name: &String| TensorView::new(Dtype::F32, all[name].dims().to_vec(), &by_name[name]).unwrap();
        assert_eq!(bytes, safetensors::serialize(all.keys().map(|name| (name, view(name))), None).unwrap());
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
