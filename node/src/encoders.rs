//! The encoders of a run: from the hashes in its manifest to networks in memory.
//!
//! Whoever trains needs the text encoder, whoever samples the image codec too. Their files lie in a folder per network below
//! [`DataDir::encoders_path`](crate::store::DataDir::encoders_path); what is missing or another file is an error that says what to get.

use std::{path::Path, sync::Arc};

use paris_model::{
    Device,
    image_codec::{ImageCodec, Pixels, Vae},
    pretrained::{Files, Identity, Network, PretrainedError},
    text::{ClipText, HashedText, MiniLmText, TextEncoder},
};
use paris_protocol::{
    hash::{Hash, NotAHash},
    manifest::{self, Encoders, Manifest, TextFiles},
};

/// An encoder of a run that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// Its files.
    #[error(transparent)]
    Pretrained(#[from] PretrainedError),
    /// It gives other shapes than the manifest says.
    #[error(
        "the run's {what} gives {found}, and its manifest says {expected}: the run can't be trained or sampled as it is. Whoever made it must make another"
    )]
    Shape {
        /// Which encoder.
        what: &'static str,
        /// What it gives.
        found: String,
        /// What the manifest says.
        expected: String,
    },
    /// Data were prepared with an encoder that this program doesn't know.
    #[error("the data were prepared with {0:?}, which this program doesn't know: use the release that prepared them")]
    Unknown(String),
    /// A hash in `prepared.json` is none.
    #[error(transparent)]
    Hash(#[from] NotAHash),
}

/// The run's text encoder, on `device`, from the encoders' `folder`.
pub fn text_encoder(manifest: &Manifest, folder: &Path, device: &Device) -> Result<Arc<dyn TextEncoder>, EncoderError> {
    let (tokens, width) = (usize::from(manifest.text.tokens), usize::from(manifest.text.width));
    let files = |network, files: TextFiles| {
        let (weights, tokenizer) = (Some(files.weights.to_string()), Some(files.tokenizer.to_string()));
        Files::read(network, folder, Some(&Identity { weights, tokenizer, ..Identity::built_in(network.name()) }))
    };
    let encoder: Arc<dyn TextEncoder> = match manifest.encoders.text {
        manifest::TextEncoder::Hashed => Arc::new(HashedText { tokens, width }),
        manifest::TextEncoder::Clip(named) => Arc::new(ClipText::load(&files(Network::Clip, named)?, device)?),
        manifest::TextEncoder::MiniLm(named) => {
            Arc::new(MiniLmText::load(&files(Network::MiniLm, named)?, tokens, device)?)
        }
    };
    if (encoder.tokens(), encoder.width()) != (tokens, width) {
        let found = format!("{} tokens of {}", encoder.tokens(), encoder.width());
        return Err(EncoderError::Shape { what: "text encoder", found, expected: format!("{tokens} of {width}") });
    }
    Ok(encoder)
}

/// The run's image codec, on `device`, from the encoders' `folder`.
pub fn image_codec(manifest: &Manifest, folder: &Path, device: &Device) -> Result<Box<dyn ImageCodec>, EncoderError> {
    let codec: Box<dyn ImageCodec> = match manifest.encoders.image {
        manifest::ImageCodec::Pixels => Box::new(Pixels),
        manifest::ImageCodec::Vae { weights } => {
            let wanted = Identity { weights: Some(weights.to_string()), ..Identity::built_in(Network::Vae.name()) };
            Box::new(Vae::load(&Files::read(Network::Vae, folder, Some(&wanted))?, device)?)
        }
    };
    if codec.channels() != usize::from(manifest.image.channels) {
        let (found, expected) = (format!("{} channels", codec.channels()), manifest.image.channels.to_string());
        return Err(EncoderError::Shape { what: "image codec", found, expected });
    }
    Ok(codec)
}

/// How a manifest names the text encoder and the codec of these identities.
pub fn named(text: &Identity, codec: &Identity) -> Result<Encoders, EncoderError> {
    let hash = |hash: &Option<String>| -> Result<Hash, NotAHash> { hash.as_deref().unwrap_or_default().parse() };
    let files = || -> Result<TextFiles, NotAHash> {
        Ok(TextFiles { weights: hash(&text.weights)?, tokenizer: hash(&text.tokenizer)? })
    };
    let text = match text.name.as_str() {
        "hashed" => manifest::TextEncoder::Hashed,
        "clip" => manifest::TextEncoder::Clip(files()?),
        "minilm" => manifest::TextEncoder::MiniLm(files()?),
        other => return Err(EncoderError::Unknown(other.to_owned())),
    };
    let image = match codec.name.as_str() {
        "pixels" => manifest::ImageCodec::Pixels,
        "vae" => manifest::ImageCodec::Vae { weights: hash(&codec.weights)? },
        other => return Err(EncoderError::Unknown(other.to_owned())),
    };
    Ok(Encoders { text, image })
}
