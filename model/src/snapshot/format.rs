//! A snapshot as bytes.
//!
//! ```text
//! 8    magic
//! 4    format version, little endian
//! 4    length of the header
//! ...  header, JSON
//! ...  state, safetensors
//! 32   BLAKE3 of everything before
//! ```
//! Magic, version and the checksum at the end are the same in every version, so that damage and a later version can be told apart.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::{checkpoint::CheckpointError, state::State};

/// The format that is written, and the latest that is read.
pub const VERSION: u32 = 1;
/// The longest header, bytes.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// What a snapshot begins with.
const MAGIC: [u8; 8] = *b"parissnp";
/// Bytes before the header.
const PREFIX: usize = 16;
/// Bytes of the checksum.
const CHECKSUM: usize = 32;
/// Bytes that a snapshot may have beyond its state.
pub(super) const ENVELOPE_BYTES_MAX: u64 = (PREFIX + HEADER_BYTES_MAX + CHECKSUM) as u64;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The run, by the name that the caller gives it.
    pub run: String,
    /// The part.
    pub part: String,
    /// Optimiser steps done.
    pub step: u64,
    /// Batches drawn.
    pub cursor: u64,
    /// Threads it was trained with: bits depend on their number.
    pub threads: usize,
    /// BLAKE3, in hexadecimal, of the published states that this training began from or has published since, newest last. Whoever is to go on from one of
    /// these may go on from the snapshot instead.
    pub supersedes: Vec<String>,
}

/// Writes a snapshot.
pub fn write(header: &Header, state: &State, out: &mut impl Write) -> Result<(), CheckpointError> {
    let text = serde_json::to_vec(header).map_err(io::Error::from)?;
    let mut hashing = Hashing { out, hasher: blake3::Hasher::new() };
    let prefix = [&MAGIC[..], &VERSION.to_le_bytes(), &(text.len() as u32).to_le_bytes(), &text].concat();
    hashing.write_all(&prefix)?;
    state.write_to(&mut hashing)?;
    let Hashing { out, hasher } = hashing;
    out.write_all(hasher.finalize().as_bytes())?;
    Ok(())
}

/// Reads a snapshot: its header, and the bytes of its state. A checksum that fits is what makes them worth reading.
pub fn read(bytes: &[u8]) -> Result<(Header, &[u8]), SnapshotError> {
    let Some((signed, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else {
        return Err(SnapshotError::Damaged("it is cut off"));
    };
    if blake3::hash(signed).as_bytes() != checksum {
        return Err(SnapshotError::Damaged("its checksum does not fit: it is cut off, or was changed on the disk"));
    }
    let header = read_header(signed)?;
    Ok((header.0, header.1))
}

/// Reads the header of a snapshot from its first bytes, unproven: enough to tell what the file claims to be.
pub(super) fn read_header(bytes: &[u8]) -> Result<(Header, &[u8]), SnapshotError> {
    let version = read_version(bytes)?;
    if version > VERSION {
        return Err(SnapshotError::Newer(version));
    }
    let (_, rest) = bytes.split_at(PREFIX - 4);
    let Some((length, rest)) = rest.split_first_chunk() else { return Err(SnapshotError::Damaged("it is cut off")) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(SnapshotError::Damaged("its header claims to be longer than any"));
    }
    let Some((header, state)) = rest.split_at_checked(length) else {
        return Err(SnapshotError::Damaged("it is cut off"));
    };
    match serde_json::from_slice(header) {
        Ok(header) => Ok((header, state)),
        Err(_) => Err(SnapshotError::Damaged("its header does not read")),
    }
}

/// The format version of a snapshot that begins with these bytes.
pub(super) fn read_version(bytes: &[u8]) -> Result<u32, SnapshotError> {
    match bytes.first_chunk::<PREFIX>() {
        Some([magic @ .., v0, v1, v2, v3, _, _, _, _]) if *magic == MAGIC => {
            Ok(u32::from_le_bytes([*v0, *v1, *v2, *v3]))
        }
        Some(_) => Err(SnapshotError::Damaged("it is no snapshot")),
        None => Err(SnapshotError::Damaged("it is cut off")),
    }
}

/// Hashes what passes through.
struct Hashing<'a, W> {
    out: &'a mut W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
