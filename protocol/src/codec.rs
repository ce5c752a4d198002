//! The one place where bytes become values: bincode with a limit on every decode.
//!
//! bincode is finished and unmaintained, so no other module names it. To replace it, replace this file.

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes could not be read or a value not be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the kind of record may have.
    #[error("{what} is {len} bytes long, over its limit of {limit}: refused unread")]
    TooLong {
        /// The kind of record.
        what: &'static str,
        /// Its length, bytes.
        len: usize,
        /// What it may have, bytes.
        limit: usize,
    },
    /// The bytes are no such record: another version, cut off, or garbage.
    #[error("these bytes are no {what} of this version: {reason}")]
    Malformed {
        /// The kind of record.
        what: &'static str,
        /// What the decoder met.
        reason: String,
    },
}

/// A value with a wire form and a bound on its size.
pub trait Wire: Serialize + DeserializeOwned {
    /// What error messages call it.
    const NAME: &'static str;
    /// The most bytes its wire form may have.
    const LIMIT: usize;

    /// The wire form.
    fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let bytes = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|error| CodecError::Malformed { what: Self::NAME, reason: error.to_string() })?;
        match bytes.len() > Self::LIMIT {
            true => Err(CodecError::TooLong { what: Self::NAME, len: bytes.len(), limit: Self::LIMIT }),
            false => Ok(bytes),
        }
    }

    /// Reads the wire form. Nothing is allocated before the length is known to be within [`Wire::LIMIT`]; bytes left over or written in any other
    /// way than [`Wire::to_bytes`] does are an error, so that a value has one wire form and hashes of it agree.
    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > Self::LIMIT {
            return Err(CodecError::TooLong { what: Self::NAME, len: bytes.len(), limit: Self::LIMIT });
        }
        // The decoder's own limit stops a length prefix from asking for memory that the bytes do not back.
        let config = bincode::config::standard().with_limit::<{ 4 << 20 }>();
        let malformed = |reason: String| CodecError::Malformed { what: Self::NAME, reason };
        let (value, read) =
            bincode::serde::decode_from_slice(bytes, config).map_err(|error| malformed(error.to_string()))?;
        if read != bytes.len() {
            return Err(malformed(format!("{} bytes left over", bytes.len() - read)));
        }
        let value: Self = value;
        match value.to_bytes()? == bytes {
            true => Ok(value),
            false => Err(malformed("written in another way than the usual".into())),
        }
    }
}

/// Length of a value's wire form, bytes.
pub(crate) fn encoded_len<T: Serialize>(value: &T) -> usize {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_or(usize::MAX, |bytes| bytes.len())
}
