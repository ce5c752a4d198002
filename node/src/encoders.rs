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
    manifest::{self, Encoders, Image, TextFiles, TextShape},
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

/// The text encoder that a manifest names, on `device`, from the encoders' `folder`.
pub fn text_encoder(
    named: manifest::TextEncoder,
    shape: TextShape,
    folder: &Path,
    device: &Device,
) -> Result<Arc<dyn TextEncoder>, EncoderError> {
    let (tokens, width) = (usize::from(shape.tokens), usize::from(shape.width));
    let files = |network, files: TextFiles| {
        let (weights, tokenizer) = (Some(files.weights.to_string()), Some(files.tokenizer.to_string()));
        Files::read(network, folder, Some(&Identity { weights, tokenizer, ..Identity::built_in(network.name()) }))
    };
    let encoder: Arc<dyn TextEncoder> = match named {
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

/// The image codec that a manifest names, on `device`, from the encoders' `folder`; `image` is what experts learn.
pub fn image_codec(
    named: manifest::ImageCodec,
    image: Image,
    folder: &Path,
    device: &Device,
) -> Result<Box<dyn ImageCodec>, EncoderError> {
    let codec: Box<dyn ImageCodec> = match named {
        manifest::ImageCodec::Pixels => Box::new(Pixels),
        manifest::ImageCodec::Vae { weights } => {
            let wanted = Identity { weights: Some(weights.to_string()), ..Identity::built_in(Network::Vae.name()) };
            Box::new(Vae::load(&Files::read(Network::Vae, folder, Some(&wanted))?, device)?)
        }
    };
    if codec.channels() != usize::from(image.channels) {
        let (found, expected) = (format!("{} channels", codec.channels()), image.channels.to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: TextShape = TextShape { tokens: 8, width: 32 };

    #[test]
    fn what_is_built_in_needs_no_files() {
        let nowhere = Path::new("nowhere");
        let text = text_encoder(manifest::TextEncoder::Hashed, SHAPE, nowhere, &Device::Cpu).unwrap();
        let image =
            |channels| image_codec(manifest::ImageCodec::Pixels, Image { channels, size: 16 }, nowhere, &Device::Cpu);
        let codec = image(3).unwrap();
        assert_eq!(named(&text.identity(), &codec.identity()).unwrap(), Encoders::default());
        assert!(matches!(image(4), Err(EncoderError::Shape { .. })));
    }

    #[test]
    fn a_missing_file_is_named_with_the_hash_that_the_run_asks_for_and_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let (weights, tokenizer) = (Hash::of(b"weights"), Hash::of(b"tokenizer"));
        let clip = manifest::TextEncoder::Clip(TextFiles { weights, tokenizer });
        let said = |path: &str, hash: Hash| {
            let error = text_encoder(clip, SHAPE, folder.path(), &Device::Cpu).map(|_| ()).unwrap_err().to_string();
            for part in
                [path, &hash.to_string(), "openai/clip-vit-large-patch14", "model.safetensors and tokenizer.json"]
            {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        };
        said("clip/tokenizer.json", tokenizer);
        std::fs::create_dir(folder.path().join("clip")).unwrap();
        std::fs::write(folder.path().join("clip/tokenizer.json"), b"tokenizer").unwrap();
        said("clip/model.safetensors", weights);
    }

    #[test]
    fn identities_become_what_a_manifest_names() {
        let (weights, tokenizer) = (Hash::of(b"weights"), Hash::of(b"tokenizer"));
        let text = Identity {
            weights: Some(weights.to_string()),
            tokenizer: Some(tokenizer.to_string()),
            ..Identity::built_in("minilm")
        };
        let vae = Identity { weights: Some(weights.to_string()), ..Identity::built_in("vae") };
        let found = named(&text, &vae).unwrap();
        assert_eq!(found.text, manifest::TextEncoder::MiniLm(TextFiles { weights, tokenizer }));
        assert_eq!(found.image, manifest::ImageCodec::Vae { weights });
        assert!(matches!(named(&text, &Identity::built_in("other")), Err(EncoderError::Unknown(_))));
        assert!(matches!(named(&text, &Identity::built_in("vae")), Err(EncoderError::Hash(_))));
    }
}
