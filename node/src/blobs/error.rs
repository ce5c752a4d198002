//! What can go wrong with blobs.

use std::fmt;
use std::path::{Path, PathBuf};

use iroh_blobs::Hash;
use paris_protocol::identity::NodeId;

/// Providers that an error names.
const TRIED_SAID_MAX: usize = 16;

/// What can go wrong with blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobsError {
    /// The store cannot be opened.
    #[error(
        "the blob store in {directory} cannot be opened: {reason}; if no other node uses it, move it away: it is filled again from peers"
    )]
    Open {
        /// The store's directory.
        directory: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The endpoint cannot be bound.
    #[error(
        "the blob endpoint cannot be bound to {reason}. If another node has the port, choose one with --port (blobs take the one above it), or 0 for any"
    )]
    Bind {
        /// The address, and what the system said.
        reason: String,
    },
    /// The store failed at something that should work.
    #[error("the blob store failed: {0}; is the disk full?")]
    Store(String),
    /// A file outside the store cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The blob is not here, or not wholly.
    #[error("blob {hash} is not in the store")]
    Missing {
        /// The blob.
        hash: Hash,
    },
    /// The blob is larger than the caller can bear.
    #[error("blob {hash} has {size} bytes, {limit} are allowed here")]
    TooLarge {
        /// The blob.
        hash: Hash,
        /// Its real size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// The blob's real size is not the one that was announced.
    #[error("blob {hash} has {size} bytes, but {claimed} were announced: whoever announced it is wrong or lies")]
    WrongSize {
        /// The blob.
        hash: Hash,
        /// Its real size in bytes, verified.
        size: u64,
        /// The size that was claimed.
        claimed: u64,
    },
    /// The disk returned other bytes than were stored.
    #[error("blob {hash} is damaged on disk ({reason}); it is fetched again from peers that have it")]
    Corrupt {
        /// The blob.
        hash: Hash,
        /// What was noticed.
        reason: String,
    },
    /// No provider delivered the whole blob.
    #[error("blob {hash} could not be fetched ({missing}); tried {}", list(.tried))]
    Unavailable {
        /// The blob.
        hash: Hash,
        /// How much is missing, in words.
        missing: String,
        /// Who was asked, and why each of them is out.
        tried: Vec<ProviderFailure>,
    },
}

/// Why a provider is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFailure {
    /// Who was asked.
    pub provider: NodeId,
    /// What happened.
    pub reason: String,
}

impl fmt::Display for ProviderFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.provider, self.reason)
    }
}

impl BlobsError {
    pub(super) fn store(error: impl fmt::Display) -> Self {
        Self::Store(format!("{error:#}"))
    }

    pub(super) fn file(path: &Path, error: impl fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), reason: format!("{error:#}") }
    }
}

fn list(tried: &[ProviderFailure]) -> String {
    if tried.is_empty() {
        return "nobody: no provider is known".into();
    }
    let mut said: Vec<_> = tried.iter().take(TRIED_SAID_MAX).map(ToString::to_string).collect();
    if tried.len() > TRIED_SAID_MAX {
        said.push(format!("and {} more", tried.len() - TRIED_SAID_MAX));
    }
    said.join(", ")
}
