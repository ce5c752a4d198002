//! Shards on disk, as batches to train on.

use std::{fmt, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    caption_cache::CaptionCache,
    shard::{Encoding, ShardFile, ShardFileError},
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
    /// Pictures of two shapes, or not square.
    #[error(
        "{path} holds {found:?} of {height} x {width}, and the first shard {expected:?} of {side} a side; all must be alike and square"
    )]
    Shape {
        /// The shard's file.
        path: PathBuf,
        /// What it keeps of a picture.
        found: Encoding,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
        /// What the first shard keeps.
        expected: Encoding,
        /// The side that the first shard has.
        side: usize,
    },
}

/// Samples of some shards, read from their files when they are drawn.
///
/// Four bytes a sample are in memory (where its caption ends), and a bounded number of encoded captions; pixels stay on disk, so a data set may be
/// larger than memory. What the operating system keeps of the files is its own affair.
///
/// Pictures aren't flipped: a mirrored letter is another picture than its caption says.
pub struct Dataset {
    encoding: Encoding,
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
            let (found, height, width) = (file.encoding(), file.height(), file.width());
            let first = opened.first().map_or(&file, |first| &first.file);
            let (expected, side) = (first.encoding(), first.height());
            if found != expected || height != side || width != side {
                return Err(DatasetError::Shape { path, found, height, width, expected, side });
            }
            let end = opened.last().map_or(0, |last| last.end) + file.len();
            opened.push(LabelledShard { file, label, end });
        }
        let first = &opened.first().ok_or(DatasetError::Empty)?.file;
        let (encoding, side) = (first.encoding(), first.height());
        Ok(Self { encoding, side, shards: opened, captions: CaptionCache::new(encoder) })
    }

    /// What its shards keep of each picture.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Height and width of every picture, in pixels; of every latent, in its positions.
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
        let shape = (indices.len(), self.encoding.channels(), self.side, self.side);
        let mut images = Vec::with_capacity(shape.0 * shape.1 * shape.2 * shape.3);
        let (mut captions, mut labels) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
        let (mut spread, mut picture) = (Vec::new(), Vec::new());
        for index in indices {
            let Some((shard, sample)) = self.locate(*index) else {
                candle_core::bail!("sample {index} of a data set of {}", self.len());
            };
            shard.file.read_picture(sample, &mut picture).map_err(candle_core::Error::wrap)?;
            captions.push(shard.file.read_caption(sample).map_err(candle_core::Error::wrap)?);
            labels.push(shard.label);
            self.encoding.decode(&picture, &mut images, &mut spread);
        }
        let spread = (!spread.is_empty()).then(|| Tensor::from_vec(spread, shape, device)).transpose()?;
        Ok(Batch {
            images: Tensor::from_vec(images, shape, device)?,
            spread,
            text: self.captions.encode(&captions, device)?,
            labels: Tensor::from_vec(labels, indices.len(), device)?,
        })
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset of {} samples of {2}x{2} in {} shards", self.len(), self.shards.len(), self.side)
    }
}
