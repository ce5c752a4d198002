//! A shard: a content-addressed file of prepared samples of one cluster.
//!
//! The file is safetensors without metadata, so its bytes follow from the samples alone, and holds three tensors:
//! `pixels` u8 `[n, height, width, 3]`, `captions` u8 `[bytes]` (UTF-8, one after the other) and `caption_ends` u32 `[n]`
//! (where each caption ends in `captions`). Shards come from strangers: [`Shard::read`] checks every size before it trusts it.
//! It doesn't check the hash; whoever fetched the bytes compares [`shard_hash`] with the name that the run manifest gives.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

/// Largest header that [`Shard::read`] parses, in bytes. A real one takes about 200.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Most samples that one shard holds.
pub const SAMPLES_MAX: usize = 1 << 20;
/// Largest height or width of a picture in a shard, in pixels.
pub const SIDE_MAX: usize = 4096;

const PIXELS: &str = "pixels";
const CAPTIONS: &str = "captions";
const CAPTION_ENDS: &str = "caption_ends";

/// Why bytes are no shard, or samples make none.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The bytes end before the header does, or the header claims too much.
    #[error(
        "not a shard: the header claims {claimed} bytes, the file has {available} and {HEADER_BYTES_MAX} are allowed"
    )]
    Header {
        /// Header bytes that the file claims.
        claimed: u64,
        /// Bytes of the whole file.
        available: usize,
    },
    /// The safetensors frame is malformed.
    #[error("not a shard: {0}")]
    Frame(#[from] safetensors::SafeTensorError),
    /// A tensor is missing, has another type or shape, or there is one too many.
    #[error("not a shard: {0}")]
    Layout(String),
    /// A caption's bounds don't ascend within the caption bytes, or it is no UTF-8.
    #[error("shard with a broken caption at sample {0}")]
    Caption(usize),
    /// Samples that can't stand in one shard.
    #[error("can't write this shard: {0}")]
    Samples(String),
}

/// The samples of one shard, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    height: usize,
    width: usize,
    pixels: Vec<u8>,
    captions: Vec<String>,
}

/// The name of a shard: the BLAKE3 hash of its bytes.
pub fn shard_hash(bytes: &[u8]) -> blake3::Hash {
    blake3::hash(bytes)
}

impl Shard {
    /// Joins `captions.len()` pictures of `height` x `width` RGB pixels (row by row, in `pixels`) with their captions.
    pub fn new(height: usize, width: usize, pixels: Vec<u8>, captions: Vec<String>) -> Result<Self, ShardError> {
        check_extent(captions.len(), height, width).map_err(ShardError::Samples)?;
        let expected = captions.len() * height * width * 3;
        if pixels.len() != expected {
            return Err(ShardError::Samples(format!("{} pixel bytes where {expected} are needed", pixels.len())));
        }
        Ok(Self { height, width, pixels, captions })
    }

    /// Number of samples, at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// Height of every picture, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width of every picture, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All pictures, u8 RGB, `[n, height, width, 3]` row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The captions, one a picture.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }

    /// The file's bytes. Equal shards give equal bytes.
    pub fn write(&self) -> Result<Vec<u8>, ShardError> {
        let n = self.len();
        let text = self.captions.concat();
        let mut ends = Vec::with_capacity(n * 4);
        let mut end = 0usize;
        for caption in &self.captions {
            end += caption.len();
            let end = u32::try_from(end).map_err(|_| ShardError::Samples("captions exceed 4 GiB".into()))?;
            ends.extend_from_slice(&end.to_le_bytes());
        }
        let tensors = [
            (CAPTION_ENDS, TensorView::new(Dtype::U32, vec![n], &ends)?),
            (CAPTIONS, TensorView::new(Dtype::U8, vec![text.len()], text.as_bytes())?),
            (PIXELS, TensorView::new(Dtype::U8, vec![n, self.height, self.width, 3], &self.pixels)?),
        ];
        Ok(serialize(tensors, None)?)
    }

    /// Reads a shard from bytes that anyone may have made.
    pub fn read(bytes: &[u8]) -> Result<Self, ShardError> {
        let claimed = bytes.first_chunk::<8>().map_or(u64::MAX, |head| u64::from_le_bytes(*head));
        if claimed > HEADER_BYTES_MAX as u64 || claimed > bytes.len() as u64 - 8 {
            return Err(ShardError::Header { claimed, available: bytes.len() });
        }
        let file = SafeTensors::deserialize(bytes)?;
        if file.len() != 3 {
            return Err(ShardError::Layout(format!("{} tensors instead of 3", file.len())));
        }
        let pixels = tensor(&file, PIXELS, Dtype::U8)?;
        let &[n, height, width, 3] = pixels.shape() else {
            return Err(ShardError::Layout(format!(
                "pixels of shape {:?} instead of [n, height, width, 3]",
                pixels.shape()
            )));
        };
        check_extent(n, height, width).map_err(ShardError::Layout)?;
        let ends = tensor(&file, CAPTION_ENDS, Dtype::U32)?;
        let text = tensor(&file, CAPTIONS, Dtype::U8)?;
        if ends.shape() != [n] || text.shape().len() != 1 {
            return Err(ShardError::Layout(format!(
                "captions {:?} with ends {:?} for {n} pictures",
                text.shape(),
                ends.shape()
            )));
        }
        Ok(Self { height, width, pixels: pixels.data().to_vec(), captions: captions(text.data(), ends.data())? })
    }
}

/// Refuses extents whose product could overflow, or that no shard has.
fn check_extent(n: usize, height: usize, width: usize) -> Result<(), String> {
    if !(1..=SAMPLES_MAX).contains(&n) {
        return Err(format!("{n} samples where 1 to {SAMPLES_MAX} are allowed"));
    }
    if !(1..=SIDE_MAX).contains(&height) || !(1..=SIDE_MAX).contains(&width) {
        return Err(format!("pictures of {height} x {width} pixels where 1 to {SIDE_MAX} a side are allowed"));
    }
    Ok(())
}

fn tensor<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype) -> Result<TensorView<'a>, ShardError> {
    let view = file.tensor(name)?;
    if view.dtype() != dtype {
        return Err(ShardError::Layout(format!("{name} holds {:?} instead of {dtype:?}", view.dtype())));
    }
    Ok(view)
}

/// Cuts the joined caption bytes at `ends` (little-endian u32), which must ascend up to exactly the last byte.
fn captions(text: &[u8], ends: &[u8]) -> Result<Vec<String>, ShardError> {
    let mut captions = Vec::with_capacity(ends.len() / 4);
    let mut start = 0;
    for end in ends.as_chunks::<4>().0 {
        let end = u32::from_le_bytes(*end) as usize;
        let caption = text.get(start..end).and_then(|bytes| std::str::from_utf8(bytes).ok());
        captions.push(caption.ok_or(ShardError::Caption(captions.len()))?.to_owned());
        start = end;
    }
    if start != text.len() {
        return Err(ShardError::Layout(format!("{} caption bytes belong to no sample", text.len() - start)));
    }
    Ok(captions)
}
