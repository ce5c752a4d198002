//! A shard: a content-addressed file of prepared samples of one cluster.
//!
//! The file is safetensors without metadata, so its bytes follow from the samples alone, and holds three tensors:
//! `pixels` u8 `[n, height, width, 3]`, `captions` u8 `[bytes]` (UTF-8, one after the other) and `caption_ends` u32 `[n]`
//! (where each caption ends in `captions`). Shards come from strangers: every size is checked before it is trusted. The hash isn't
//! checked here; whoever fetched the bytes compares [`shard_hash`] with the name that the run manifest gives.
//!
//! [`Shard`] is one in memory, as an organiser makes it; training reads from a [`ShardFile`](super::ShardFile).

use std::{io::Read, ops::Range};

use safetensors::{
    SafeTensorError,
    tensor::{Dtype, Metadata, TensorView, serialize},
};

/// Largest header that is parsed, in bytes. A real one takes about 200.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest caption in a shard, in bytes.
pub const CAPTION_BYTES_MAX: usize = 4096;
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
        available: u64,
    },
    /// The safetensors frame is malformed.
    #[error("not a shard: {0}")]
    Frame(#[from] SafeTensorError),
    /// A tensor is missing, has another type or shape, or there is one too many.
    #[error("not a shard: {0}")]
    Layout(String),
    /// A caption's bounds don't ascend within the caption bytes, or it is too long or no UTF-8.
    #[error("shard with a broken caption at sample {0}")]
    Caption(usize),
    /// The bytes can't be read.
    #[error("the shard can't be read: {0}")]
    Io(#[from] std::io::Error),
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
        if let Some(long) = captions.iter().find(|caption| caption.len() > CAPTION_BYTES_MAX) {
            let bytes = long.len();
            return Err(ShardError::Samples(format!(
                "a caption of {bytes} bytes where {CAPTION_BYTES_MAX} are allowed"
            )));
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
        let layout = Layout::read(bytes, bytes.len() as u64)?;
        let part = |range: Range<u64>| &bytes[range.start as usize..range.end as usize];
        let ends = caption_ends(part(layout.caption_ends()), layout.captions.end - layout.captions.start)?;
        let mut text = part(layout.captions);
        let mut captions = Vec::with_capacity(ends.len());
        read_captions(&mut text, &ends, |caption| captions.push(caption.to_owned()))?;
        Ok(Self { height: layout.height, width: layout.width, pixels: part(layout.pixels).to_vec(), captions })
    }
}

/// Where a shard's tensors lie in its file: offsets from its beginning, bytes, all within its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) samples: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) pixels: Range<u64>,
    pub(super) captions: Range<u64>,
    caption_ends: u64,
}

impl Layout {
    /// Reads the header from a file's beginning, and checks that a file of `length` bytes holds exactly what it says.
    pub(super) fn read(mut file: impl Read, length: u64) -> Result<Self, ShardError> {
        let mut head = [0; 8];
        let claimed =
            if length < 8 { u64::MAX } else { file.read_exact(&mut head).map(|()| u64::from_le_bytes(head))? };
        if claimed > HEADER_BYTES_MAX as u64 || claimed > length - 8 {
            return Err(ShardError::Header { claimed, available: length });
        }
        let mut header = vec![0; claimed as usize];
        file.read_exact(&mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        let start = 8 + claimed;
        if start + header.data_len() as u64 != length {
            return Err(SafeTensorError::MetadataIncompleteBuffer.into());
        }
        let tensors = header.tensors().len();
        if tensors != 3 {
            return Err(ShardError::Layout(format!("{tensors} tensors instead of 3")));
        }
        let pixels = tensor(&header, start, PIXELS, Dtype::U8)?;
        let &[samples, height, width, 3] = pixels.shape else {
            return Err(ShardError::Layout(format!(
                "pixels of shape {:?} instead of [n, height, width, 3]",
                pixels.shape
            )));
        };
        check_extent(samples, height, width).map_err(ShardError::Layout)?;
        let ends = tensor(&header, start, CAPTION_ENDS, Dtype::U32)?;
        let text = tensor(&header, start, CAPTIONS, Dtype::U8)?;
        if *ends.shape != [samples] || text.shape.len() != 1 {
            return Err(ShardError::Layout(format!(
                "captions {:?} with ends {:?} for {samples} pictures",
                text.shape, ends.shape
            )));
        }
        let caption_ends = ends.at.start;
        Ok(Self { samples, height, width, pixels: pixels.at, captions: text.at, caption_ends })
    }

    /// Where the ends of the captions lie, four bytes each.
    pub(super) fn caption_ends(&self) -> Range<u64> {
        self.caption_ends..self.caption_ends + 4 * self.samples as u64
    }
}

/// A tensor as the header describes it.
struct Described<'a> {
    shape: &'a [usize],
    at: Range<u64>,
}

fn tensor<'a>(header: &'a Metadata, start: u64, name: &str, dtype: Dtype) -> Result<Described<'a>, ShardError> {
    let info = header.info(name).ok_or_else(|| SafeTensorError::TensorNotFound(name.to_owned()))?;
    if info.dtype != dtype {
        return Err(ShardError::Layout(format!("{name} holds {:?} instead of {dtype:?}", info.dtype)));
    }
    let (from, to) = info.data_offsets;
    Ok(Described { shape: &info.shape, at: start + from as u64..start + to as u64 })
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

/// The ends of the captions from their bytes (little-endian u32): they ascend up to exactly `text_bytes`, by no more than a caption may have.
pub(super) fn caption_ends(bytes: &[u8], text_bytes: u64) -> Result<Vec<u32>, ShardError> {
    let ends: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|end| u32::from_le_bytes(*end)).collect();
    let mut start = 0;
    for (sample, end) in ends.iter().enumerate() {
        let fits = *end >= start && (end - start) as usize <= CAPTION_BYTES_MAX && u64::from(*end) <= text_bytes;
        if !fits {
            return Err(ShardError::Caption(sample));
        }
        start = *end;
    }
    match text_bytes - u64::from(start) {
        0 => Ok(ends),
        rest => Err(ShardError::Layout(format!("{rest} caption bytes belong to no sample"))),
    }
}

/// Hands the captions that end at `ends` on, one after the other; each must be UTF-8.
pub(super) fn read_captions(text: &mut impl Read, ends: &[u32], mut visit: impl FnMut(&str)) -> Result<(), ShardError> {
    let (mut start, mut caption) = (0, Vec::new());
    for (sample, end) in ends.iter().enumerate() {
        caption.resize((end - start) as usize, 0);
        text.read_exact(&mut caption)?;
        visit(std::str::from_utf8(&caption).map_err(|_| ShardError::Caption(sample))?);
        start = *end;
    }
    Ok(())
}
