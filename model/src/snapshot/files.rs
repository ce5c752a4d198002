//! The snapshots of one part on the disk: `PART.NUMBER.snapshot`, numbered as they were written, the greatest the latest.
//!
//! A file appears under its name whole or not at all: it is written as `PART.writing`, brought to the disk, and renamed. A process killed on the
//! way leaves that one file, which the next snapshot overwrites or [`Snapshots::discard_unless`] removes, and the snapshots that were there before.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Read},
    path::{Path, PathBuf},
};

use super::{
    SnapshotError,
    format::{self, ENVELOPE_BYTES_MAX, Header},
};
use crate::{checkpoint::CheckpointError, config::PartConfig, state::State, whole_file::sync_folder};

/// Snapshots of a part that are kept: the latest, and the one before should the latest turn out to be damaged.
pub const KEPT: usize = 2;
/// What follows a part in the name of a snapshot that is being written.
const UNFINISHED: &str = ".writing";
/// What is written at once, bytes.
const WRITE_BYTES: usize = 1 << 20;

/// The snapshots of one part. Cheap to clone; what is there is read from the disk every time.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
    part: String,
}

/// The right to write a part's snapshots, held until dropped.
#[derive(Debug)]
pub struct SnapshotLock {
    _file: File,
}

impl Snapshots {
    /// The snapshots of `part` in `folder`, which need not exist yet.
    pub fn new(folder: &Path, part: &str) -> Self {
        Self { folder: folder.to_owned(), part: part.to_owned() }
    }

    /// The part.
    pub fn part(&self) -> &str {
        &self.part
    }

    /// Takes the part's snapshots for one trainer; waits while another, which is about to end, still has them.
    pub fn lock(&self) -> Result<SnapshotLock, SnapshotError> {
        let file = self.open_lock()?;
        file.lock().map_err(io_error(&self.lock_path()))?;
        Ok(SnapshotLock { _file: file })
    }

    /// The latest snapshot that is whole, of `config`, and `fits`. One that is not whole is named in the log and removed, so that it is not counted among
    /// those to fall back to.
    pub fn latest(&self, config: &PartConfig, fits: impl Fn(&Header) -> bool) -> Option<(Header, State)> {
        for (_, path) in self.list().into_iter().rev() {
            match self.read(&path, config, &fits) {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!("the snapshot {} is not used, but the one before it: {error}", path.display());
                    if matches!(error, SnapshotError::Damaged(_)) {
                        remove(&path);
                    }
                }
            }
        }
        None
    }

    fn read(
        &self,
        path: &Path,
        config: &PartConfig,
        fits: impl Fn(&Header) -> bool,
    ) -> Result<Option<(Header, State)>, SnapshotError> {
        let length = path.metadata().map_err(io_error(path))?.len();
        if length > State::bytes_of(config)? + ENVELOPE_BYTES_MAX {
            return Err(SnapshotError::Damaged("it is larger than any of this part"));
        }
        let bytes = fs::read(path).map_err(io_error(path))?;
        let (header, state) = format::read(&bytes)?;
        match fits(&header) && header.part == self.part {
            true => Ok(Some((header, State::read(state, config)?))),
            false => {
                tracing::info!("the snapshot {} (step {}) is of another history", path.display(), header.step);
                Ok(None)
            }
        }
    }

    /// Writes a snapshot durably, then removes those beyond [`KEPT`]. Returns its size in bytes.
    pub fn write(&self, header: &Header, state: &State) -> Result<u64, SnapshotError> {
        if let Some(name) = state.not_finite() {
            return Err(SnapshotError::NotFinite(name.to_owned()));
        }
        let written = self.write_unfinished(header, state);
        if written.is_err() {
            // It is of no use, and the disk may be full.
            let _ = fs::remove_file(self.unfinished_path());
        }
        let bytes = written?;
        sync_folder(&self.folder).map_err(io_error(&self.folder))?;
        self.prune();
        Ok(bytes)
    }

    /// Writes a snapshot under the other name, and gives it its own.
    fn write_unfinished(&self, header: &Header, state: &State) -> Result<u64, SnapshotError> {
        let path = self.unfinished_path();
        let fail = io_error(&path);
        let mut out = BufWriter::with_capacity(WRITE_BYTES, File::create(&path).map_err(&fail)?);
        format::write(header, state, &mut out).map_err(|error| match error {
            CheckpointError::Io(error) => fail(error),
            other => other.into(),
        })?;
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(&fail)?;
        let bytes = file.metadata().map_err(&fail)?.len();
        let number = self.list().last().map_or(1, |(number, _)| number + 1);
        fs::rename(&path, self.path(number)).map_err(&fail)?;
        Ok(bytes)
    }

    /// Removes the oldest beyond [`KEPT`]. What a later version wrote is not counted and stays.
    fn prune(&self) {
        let mut own = self.list();
        own.retain(|(_, path)| !is_newer(path));
        let surplus = own.len().saturating_sub(KEPT);
        own.iter().take(surplus).for_each(|(_, path)| remove(path));
    }

    /// Removes the part's snapshots unless one of them `counts`, and in any case one that was never finished. A part whose trainer runs is left alone, and
    /// so is what a later version wrote.
    pub fn discard_unless(&self, counts: impl Fn(&Header) -> bool) {
        let Ok(_lock) = self.open_lock().and_then(|file| match file.try_lock() {
            Ok(()) => Ok(SnapshotLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(SnapshotError::Damaged("a trainer has it")),
            Err(TryLockError::Error(error)) => Err(io_error(&self.folder)(error)),
        }) else {
            return;
        };
        let unfinished = self.unfinished_path();
        if unfinished.exists() {
            remove(&unfinished);
        }
        let list = self.list();
        let headers = list.iter().filter_map(|(_, path)| head(path).ok());
        if !headers.into_iter().any(|bytes| format::read_header(&bytes).is_ok_and(|(header, _)| counts(&header))) {
            list.iter().filter(|(_, path)| !is_newer(path)).for_each(|(_, path)| remove(path));
        }
    }

    /// Parts with snapshots in `folder`, finished or not.
    pub fn parts(folder: &Path) -> Vec<String> {
        let part = |name: &str| match name.strip_suffix(UNFINISHED) {
            Some(part) => Some(part.to_owned()),
            None => Some(parse(name)?.0.to_owned()),
        };
        let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut parts: Vec<_> = names.filter_map(|name| part(name.to_str()?)).collect();
        parts.sort();
        parts.dedup();
        parts
    }

    /// The part's snapshots with their numbers, the latest last.
    fn list(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let own = entries.filter_map(|entry| match parse(entry.file_name().to_str()?)? {
            (part, number) if part == self.part => Some((number, entry.path())),
            _ => None,
        });
        let mut list: Vec<_> = own.collect();
        list.sort();
        list
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}.{number:010}.snapshot", self.part))
    }

    fn unfinished_path(&self) -> PathBuf {
        self.folder.join(format!("{}{UNFINISHED}", self.part))
    }

    fn lock_path(&self) -> PathBuf {
        self.folder.join(format!("{}.lock", self.part))
    }

    fn open_lock(&self) -> Result<File, SnapshotError> {
        fs::create_dir_all(&self.folder).map_err(io_error(&self.folder))?;
        // So that the folders' own names outlast a power cut, too.
        self.folder.ancestors().skip(1).take(2).for_each(|above| drop(sync_folder(above)));
        let path = self.lock_path();
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io_error(&path))
    }
}

/// Part and number of a snapshot's file name.
fn parse(name: &str) -> Option<(&str, u64)> {
    let (part, number) = name.strip_suffix(".snapshot")?.rsplit_once('.')?;
    Some((part, number.parse().ok()?))
}

/// The first bytes of a file, as many as a header may take.
fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(ENVELOPE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_newer(path: &Path) -> bool {
    let version = head(path).ok().and_then(|bytes| format::read_version(&bytes).ok());
    version.is_some_and(|version| version > format::VERSION)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!("the snapshot {} is of no use and stays on the disk: {error}", path.display());
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |error| SnapshotError::Io { path: path.clone(), error }
}
