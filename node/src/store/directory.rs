//! The data directory: its layout, its key and its lock.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use paris_model::whole_file::write_private;
use paris_protocol::identity::Keypair;
use tokio::time::Instant;

/// Between two tries to take a directory that is in use.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The operating system refused.
    #[error(
        "cannot use {path}: {error}. Check that the disk has room and that this user may write there, or choose another --data-dir"
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// Nothing was initialised here.
    #[error(
        "{0} is no node's data directory: run `paris-node init` or `paris-node join TICKET` first, or say with --data-dir where the node is"
    )]
    NoKey(PathBuf),
    /// The key file is not 32 bytes.
    #[error(
        "{0} is damaged ({1} bytes instead of 32): restore it from a backup, or move it away and run `paris-node init` for a new identity"
    )]
    DamagedKey(PathBuf, usize),
    /// Others can read the key.
    #[error("{0} can be read by other users of this machine: `chmod 600` it (and consider the key known to them)")]
    OpenKey(PathBuf),
    /// Another program has the directory open.
    #[error(
        "{0} is in use by another paris-node: a directory serves one node at a time. Stop that one, or give this one its own --data-dir"
    )]
    InUse(PathBuf),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |error| DirectoryError::Io { path, error }
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
    encoders: Option<PathBuf>,
}

/// Held while this program uses the directory; the system drops it when the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DataDir {
    /// The directory at `root`; nothing is touched yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), encoders: None }
    }

    /// The same with pretrained encoders in another folder.
    #[must_use]
    pub fn with_encoders(self, encoders: Option<PathBuf>) -> Self {
        Self { encoders, ..self }
    }

    /// Creates the directory where it is missing.
    pub(super) fn create(&self) -> Result<(), DirectoryError> {
        fs::create_dir_all(&self.root).map_err(io_error(&self.root))
    }

    /// True if a key is here, sound or not.
    pub(super) fn has_key(&self) -> bool {
        self.key_path().exists()
    }

    /// Keeps a key where none is.
    pub(super) fn put_secret(&self, secret: &[u8]) -> Result<(), DirectoryError> {
        let path = self.key_path();
        write_private(&path, secret).map_err(io_error(&path))
    }

    /// The node's secret.
    pub fn secret(&self) -> Result<[u8; 32], DirectoryError> {
        let path = self.key_path();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DirectoryError::NoKey(self.root.clone()));
            }
            read => read.map_err(io_error(&path))?,
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).map_err(io_error(&path))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(DirectoryError::OpenKey(path));
            }
        }
        let len = bytes.len();
        bytes.try_into().map_err(|_| DirectoryError::DamagedKey(path, len))
    }

    /// The node's identity.
    pub fn keypair(&self) -> Result<Keypair, DirectoryError> {
        Ok(Keypair::from_secret(&self.secret()?))
    }

    /// Takes the directory for this program.
    pub fn lock(&self) -> Result<DirLock, DirectoryError> {
        let path = self.root.join("node.lock");
        let file = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DirectoryError::NoKey(self.root.clone()));
            }
            opened => opened.map_err(io_error(&path))?,
        };
        match file.try_lock() {
            Ok(()) => Ok(DirLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DirectoryError::InUse(self.root.clone())),
            Err(TryLockError::Error(error)) => Err(DirectoryError::Io { path, error }),
        }
    }

    /// Takes the directory for this program, waiting for a command such as `status` that has it for a moment.
    pub async fn lock_within(&self, patience: Duration) -> Result<DirLock, DirectoryError> {
        let until = Instant::now() + patience;
        loop {
            match self.lock() {
                Err(DirectoryError::InUse(_)) if Instant::now() < until => tokio::time::sleep(LOCK_RETRY).await,
                lock => return lock,
            }
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn key_path(&self) -> PathBuf {
        self.root.join("node.key")
    }

    /// The database's file.
    pub fn database_path(&self) -> PathBuf {
        self.root.join("node.redb")
    }

    /// The folder of pretrained encoders, a folder each.
    pub fn encoders_path(&self) -> PathBuf {
        self.encoders.clone().unwrap_or_else(|| self.root.join("encoders"))
    }

    /// The blob store's folder.
    pub fn blobs_path(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Where the running node says how to reach its API.
    pub fn api_path(&self) -> PathBuf {
        self.root.join("api.json")
    }

    /// Where a run's snapshots are: states that only this machine goes on from.
    pub fn snapshots_path(&self, run: &str) -> PathBuf {
        self.root.join("snapshots").join(run)
    }

    /// Where it stands how the training of a run's parts went here.
    pub fn history_path(&self, run: &str) -> PathBuf {
        self.root.join("history").join(run)
    }

    /// Where shards lie that the blob store keeps in no file of their own.
    pub fn shards_path(&self) -> PathBuf {
        self.root.join("shards")
    }

    /// Where imported mixtures lie, a folder each.
    pub fn models_path(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Where checkpoints are exported for sampling.
    pub fn weights_path(&self) -> PathBuf {
        self.root.join("weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_made_or_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let said = DataDir::new(file.join("node")).create().unwrap_err().to_string();
        assert!(said.contains("file/node") && said.contains("--data-dir"), "{said}");
        assert!(matches!(DataDir::new(folder.path().join("none")).lock(), Err(DirectoryError::NoKey(_))));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        dir.put_secret(&[1; 32]).unwrap();
        fs::set_permissions(dir.key_path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(dir.secret(), Err(DirectoryError::OpenKey(_))));
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        let first = dir.lock().unwrap();
        assert!(matches!(dir.lock(), Err(DirectoryError::InUse(_))));
        drop(first);
        dir.lock().unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_a_lock_has_it_when_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        let first = dir.lock().unwrap();
        assert!(matches!(dir.lock_within(Duration::ZERO).await, Err(DirectoryError::InUse(_))));
        let (second, ()) = tokio::join!(dir.lock_within(Duration::from_secs(600)), async { drop(first) });
        second.unwrap();
    }
}
