//! Which encoders the command line can name.

use std::{path::Path, sync::Arc};

use anyhow::bail;
use clap::ValueEnum;
use paris_model::{
    Device,
    features::{ColourAndEdges, Dino, ImageFeatures, Inception, MobileNet},
    image_codec::{ImageCodec, Pixels, Vae},
    pretrained::{Files, Network, PretrainedError},
    text::{ClipText, HashedText, MiniLmText, TextEncoder},
};

/// What pictures are clustered by, or distances taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FeaturesChoice {
    /// Built in: where the colours and edges are.
    ColourAndEdges,
    /// MobileNetV2: what a picture shows; quick.
    Mobilenet,
    /// DINOv2 ViT-L/14, as Paris: what a picture shows; slow without a GPU.
    Dino,
    /// The Inception network of 2015: what FID is taken in.
    Inception,
}

impl FeaturesChoice {
    /// The network, from its folder in `folder`.
    ///
    /// # Errors
    /// What is missing there or another file, and where to get it.
    pub fn open(self, folder: &Path) -> Result<Box<dyn ImageFeatures>, PretrainedError> {
        let files = |network| Files::read(network, folder, None);
        Ok(match self {
            Self::ColourAndEdges => Box::new(ColourAndEdges),
            Self::Mobilenet => Box::new(MobileNet::load(&files(Network::MobileNet)?, &Device::Cpu)?),
            Self::Dino => Box::new(Dino::load(&files(Network::Dino)?, &Device::Cpu)?),
            Self::Inception => Box::new(Inception::load(&files(Network::Inception)?, &Device::Cpu)?),
        })
    }

    /// What stands beside a distance that is taken in them.
    pub fn name(self) -> &'static str {
        match self {
            Self::ColourAndEdges => "ColourAndEdges",
            Self::Mobilenet => "MobileNetV2",
            Self::Dino => "DINOv2",
            Self::Inception => "Inception",
        }
    }
}

/// What experts learn of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CodecChoice {
    /// Its pixels.
    Pixels,
    /// Its latent under Stable Diffusion's autoencoder, an eighth as wide and high.
    Vae,
}

impl CodecChoice {
    pub(super) fn open(self, folder: &Path) -> Result<Box<dyn ImageCodec>, PretrainedError> {
        Ok(match self {
            Self::Pixels => Box::new(Pixels),
            Self::Vae => Box::new(Vae::load(&Files::read(Network::Vae, folder, None)?, &Device::Cpu)?),
        })
    }
}

/// What encodes captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TextChoice {
    /// Built in: words and their letters; knows spelling, not meaning.
    Hashed,
    /// CLIP ViT-L/14, as Paris: 77 tokens of 768.
    Clip,
    /// all-MiniLM-L6-v2: small; tokens of 384.
    Minilm,
}

impl TextChoice {
    /// What --text calls it.
    pub(super) fn option(self) -> String {
        self.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned())
    }

    /// The encoder, with so many tokens of such a width where they can be chosen.
    pub(super) fn open(
        self,
        folder: &Path,
        tokens: Option<u16>,
        width: Option<u16>,
    ) -> anyhow::Result<Arc<dyn TextEncoder>> {
        let files = |network| Files::read(network, folder, None);
        let encoder: Arc<dyn TextEncoder> = match self {
            Self::Hashed => {
                Arc::new(HashedText { tokens: tokens.unwrap_or(8).into(), width: width.unwrap_or(64).into() })
            }
            Self::Clip => Arc::new(ClipText::load(&files(Network::Clip)?, &Device::Cpu)?),
            Self::Minilm => {
                Arc::new(MiniLmText::load(&files(Network::MiniLm)?, tokens.unwrap_or(32).into(), &Device::Cpu)?)
            }
        };
        let differs = |asked: Option<u16>, given| asked.is_some_and(|asked| usize::from(asked) != given);
        if differs(tokens, encoder.tokens()) || differs(width, encoder.width()) {
            let (tokens, width) = (encoder.tokens(), encoder.width());
            bail!("this text encoder gives {tokens} tokens of {width}: leave --text-tokens and --text-width away");
        }
        Ok(encoder)
    }
}
