//! Shards in memory, as batches to train on.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::shard::{Shard, ShardError};
use crate::batch::{Batch, BatchSource, Text};
use crate::text::TextEncoder;

/// Most memory that encoded captions may take, in bytes.
pub const CAPTION_TABLE_BYTES_MAX: usize = 8 << 30;
/// How many captions go through the encoder at once.
const CAPTIONS_A_CALL: usize = 256;

/// Why shards make no dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A shard's bytes are malformed.
    #[error("shard {index} of the data set: {error}")]
    Shard {
        /// Which of the given shards.
        index: usize,
        /// What is wrong with it.
        error: ShardError,
    },
    /// There is nothing to train on.
    #[error("no shards were given, so there is nothing to train on")]
    Empty,
    /// Pictures of two sizes, or not square.
    #[error("shard {index} holds pictures of {height} x {width} pixels; all must be squares of {expected}")]
    Size {
        /// Which of the given shards.
        index: usize,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
        /// The side that the first shard has.
        expected: usize,
    },
    /// The captions, encoded, don't fit the memory set aside for them.
    #[error(
        "{captions} different captions take {bytes} bytes when encoded, over the {CAPTION_TABLE_BYTES_MAX} allowed: \
         train on fewer shards or use a smaller text encoder"
    )]
    Captions {
        /// Different captions.
        captions: usize,
        /// Bytes they would take.
        bytes: usize,
    },
    /// The text encoder failed.
    #[error("can't encode the captions: {0}")]
    Encoder(#[from] candle_core::Error),
}

/// Samples of some shards: pixels as bytes, and each different caption encoded once. Lives in host memory.
///
/// Pictures aren't flipped: a mirrored letter is another picture than its caption says.
#[derive(Debug, Clone)]
pub struct Dataset {
    side: usize,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    captions: Vec<String>,
    /// For each sample its row in `text`.
    caption_rows: Vec<u32>,
    text: Text,
}

impl Dataset {
    /// Reads shards, each with the label of its cluster, and encodes their captions. The caller has checked the hashes.
    pub fn from_shards(shards: &[(Vec<u8>, u32)], encoder: &dyn TextEncoder) -> Result<Self, DatasetError> {
        let (mut side, mut pixels, mut labels) = (0, Vec::new(), Vec::new());
        let mut captions: Vec<String> = Vec::new();
        let mut caption_rows = Vec::new();
        let mut rows: HashMap<String, u32> = HashMap::new();
        for (index, (bytes, label)) in shards.iter().enumerate() {
            let shard = Shard::read(bytes).map_err(|error| DatasetError::Shard { index, error })?;
            let (height, width) = (shard.height(), shard.width());
            let expected = if index == 0 { height } else { side };
            if height != expected || width != expected {
                return Err(DatasetError::Size { index, height, width, expected });
            }
            side = expected;
            pixels.extend_from_slice(shard.pixels());
            labels.extend(std::iter::repeat_n(*label, shard.len()));
            for caption in shard.captions() {
                let row = *rows.entry(caption.clone()).or_insert_with(|| {
                    captions.push(caption.clone());
                    captions.len() as u32 - 1
                });
                caption_rows.push(row);
            }
        }
        if labels.is_empty() {
            return Err(DatasetError::Empty);
        }
        let text = encode_all(&captions, encoder)?;
        Ok(Self { side, pixels, labels, captions, caption_rows, text })
    }

    /// Height and width of every picture, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The cluster of each sample.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The caption of sample `index`, or nothing where there is no such sample.
    pub fn caption(&self, index: usize) -> Option<&str> {
        Some(&self.captions[*self.caption_rows.get(index)? as usize])
    }
}

impl BatchSource for Dataset {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
        if let Some(index) = indices.iter().find(|index| **index >= self.len()) {
            candle_core::bail!("sample {index} of a data set of {}", self.len());
        }
        let plane = self.side * self.side;
        let mut images = Vec::with_capacity(indices.len() * plane * 3);
        for index in indices {
            let picture = &self.pixels[index * plane * 3..(index + 1) * plane * 3];
            for channel in 0..3 {
                images.extend(picture[channel..].iter().step_by(3).map(|value| f32::from(*value) / 127.5 - 1.0));
            }
        }
        let rows: Vec<u32> = indices.iter().map(|index| self.caption_rows[*index]).collect();
        let rows = Tensor::from_vec(rows, indices.len(), &Device::Cpu)?;
        let labels: Vec<u32> = indices.iter().map(|index| self.labels[*index]).collect();
        Ok(Batch {
            images: Tensor::from_vec(images, (indices.len(), 3, self.side, self.side), device)?,
            text: Text {
                tokens: self.text.tokens.index_select(&rows, 0)?.to_device(device)?,
                pooled: self.text.pooled.index_select(&rows, 0)?.to_device(device)?,
            },
            labels: Tensor::from_vec(labels, indices.len(), device)?,
        })
    }
}

fn encode_all(captions: &[String], encoder: &dyn TextEncoder) -> Result<Text, DatasetError> {
    let bytes = captions.len().saturating_mul(encoder.tokens()).saturating_mul(encoder.width()).saturating_mul(4);
    if bytes > CAPTION_TABLE_BYTES_MAX {
        return Err(DatasetError::Captions { captions: captions.len(), bytes });
    }
    let (mut tokens, mut pooled) = (Vec::new(), Vec::new());
    for part in captions.chunks(CAPTIONS_A_CALL) {
        let part: Vec<&str> = part.iter().map(String::as_str).collect();
        let text = encoder.encode(&part, &Device::Cpu)?;
        tokens.push(text.tokens);
        pooled.push(text.pooled);
    }
    Ok(Text { tokens: Tensor::cat(&tokens, 0)?, pooled: Tensor::cat(&pooled, 0)? })
}
