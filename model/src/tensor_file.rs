//! A safetensors file, read one tensor at a time: what it claims is checked before anything is allocated, and no more than one tensor is held besides what
//! is made of it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};

use crate::{
    checkpoint::{CheckpointError, HEADER_BYTES_MAX},
    config::Shapes,
};

/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;

/// A file whose header was read and fits its length. Numbers may be f32, bf16 or f16.
///
/// It is held open, so that it may be removed or replaced by another meanwhile.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: RefCell<File>,
    /// The length and the header, as they stand in the file.
    head: Vec<u8>,
    metadata: Metadata,
}

impl TensorFile {
    /// Reads the header.
    ///
    /// # Errors
    /// If the file cannot be read, is no safetensors, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(CheckpointError::Read)?;
        let bytes = file.metadata().map_err(CheckpointError::Read)?.len();
        let (head, metadata) = Self::read_head(&mut file)?;
        if head.len() as u64 + metadata.data_len() as u64 != bytes {
            return Err(SafeTensorError::MetadataIncompleteBuffer.into());
        }
        Ok(Self { path: path.to_owned(), file: RefCell::new(file), head, metadata })
    }

    /// The length and header of a file, and what they say; the numbers that follow are not touched.
    fn read_head(file: &mut impl Read) -> Result<(Vec<u8>, Metadata), CheckpointError> {
        let mut head = vec![0; LENGTH_BYTES as usize];
        read_exactly(file, &mut head)?;
        let length = u64::from_le_bytes(head[..].try_into().unwrap_or_default());
        if length > HEADER_BYTES_MAX as u64 {
            return Err(CheckpointError::Header(length));
        }
        head.resize((LENGTH_BYTES + length) as usize, 0);
        read_exactly(file, &mut head[LENGTH_BYTES as usize..])?;
        let metadata = serde_json::from_slice(&head[LENGTH_BYTES as usize..])
            .map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        Ok((head, metadata))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Every way in which the file differs from these names and shapes, in words; none if it is what is wanted.
    pub fn differences(&self, wanted: &Shapes) -> Vec<String> {
        differences(&self.metadata, wanted)
    }

    /// Reads all tensors in the order in which they lie there, as f32. Returns the BLAKE3 of the whole file.
    ///
    /// # Errors
    /// If the file has become shorter, holds numbers that are not finite or of another type, or cannot be read.
    pub fn read(&self, take: &mut dyn FnMut(&str, Vec<f32>)) -> Result<blake3::Hash, CheckpointError> {
        let file = &mut *self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.head.len() as u64)).map_err(CheckpointError::Read)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.head);
        let mut bytes = Vec::new();
        for name in self.metadata.offset_keys() {
            let Some(info) = self.metadata.info(&name) else { continue };
            bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
            read_exactly(file, &mut bytes)?;
            hasher.update(&bytes);
            let numbers = numbers(&name, info, &bytes)?;
            if numbers.iter().any(|it| !it.is_finite()) {
                return Err(CheckpointError::NotFinite(name));
            }
            take(&name, numbers);
        }
        Ok(hasher.finalize())
    }
}

/// Fills the buffer; a file that ends before is no whole one.
fn read_exactly(file: &mut impl Read, buffer: &mut [u8]) -> Result<(), CheckpointError> {
    file.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => SafeTensorError::MetadataIncompleteBuffer.into(),
        _ => CheckpointError::Read(error),
    })
}

fn precision(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

fn numbers(name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, CheckpointError> {
    let Some(precision) = precision(info.dtype) else {
        let found = format!("{:?} {:?}", info.dtype, info.shape);
        return Err(CheckpointError::Shape { name: name.to_owned(), found, expected: "F32, BF16 or F16".to_owned() });
    };
    let tensor = Tensor::from_raw_buffer(bytes, precision, &info.shape, &Device::Cpu)?;
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

fn differences(metadata: &Metadata, wanted: &Shapes) -> Vec<String> {
    let found: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
    let mut differences = Vec::new();
    for (name, shape) in wanted {
        match found.get(name) {
            None => differences.push(format!("{name} {shape:?} is missing")),
            Some(info) if info.shape != *shape => {
                differences.push(format!("{name} is {:?} instead of {shape:?}", info.shape));
            }
            Some(info) if precision(info.dtype).is_none() => {
                differences.push(format!("{name} is of type {:?} instead of F32, BF16 or F16", info.dtype));
            }
            Some(_) => {}
        }
    }
    let extra = found.iter().filter(|(name, _)| !wanted.contains_key(*name));
    differences.extend(extra.map(|(name, info)| format!("{name} {:?} does not belong there", info.shape)));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint,
        config::PartConfig,
        preset::{EXPERTS, Preset},
    };

    fn written(folder: &Path, tensors: &[(&str, Tensor)]) -> PathBuf {
        let path = folder.join("tensors.safetensors");
        let tensors: std::collections::HashMap<_, _> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    }

    #[test]
    fn tensors_of_every_precision_are_read_and_the_hash_is_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let values = Tensor::new(&[[1.0f32, -2.5], [0.25, 96.0]], &Device::Cpu).unwrap();
        let of = |precision| values.to_dtype(precision).unwrap();
        let path = written(folder.path(), &[("a", of(DType::BF16)), ("b", of(DType::F16)), ("c", of(DType::F32))]);
        let file = TensorFile::open(&path).unwrap();
        let mut read = BTreeMap::new();
        let hash = file.read(&mut |name, numbers| {
            read.insert(name.to_owned(), numbers);
        });
        assert_eq!(hash.unwrap(), blake3::hash(&std::fs::read(&path).unwrap()));
        assert!(read.len() == 3 && read.values().all(|numbers| numbers == &[1.0, -2.5, 0.25, 96.0]), "{read:?}");
        let shapes = ["a", "b", "c"].map(|name| (name.to_owned(), vec![2, 2])).into();
        assert_eq!(file.differences(&shapes), Vec::<String>::new());
    }

    #[test]
    fn all_differences_are_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let whole = Tensor::zeros(3, DType::I64, &Device::Cpu).unwrap();
        let path = written(folder.path(), &[("a", tensor(&[2, 3])), ("b", whole), ("d", tensor(&[1]))]);
        let wanted = [("a", vec![3, 2]), ("b", vec![3]), ("c", vec![4])].map(|(name, shape)| (name.to_owned(), shape));
        let said = TensorFile::open(&path).unwrap().differences(&wanted.into()).join("; ");
        assert_eq!(
            said,
            "a is [2, 3] instead of [3, 2]; b is of type I64 instead of F32, BF16 or F16; c [4] is missing; d [1] does not belong there"
        );
    }

    #[test]
    fn a_file_that_is_cut_off_or_no_tensors_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[("a", Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap())]);
        let whole = std::fs::read(&path).unwrap();
        for end in [0, 7, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(matches!(TensorFile::open(&path), Err(CheckpointError::Format(_))), "cut off at {end}");
        }
        std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert!(matches!(TensorFile::open(&path), Err(CheckpointError::Format(_))));
        std::fs::write(&path, [&(4u64 << 30).to_le_bytes()[..], b"{}"].concat()).unwrap();
        assert!(matches!(TensorFile::open(&path), Err(CheckpointError::Header(_))));
        std::fs::write(&path, b"PK\x03\x04 a pickle").unwrap();
        assert!(matches!(TensorFile::open(&path), Err(CheckpointError::Header(_))));
    }

    /// What the published weights' own header says, without their 2.4 GB.
    #[test]
    fn the_header_of_an_xl_2_expert_is_checked_without_its_numbers() {
        let [.., xl] = EXPERTS;
        assert_eq!(xl, "dit-xl/2".parse::<Preset>().unwrap());
        let mut shapes = PartConfig::Expert(xl.expert()).shapes();
        let header = checkpoint::header(&shapes).unwrap();
        let (_, metadata) = TensorFile::read_head(&mut &header[..]).unwrap();
        assert_eq!(metadata.data_len(), 4 * 605_970_448);
        assert_eq!(differences(&metadata, &shapes), Vec::<String>::new());
        shapes.insert("layers.27.attn.in_proj_weight".to_owned(), vec![3 * 1152, 1151]);
        shapes.remove("layers.0.cross_attn.out_proj.bias");
        let said = differences(&metadata, &shapes).join("; ");
        assert_eq!(
            said,
            "layers.27.attn.in_proj_weight is [3456, 1152] instead of [3456, 1151]; layers.0.cross_attn.out_proj.bias [1152] does not belong there"
        );
    }
}
