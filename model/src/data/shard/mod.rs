//! A shard: a content-addressed file of prepared samples of one cluster.
//!
//! The file is safetensors without metadata, so its bytes follow from the samples alone, and holds three tensors: the pictures, either as
//! `pixels` u8 `[n, height, width, 3]` or as `moments` f16 `[n, 2 * channels, height, width]` ([`Encoding`]); `captions` u8 `[bytes]`
//! (UTF-8, one after the other); and `caption_ends` u32 `[n]` (where each caption ends in `captions`). Shards come from strangers: every size
//! and every number is checked before it is trusted. The hash isn't checked here; whoever fetched the bytes compares [`shard_hash`] with the
//! name that the run manifest gives.
//!
//! [`Shard`] is one in memory, as an organiser makes it; training reads from a [`ShardFile`].

mod encoding;
mod file;
mod layout;

use std::{io::Read, ops::Range};

use candle_core::{Device, Tensor};
use safetensors::{
    SafeTensorError,
    tensor::{Dtype, TensorView, serialize},
};

pub use encoding::{CHANNELS_MAX, Encoding, LOG_VARIANCE_MAX, moment_bytes};
pub use file::{ShardFile, ShardFileError};
use layout::{Layout, check_extent};

use crate::image_codec::ImageCodec;

/// Largest header that is parsed, in bytes. A real one takes about 200.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest caption in a shard, in bytes.
pub const CAPTION_BYTES_MAX: usize = 4096;
/// Most samples that one shard holds.
pub const SAMPLES_MAX: usize = 1 << 20;
/// Largest height or width of a picture in a shard, in pixels; of a latent, in its positions.
pub const SIDE_MAX: usize = 4096;

/// Pictures that a codec encodes at once: an autoencoder takes 100 MB and more for each.
const PICTURES_A_CALL: usize = 8;

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
    /// A latent's mean is no number, or its log-variance is none that a codec gives.
    #[error(
        "shard with a broken latent at sample {0}: a mean or log-variance is not finite, or above {LOG_VARIANCE_MAX}"
    )]
    Latent(usize),
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
    encoding: Encoding,
    height: usize,
    width: usize,
    pictures: Vec<u8>,
    captions: Vec<String>,
}

/// The name of a shard: the BLAKE3 hash of its bytes.
pub fn shard_hash(bytes: &[u8]) -> blake3::Hash {
    blake3::hash(bytes)
}

impl Shard {
    /// Joins `captions.len()` pictures of `height` x `width` RGB pixels (row by row, in `pixels`) with their captions.
    pub fn new(height: usize, width: usize, pixels: Vec<u8>, captions: Vec<String>) -> Result<Self, ShardError> {
        Self::encoded(Encoding::Pixels, height, width, pixels, captions)
    }

    /// Joins `captions.len()` pictures of `height` x `width` positions, in the bytes that `encoding` describes, with their captions.
    pub fn encoded(
        encoding: Encoding,
        height: usize,
        width: usize,
        pictures: Vec<u8>,
        captions: Vec<String>,
    ) -> Result<Self, ShardError> {
        check_extent(captions.len(), encoding, height, width).map_err(ShardError::Samples)?;
        let expected = captions.len() * encoding.bytes(height, width);
        if pictures.len() != expected {
            return Err(ShardError::Samples(format!("{} picture bytes where {expected} are needed", pictures.len())));
        }
        encoding.check(&mut pictures.as_slice(), captions.len(), height, width)?;
        if let Some(long) = captions.iter().find(|caption| caption.len() > CAPTION_BYTES_MAX) {
            let bytes = long.len();
            return Err(ShardError::Samples(format!(
                "a caption of {bytes} bytes where {CAPTION_BYTES_MAX} are allowed"
            )));
        }
        Ok(Self { encoding, height, width, pictures, captions })
    }

    /// The same samples as `codec` keeps them: a shard of pixels becomes one of latents, or stays as it is.
    pub fn encode(self, codec: &dyn ImageCodec) -> candle_core::Result<Self> {
        let (mut moments, mut shape) = (Vec::new(), None);
        for pictures in self.pictures.chunks(PICTURES_A_CALL * self.encoding.bytes(self.height, self.width)) {
            let (mut values, mut spread) = (Vec::new(), Vec::new());
            for picture in pictures.chunks(self.encoding.bytes(self.height, self.width)) {
                self.encoding.decode(picture, &mut values, &mut spread);
            }
            if !spread.is_empty() {
                candle_core::bail!("this shard holds latents already");
            }
            let pictures = Tensor::from_vec(values, ((), 3, self.height, self.width), &Device::Cpu)?;
            let Some(encoded) = codec.moments(&pictures)? else { return Ok(self) };
            let (_, numbers, height, width) = encoded.dims4()?;
            shape = Some((numbers / 2, height, width));
            moments.extend(moment_bytes(&encoded)?);
        }
        let (channels, height, width) = shape.ok_or_else(|| candle_core::Error::msg("a shard without samples"))?;
        let encoding = Encoding::Moments { channels };
        Self::encoded(encoding, height, width, moments, self.captions).map_err(candle_core::Error::wrap)
    }

    /// Number of samples, at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// What it keeps of each picture.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Height of every picture, in pixels; of every latent, in its positions.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width of every picture or latent.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All pictures, one after the other, in the bytes that the encoding describes.
    pub fn pictures(&self) -> &[u8] {
        &self.pictures
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
            (
                self.encoding.tensor(),
                TensorView::new(
                    self.encoding.dtype(),
                    self.encoding.shape(n, self.height, self.width),
                    &self.pictures,
                )?,
            ),
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
        let (encoding, height, width) = (layout.encoding, layout.height, layout.width);
        let pictures = part(layout.pictures).to_vec();
        encoding.check(&mut pictures.as_slice(), captions.len(), height, width)?;
        Ok(Self { encoding, height, width, pictures, captions })
    }
}

/// The ends of the captions from their bytes (little-endian u32): they ascend up to exactly `text_bytes`, by no more than a caption may have.
fn caption_ends(bytes: &[u8], text_bytes: u64) -> Result<Vec<u32>, ShardError> {
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
fn read_captions(text: &mut impl Read, ends: &[u32], mut visit: impl FnMut(&str)) -> Result<(), ShardError> {
    let (mut start, mut caption) = (0, Vec::new());
    for (sample, end) in ends.iter().enumerate() {
        caption.resize((end - start) as usize, 0);
        text.read_exact(&mut caption)?;
        visit(std::str::from_utf8(&caption).map_err(|_| ShardError::Caption(sample))?);
        start = *end;
    }
    Ok(())
}
