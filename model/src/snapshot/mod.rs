//! Snapshots: a part's whole state on the local disk, so that a killed process loses a minute at most, and no bits.
//!
//! A snapshot is never published. It is written beside training: the trainer copies its numbers to a buffer, and a thread of its own writes them
//! ([`writer`]) as one file with a checksum ([`mod@format`]), of which the last few are kept ([`files`]). Which one training goes on from, and
//! when from a checkpoint instead, is decided in [`durable`](crate::durable).

pub mod files;
pub mod format;
pub mod writer;

use std::{io, path::PathBuf};

pub use self::{files::Snapshots, format::Header, writer::SnapshotWriter};
use crate::checkpoint::CheckpointError;

/// A snapshot that cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refused.
    #[error(
        "{path}: {error}. Steps since the last snapshot are lost if the node is killed now: check the disk's room and health"
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The bytes are not what was written: cut off, or changed on the disk.
    #[error("{0}")]
    Damaged(&'static str),
    /// Written by a later version of this program.
    #[error(
        "it has format version {0}, and this program reads {known} at most: it is left as it is; to go on from it, run the version that wrote it",
        known = format::VERSION
    )]
    Newer(u32),
    /// The state in it is not this part's, or is not finite.
    #[error("its state cannot be used: {0}")]
    State(#[from] CheckpointError),
    /// The numbers to be written are not finite, so there is nothing to go back to in them.
    #[error("{0} is not finite: no snapshot was written")]
    NotFinite(String),
    /// The thread that writes is gone.
    #[error("the thread that writes snapshots has ended; the log has the reason")]
    WriterGone,
}
