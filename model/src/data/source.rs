//! Where an organiser's pictures and captions come from: a folder or webdataset archives, read one sample at a time.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{archive, folder, picture, shard::CAPTION_BYTES_MAX};

/// Largest caption file (`.txt`, `.json`) or line of `metadata.jsonl` that is read, in bytes.
pub(super) const CAPTION_FILE_BYTES_MAX: u64 = 1 << 20;
/// How many reasons [`Skipped`] keeps.
const REASONS_MAX: usize = 8;
/// How much of a name a reason shows, in bytes.
const REASON_NAME_BYTES_MAX: usize = 256;

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Neither a folder nor an archive of a known kind.
    #[error(
        "{0} is no source of pictures: give a folder of pictures with captions, a .tar or .tar.gz, or a folder of them"
    )]
    Unknown(PathBuf),
    /// Reading failed.
    #[error("can't read {path}: {error}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// What went wrong.
        error: std::io::Error,
    },
    /// Everything was read and nothing could be used.
    #[error(
        "{path} holds no usable picture with a caption: {skipped}. Captions come from metadata.jsonl (file_name, and text, caption or prompt) or from img.txt beside img.png"
    )]
    Empty {
        /// The source.
        path: PathBuf,
        /// What was left out, and why.
        skipped: Skipped,
    },
}

/// One picture with its caption.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it stands in its source; for messages.
    pub name: String,
    /// The picture, scaled to the square of the run.
    pub picture: RgbImage,
    /// What it shows: not empty, without white space around it, at most [`CAPTION_BYTES_MAX`] (a longer one was cut).
    pub caption: String,
}

/// How many entries of a source couldn't be used, and the first reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Entries left out.
    pub count: u64,
    /// Name and reason of the first few.
    pub reasons: Vec<String>,
}

impl Skipped {
    pub(super) fn add(&mut self, name: &str, reason: &str) {
        self.count += 1;
        if self.reasons.len() < REASONS_MAX {
            let name = &name[..name.floor_char_boundary(REASON_NAME_BYTES_MAX)];
            self.reasons.push(format!("{name}: {reason}"));
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} skipped", self.count)?;
        self.reasons.iter().try_for_each(|reason| write!(f, "; {reason}"))?;
        if self.count > self.reasons.len() as u64 { write!(f, "; ...") } else { Ok(()) }
    }
}

/// Pictures with captions on this machine's disk.
///
/// - A folder, read with everything below it: captions from a `metadata.jsonl` (`file_name`, and `text`, `caption` or
///   `prompt`) in the picture's folder or above it, else from `img.txt` or `img.json` beside `img.png`.
/// - A webdataset archive, `.tar`, `.tar.gz` or `.tgz`, or a folder that holds such: entries with one key (the path up to
///   the first dot of the base name) follow each other and make one sample.
///
/// Archives are streamed, never unpacked to disk nor held in memory.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder,
    Archives(Vec<PathBuf>),
}

impl Source {
    /// Finds out what stands at `path`. Reads no picture yet.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let kind = if path.is_dir() {
            let entries = folder::list(path)?;
            let archives: Vec<_> = entries.into_iter().filter(|entry| entry.is_file() && is_archive(entry)).collect();
            if archives.is_empty() { Kind::Folder } else { Kind::Archives(archives) }
        } else if is_archive(path) {
            Kind::Archives(vec![path.to_owned()])
        } else {
            return Err(SourceError::Unknown(path.to_owned()));
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Where the source stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands every usable sample, scaled to `size` x `size` pixels, to `visit`, in an order that depends on names alone,
    /// until the source ends or `visit` breaks. What can't be used is counted; a source with nothing usable is an error.
    pub fn read(
        &self,
        size: u32,
        mut visit: impl FnMut(Sample, &Skipped) -> ControlFlow<()>,
    ) -> Result<Skipped, SourceError> {
        let mut sink = Sink { size, usable: 0, skipped: Skipped::default(), visit: &mut visit };
        match &self.kind {
            Kind::Folder => {
                let _ = folder::read(&self.path, &mut sink)?;
            }
            Kind::Archives(archives) => {
                for archive in archives {
                    if archive::read(archive, &mut sink)?.is_break() {
                        break;
                    }
                }
            }
        }
        if sink.usable == 0 {
            return Err(SourceError::Empty { path: self.path.clone(), skipped: sink.skipped });
        }
        Ok(sink.skipped)
    }
}

/// What the readers of folders and archives put their findings into.
pub(super) struct Sink<'a> {
    size: u32,
    usable: u64,
    pub(super) skipped: Skipped,
    visit: &'a mut dyn FnMut(Sample, &Skipped) -> ControlFlow<()>,
}

impl Sink<'_> {
    /// Decodes a picture and hands it on, or counts why not.
    pub(super) fn offer(&mut self, name: &str, encoded: &[u8], caption: Option<&str>) -> ControlFlow<()> {
        let Some(caption) = caption.map(str::trim).filter(|caption| !caption.is_empty()) else {
            self.skipped.add(name, "no caption");
            return ControlFlow::Continue(());
        };
        match picture::decode_square(encoded, self.size) {
            Ok(picture) => {
                self.usable += 1;
                let caption = caption[..caption.floor_char_boundary(CAPTION_BYTES_MAX)].to_owned();
                (self.visit)(Sample { name: name.to_owned(), picture, caption }, &self.skipped)
            }
            Err(reason) => {
                self.skipped.add(name, &reason);
                ControlFlow::Continue(())
            }
        }
    }
}

/// Reads the caption out of a JSON object: `text`, `caption` or `prompt`, the first that is there.
pub(super) fn caption_in_json(json: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    caption_field(&value)
}

pub(super) fn caption_field(value: &serde_json::Value) -> Option<String> {
    ["text", "caption", "prompt"].iter().find_map(|key| value.get(key)?.as_str().map(str::to_owned))
}

pub(super) fn is_picture(ending: &str) -> bool {
    picture::ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

/// Adds the path to an I/O error.
pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    move |error| SourceError::Io { path: path.to_owned(), error }
}
