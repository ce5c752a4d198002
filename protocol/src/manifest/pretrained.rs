//! What a run takes ready-made.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MANIFEST_VERSION, PRETRAINED_VERSION};
use crate::{checkpoint::Blob, hash::Hash};

/// Networks that others trained, or somebody trained before the run began; by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pretrained {
    /// What encodes captions and pictures.
    pub encoders: Encoders,
    /// The weights that every expert's training starts from, of exactly the experts' shape; random ones if none are named.
    pub base: Option<Blob>,
}

impl Pretrained {
    /// The version of a manifest that names these.
    pub fn version(&self) -> u16 {
        if *self == Self::default() { MANIFEST_VERSION } else { PRETRAINED_VERSION }
    }
}

/// The frozen networks between captions and pictures and what experts learn. Nodes with different ones would train different models, so a
/// pretrained one is named by the BLAKE3 hashes of its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoders {
    /// What captions become.
    pub text: TextEncoder,
    /// What pictures become; who trains needs it not, since shards hold what it made.
    pub image: ImageCodec,
}

/// A text encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextEncoder {
    /// Hashed words and letters; nothing to fetch.
    #[default]
    Hashed,
    /// CLIP's text transformer.
    Clip(TextFiles),
    /// The sentence encoder all-MiniLM-L6-v2.
    MiniLm(TextFiles),
}

/// The files of a pretrained text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextFiles {
    /// BLAKE3 of the weights.
    pub weights: Hash,
    /// BLAKE3 of the tokenizer.
    pub tokenizer: Hash,
}

/// What encodes pictures, and decodes what experts draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageCodec {
    /// Nothing: experts learn pixels.
    #[default]
    Pixels,
    /// Stable Diffusion's autoencoder: experts learn latents, an eighth of the picture's side.
    Vae {
        /// BLAKE3 of the weights.
        weights: Hash,
    },
}

/// The default as the end of the bytes, or another value.
pub(super) mod default_or_end {
    use super::{Deserialize, Deserializer, Pretrained, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(value: &Pretrained, serializer: S) -> Result<S::Ok, S::Error> {
        match *value == Pretrained::default() {
            true => serializer.serialize_unit(),
            false => value.serialize(serializer),
        }
    }

    /// What does not read is the default; that nothing is left over is checked by whoever compares the wire form.
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pretrained, D::Error> {
        Ok(Pretrained::deserialize(deserializer).unwrap_or_default())
    }
}
