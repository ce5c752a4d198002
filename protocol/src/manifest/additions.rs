//! What version 2 adds to the manifest.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ADDITIONS_VERSION, Encoders, MANIFEST_VERSION};
use crate::checkpoint::Blob;

/// Networks that a run takes ready-made, and experts that learn otherwise than the rest; by default none of either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Additions {
    /// What encodes captions and pictures.
    pub encoders: Encoders,
    /// The weights that every expert's training starts from, of exactly the experts' shape; random ones if none are named. They predict the velocity, so
    /// that no expert may predict the noise where they are named.
    pub base: Option<Blob>,
    /// The clusters whose experts predict the noise of the cosine schedule (arXiv 2603.06741), in ascending order; all others predict the velocity.
    pub epsilon_experts: Vec<u16>,
}

impl Additions {
    /// The version of a manifest that says these.
    pub fn version(&self) -> u16 {
        if *self == Self::default() { MANIFEST_VERSION } else { ADDITIONS_VERSION }
    }
}

/// The default as the end of the bytes, or another value.
pub(super) mod default_or_end {
    use super::{Additions, Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(value: &Additions, serializer: S) -> Result<S::Ok, S::Error> {
        match *value == Additions::default() {
            true => serializer.serialize_unit(),
            false => value.serialize(serializer),
        }
    }

    /// What does not read is the default; that nothing is left over is checked by whoever compares the wire form.
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Additions, D::Error> {
        Ok(Additions::deserialize(deserializer).unwrap_or_default())
    }
}
