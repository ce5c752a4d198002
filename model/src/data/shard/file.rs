//! A shard that stays on disk: its samples are read one at a time, by their position.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use super::{Encoding, Layout, ShardError, caption_ends, read_captions};

/// Why a shard's file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ShardFileError {
    /// The file is no shard.
    #[error("{path}: {error}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ShardError,
    },
    /// A sample can't be read, though the file was whole when it was opened.
    #[error(
        "sample {sample} of {path} can't be read any more: {error}. Is the disk still there, and was the file changed?"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Which of its samples.
        sample: usize,
        /// What the operating system said.
        error: io::Error,
    },
}

/// The file of a shard, checked once when it was opened.
///
/// In memory are where its tensors lie and where each caption ends, four bytes a sample; nothing else grows with the file. It is opened anew for each
/// sample, since a data set has more shards than a process may have open files, and opening costs little beside decoding.
#[derive(Debug, Clone)]
pub struct ShardFile {
    path: PathBuf,
    layout: Layout,
    caption_ends: Vec<u32>,
}

impl ShardFile {
    /// Opens a file that anyone may have made, and checks all of it but the hash. It must stay as it is from then on.
    pub fn open(path: &Path) -> Result<Self, ShardFileError> {
        let opened = File::open(path).map_err(ShardError::from).and_then(|file| Self::check(path, file));
        opened.map_err(|error| ShardFileError::Broken { path: path.to_owned(), error })
    }

    fn check(path: &Path, file: File) -> Result<Self, ShardError> {
        let length = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let layout = Layout::read(&mut file, length)?;
        let mut ends = vec![0; 4 * layout.samples];
        file.seek(SeekFrom::Start(layout.caption_ends().start))?;
        file.read_exact(&mut ends)?;
        let caption_ends = caption_ends(&ends, layout.captions.end - layout.captions.start)?;
        file.seek(SeekFrom::Start(layout.captions.start))?;
        read_captions(&mut file, &caption_ends, |_| {})?;
        file.seek(SeekFrom::Start(layout.pictures.start))?;
        layout.encoding.check(&mut file, layout.samples, layout.height, layout.width)?;
        Ok(Self { path: path.to_owned(), layout, caption_ends })
    }

    /// Number of samples, at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layout.samples
    }

    /// What it keeps of each picture.
    pub fn encoding(&self) -> Encoding {
        self.layout.encoding
    }

    /// Height of every picture, in pixels; of every latent, in its positions.
    pub fn height(&self) -> usize {
        self.layout.height
    }

    /// Width of every picture or latent.
    pub fn width(&self) -> usize {
        self.layout.width
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the picture of `sample` into `picture`, in the bytes that the encoding describes.
    pub fn read_picture(&self, sample: usize, picture: &mut Vec<u8>) -> Result<(), ShardFileError> {
        let bytes = self.layout.encoding.bytes(self.layout.height, self.layout.width) as u64;
        let at = self.layout.pictures.start + sample as u64 * bytes;
        self.read(sample, at..at + bytes, picture)
    }

    /// Reads the caption of `sample`.
    pub fn read_caption(&self, sample: usize) -> Result<String, ShardFileError> {
        let end = |samples: usize| match samples {
            0 => 0,
            _ => self.caption_ends.get(samples - 1).map_or(0, |end| u64::from(*end)),
        };
        let at = self.layout.captions.start;
        let mut text = Vec::new();
        self.read(sample, at + end(sample)..at + end(sample + 1), &mut text)?;
        String::from_utf8(text)
            .map_err(|error| self.unreadable(sample, io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Reads what lies at `at` in the file and belongs to `sample`.
    fn read(&self, sample: usize, at: Range<u64>, into: &mut Vec<u8>) -> Result<(), ShardFileError> {
        let mut read = || {
            if sample >= self.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it has {} samples", self.len())));
            }
            into.resize((at.end - at.start) as usize, 0);
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(at.start))?;
            file.read_exact(into)
        };
        read().map_err(|error| self.unreadable(sample, error))
    }

    fn unreadable(&self, sample: usize, error: io::Error) -> ShardFileError {
        ShardFileError::Read { path: self.path.clone(), sample, error }
    }
}
