//! Where things lie in a shard's file.

use std::{io::Read, ops::Range};

use safetensors::{
    SafeTensorError,
    tensor::{Dtype, Metadata},
};

use super::{
    CAPTION_ENDS, CAPTIONS, HEADER_BYTES_MAX, SAMPLES_MAX, SIDE_MAX, ShardError,
    encoding::{CHANNELS_MAX, Encoding, MOMENTS, PIXELS},
};

/// Where a shard's tensors lie in its file: offsets from its beginning, bytes, all within its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) samples: usize,
    pub(super) encoding: Encoding,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) pictures: Range<u64>,
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
        let stored = [PIXELS, MOMENTS].into_iter().find(|name| header.info(name).is_some()).unwrap_or(PIXELS);
        let dtype = if stored == PIXELS { Dtype::U8 } else { Dtype::F16 };
        let pictures = tensor(&header, start, stored, dtype)?;
        let (encoding, samples, height, width) = match (stored, pictures.shape) {
            (PIXELS, &[samples, height, width, 3]) => (Encoding::Pixels, samples, height, width),
            (MOMENTS, &[samples, numbers, height, width]) if numbers % 2 == 0 => {
                (Encoding::Moments { channels: numbers / 2 }, samples, height, width)
            }
            (_, shape) => {
                return Err(ShardError::Layout(format!(
                    "{stored} of shape {shape:?} instead of pixels [n, height, width, 3] or moments [n, 2 * channels, height, width]"
                )));
            }
        };
        check_extent(samples, encoding, height, width).map_err(ShardError::Layout)?;
        let ends = tensor(&header, start, CAPTION_ENDS, Dtype::U32)?;
        let text = tensor(&header, start, CAPTIONS, Dtype::U8)?;
        if *ends.shape != [samples] || text.shape.len() != 1 {
            return Err(ShardError::Layout(format!(
                "captions {:?} with ends {:?} for {samples} pictures",
                text.shape, ends.shape
            )));
        }
        let caption_ends = ends.at.start;
        Ok(Self { samples, encoding, height, width, pictures: pictures.at, captions: text.at, caption_ends })
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
pub(super) fn check_extent(n: usize, encoding: Encoding, height: usize, width: usize) -> Result<(), String> {
    if !(1..=SAMPLES_MAX).contains(&n) {
        return Err(format!("{n} samples where 1 to {SAMPLES_MAX} are allowed"));
    }
    if !(1..=SIDE_MAX).contains(&height) || !(1..=SIDE_MAX).contains(&width) {
        return Err(format!("pictures of {height} x {width} where 1 to {SIDE_MAX} a side are allowed"));
    }
    match encoding {
        Encoding::Moments { channels } if !(1..=CHANNELS_MAX).contains(&channels) => {
            Err(format!("latents of {channels} channels where 1 to {CHANNELS_MAX} are allowed"))
        }
        _ => Ok(()),
    }
}
