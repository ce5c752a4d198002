//! Shards on disk, as batches to train on.

use std::{fmt, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    caption_cache::CaptionCache,
    shard_file::{ShardFile, ShardFileError},
};
use crate::{
    batch::{Batch, BatchSource},
    text::TextEncoder,
};

/// Why shards make no data set.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A shard's file can't be used.
    #[error(transparent)]
    Shard(#[from] ShardFileError),
    /// There is nothing to train on.
    #[error("no shards were given, so there is nothing to train on")]
    Empty,
    /// Pictures of two sizes, or not square.
    #[error("{path} holds pictures of {height} x {width} pixels; all must be squares of {expected}")]
    Size {
        /// The shard's file.
        path: PathBuf,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
        /// The side that the first shard has.
        expected: usize,
    },
}

/// Samples of some shards, read from their files when they are drawn.
///
/// Four bytes a sample are in memory (where its caption ends), and a bounded number of encoded captions; pixels stay on disk, so a data set may be
/// larger than memory. What the operating system keeps of the files is its own affair.
///
/// Pictures aren't flipped: a mirrored letter is another picture than its caption says.
pub struct Dataset {
    side: usize,
    shards: Vec<LabelledShard>,
    captions: CaptionCache,
}

struct LabelledShard {
    file: ShardFile,
    /// The cluster of its samples.
    label: u32,
    /// Samples in the shards up to and including this one.
    end: usize,
}

impl Dataset {
    /// Opens shards, each with the label of its cluster. The caller has checked the hashes; the files must stay as they are.
    pub fn open(
        shards: impl IntoIterator<Item = (PathBuf, u32)>,
        encoder: Arc<dyn TextEncoder>,
    ) -> Result<Self, DatasetError> {
        let mut opened: Vec<LabelledShard> = Vec::new();
        for (path, label) in shards {
            let file = ShardFile::open(&path)?;
            let (height, width) = (file.height(), file.width());
            let expected = opened.first().map_or(height, |first| first.file.height());
            if height != expected || width != expected {
                return Err(DatasetError::Size { path, height, width, expected });
            }
            let end = opened.last().map_or(0, |last| last.end) + file.len();
            opened.push(LabelledShard { file, label, end });
        }
        let side = opened.first().ok_or(DatasetError::Empty)?.file.height();
        Ok(Self { side, shards: opened, captions: CaptionCache::new(encoder) })
    }

    /// Height and width of every picture, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The cluster of sample `index`, or nothing where there is no such sample.
    pub fn label(&self, index: usize) -> Option<u32> {
        self.locate(index).map(|(shard, _)| shard.label)
    }

    /// The caption of sample `index`, or nothing where there is no such sample.
    pub fn caption(&self, index: usize) -> Result<Option<String>, DatasetError> {
        let Some((shard, sample)) = self.locate(index) else { return Ok(None) };
        Ok(Some(shard.file.read_caption(sample)?))
    }

    /// The shard of sample `index`, and its place there.
    fn locate(&self, index: usize) -> Option<(&LabelledShard, usize)> {
        let shard = self.shards.get(self.shards.partition_point(|shard| shard.end <= index))?;
        Some((shard, index - (shard.end - shard.file.len())))
    }
}

impl BatchSource for Dataset {
    fn len(&self) -> usize {
        self.shards.last().map_or(0, |last| last.end)
    }

    fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<Batch> {
        let plane = self.side * self.side;
        let mut images = Vec::with_capacity(indices.len() * plane * 3);
        let (mut captions, mut labels) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
        let mut pixels = Vec::new();
        for index in indices {
            let Some((shard, sample)) = self.locate(*index) else {
                candle_core::bail!("sample {index} of a data set of {}", self.len());
            };
            shard.file.read_pixels(sample, &mut pixels).map_err(candle_core::Error::wrap)?;
            captions.push(shard.file.read_caption(sample).map_err(candle_core::Error::wrap)?);
            labels.push(shard.label);
            for channel in 0..3 {
                images.extend(pixels[channel..].iter().step_by(3).map(|value| f32::from(*value) / 127.5 - 1.0));
            }
        }
        Ok(Batch {
            images: Tensor::from_vec(images, (indices.len(), 3, self.side, self.side), device)?,
            text: self.captions.encode(&captions, device)?,
            labels: Tensor::from_vec(labels, indices.len(), device)?,
        })
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset of {} samples of {2}x{2} pixels in {} shards", self.len(), self.shards.len(), self.side)
    }
}
