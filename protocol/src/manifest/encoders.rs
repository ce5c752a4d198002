//! The encoders of a run.

use serde::{Deserialize, Serialize};

use crate::hash::Hash;

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
