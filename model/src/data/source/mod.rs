//! Where an organiser's pictures and captions come from, read one entry after the other.
//!
//! A file a format: `folder` (with its `metadata`), `webdataset`, `table` (parquet), `idx`. Every reader gives its entries in an order that
//! depends on names alone, still encoded, and holds no more than one of them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

mod entry;
mod folder;
mod idx;
mod metadata;
mod skipped;
mod table;
mod webdataset;

pub use entry::{Content, Entry, Sample};
pub use skipped::{LISTED_MAX, Reason, Refusal, Skipped, SkippedEntry};

pub(super) use skipped::cut;

use entry::Sink;

/// Largest caption file (`.txt`, `.json`) or row of metadata that is read, in bytes.
const CAPTION_FILE_BYTES_MAX: u64 = 1 << 20;
/// What the captions of a picture are called, the first that is there.
const CAPTION_FIELDS: [&str; 3] = ["text", "caption", "prompt"];

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Neither a folder nor a file of a known kind.
    #[error(
        "{0} is no source of pictures: give a folder of pictures with captions, a .tar or .tar.gz (webdataset), a .parquet, an idx file of images, or a \
         folder of them"
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
    /// A parquet or idx file isn't what its name says, or lacks what is needed.
    #[error("can't use {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A parquet file that lists links to pictures, as LAION's do.
    #[error(
        "{path} holds links to pictures (column {links}), not pictures. Download them first, then prepare what was downloaded:\n  \
         pip install img2dataset\n  \
         img2dataset --url_list {path} --input_format parquet --url_col {links} --caption_col {captions} --output_format webdataset --output_folder pictures --image_size 256\n  \
         paris-node data prepare pictures ..."
    )]
    Links {
        /// The file.
        path: PathBuf,
        /// The column of links.
        links: String,
        /// The column of captions, as far as it can be told.
        captions: String,
    },
    /// Everything was read and nothing could be used.
    #[error(
        "{path} holds no usable picture with a caption: {skipped}. Captions come from metadata.jsonl or metadata.csv (file_name, and text, caption or \
         prompt) or from img.txt beside img.png"
    )]
    Empty {
        /// The source.
        path: PathBuf,
        /// What was left out, and why.
        skipped: Skipped,
    },
}

/// Pictures with captions on this machine's disk.
///
/// - A folder, read with everything below it: captions from a `metadata.jsonl` or `metadata.csv` (`file_name`, and `text`, `caption` or `prompt`) in
///   the picture's folder or above it, else from `img.txt` or `img.json` beside `img.png`.
/// - A webdataset archive, `.tar`, `.tar.gz` or `.tgz`: entries with one key (the path up to the first dot of the base name) follow each other
///   and make one sample.
/// - A `.parquet` with a column of encoded pictures (binary, or struct of `bytes` and `path`) and one of captions or of class numbers.
/// - An idx file of grey images (`train-images-idx3-ubyte`, also `.gz`) with its labels beside it.
/// - A folder that holds parquet, webdataset or idx files: all of that kind in it, by name; the first of these kinds that it holds.
///
/// Files are streamed, never unpacked to disk nor held in memory.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
    class_names: Vec<String>,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder,
    Archives(Vec<PathBuf>),
    Tables(Vec<PathBuf>),
    Idx(Vec<PathBuf>),
}

/// What a source looks like before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// A hash of its files' names, sizes and times, and of the class names: equal while nothing was changed.
    pub fingerprint: blake3::Hash,
    /// How much there is to read: bytes of archives, entries of the other kinds.
    pub extent: u64,
}

impl Source {
    /// Finds out what stands at `path`. Reads no picture yet.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let kind = if path.is_dir() {
            let files: Vec<_> = folder::list(path)?.into_iter().filter(|entry| entry.is_file()).collect();
            let all =
                |is: fn(&str) -> bool| -> Vec<_> { files.iter().filter(|file| is(&lower(file))).cloned().collect() };
            let (tables, archives, idx) = (all(is_table), all(is_archive), all(idx::is_images));
            match (tables.is_empty(), archives.is_empty(), idx.is_empty()) {
                (false, ..) => Kind::Tables(tables),
                (_, false, _) => Kind::Archives(archives),
                (.., false) => Kind::Idx(idx),
                _ => Kind::Folder,
            }
        } else if path.is_file() && is_archive(&lower(path)) {
            Kind::Archives(vec![path.to_owned()])
        } else if path.is_file() && is_table(&lower(path)) {
            Kind::Tables(vec![path.to_owned()])
        } else if path.is_file() && idx::is_images(&lower(path)) {
            Kind::Idx(vec![path.to_owned()])
        } else {
            return Err(SourceError::Unknown(path.to_owned()));
        };
        Ok(Self { path: path.to_owned(), kind, class_names: Vec::new() })
    }

    /// Captions for pictures that only have a class number: its name, by number. Without one the caption is `class 3`.
    pub fn with_class_names(mut self, names: Vec<String>) -> Self {
        self.class_names = names;
        self
    }

    /// Where the source stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at every file, without reading pictures. A source that can't be used is refused here, before any work is done.
    pub fn list(&self) -> Result<Listing, SourceError> {
        let mut hasher = blake3::Hasher::new_derive_key("paris-node source of pictures 1");
        self.class_names.iter().for_each(|name| add_text(&mut hasher, name));
        let mut extent = 0;
        match &self.kind {
            Kind::Folder => folder::look(&self.path, &mut |file, is_picture| {
                extent += u64::from(is_picture);
                add_file(&mut hasher, file).map(drop)
            })?,
            Kind::Archives(files) => {
                for file in files {
                    extent += add_file(&mut hasher, file)?;
                }
            }
            Kind::Tables(files) => {
                for file in files {
                    add_file(&mut hasher, file)?;
                    extent = table::rows(file)?.saturating_add(extent);
                }
            }
            Kind::Idx(files) => {
                for file in files {
                    add_file(&mut hasher, file)?;
                    extent += idx::pictures(file)?;
                }
            }
        }
        Ok(Listing { fingerprint: hasher.finalize(), extent })
    }

    /// Hands every entry to `visit`, usable or not, in an order that depends on names alone, until the source ends or `visit` breaks. The first
    /// `passing` entries are passed over, at little cost.
    pub fn read(&self, passing: u64, mut visit: impl FnMut(Entry) -> ControlFlow<()>) -> Result<(), SourceError> {
        let mut sink = Sink::new(passing, &mut visit);
        let files = match &self.kind {
            Kind::Folder => return folder::read(&self.path, &mut sink).map(drop),
            Kind::Archives(files) | Kind::Tables(files) | Kind::Idx(files) => files,
        };
        for file in files {
            let flow = match &self.kind {
                Kind::Folder | Kind::Archives(_) => webdataset::read(file, &mut sink)?,
                Kind::Tables(_) => table::read(file, &self.class_names, &mut sink)?,
                Kind::Idx(_) => idx::read(file, &self.class_names, &mut sink)?,
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The caption of a picture that only has a class.
fn class_caption(names: &[String], class: u64) -> String {
    let name = usize::try_from(class).ok().and_then(|class| names.get(class));
    name.cloned().unwrap_or_else(|| format!("class {class}"))
}

/// Reads the caption out of a JSON object.
fn caption_in_json(json: &[u8]) -> Option<String> {
    caption_field(&serde_json::from_slice(json).ok()?)
}

fn caption_field(value: &serde_json::Value) -> Option<String> {
    CAPTION_FIELDS.iter().find_map(|key| value.get(key)?.as_str().map(str::to_owned))
}

fn is_picture(ending: &str) -> bool {
    super::picture::ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
}

fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

fn is_table(name: &str) -> bool {
    name.ends_with(".parquet")
}

/// The name of a file, in lower case.
fn lower(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// Adds a file's name, size and time of change to the fingerprint, and gives its size in bytes.
fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<u64, SourceError> {
    let metadata = path.metadata().map_err(at(path))?;
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    add_text(hasher, &path.to_string_lossy());
    hasher.update(&metadata.len().to_le_bytes());
    hasher.update(&changed.unwrap_or_default().as_nanos().to_le_bytes());
    Ok(metadata.len())
}

fn add_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

/// Adds the path to an I/O error.
fn at(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    move |error| SourceError::Io { path: path.to_owned(), error }
}
