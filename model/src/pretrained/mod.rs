//! Networks that others trained and that a run takes as they are: which there are, where their files lie, and how they are told apart.
//!
//! A person who wants one downloads its files into a folder of its [name](Network::name) below the encoders' folder. A run fixes the
//! [`Identity`] of each that it uses, since nodes with different files would train different models; files with another hash are refused.

mod weights;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use weights::Weights;

use crate::whole_file::read_whole;

/// Largest file of weights that is read, in bytes. The largest in use, CLIP with its image half, has 1.7 GB.
pub const WEIGHTS_BYTES_MAX: u64 = 4 << 30;
/// Largest tokenizer file that is read, in bytes.
pub const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

/// A pretrained network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// CLIP's text transformer.
    Clip,
    /// The sentence encoder all-MiniLM-L6-v2.
    MiniLm,
    /// Stable Diffusion's autoencoder.
    Vae,
    /// MobileNetV2's features.
    MobileNet,
    /// DINOv2's features.
    Dino,
    /// The features of the Fréchet Inception Distance.
    Inception,
}

impl Network {
    /// Its name, which is its folder's too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::MiniLm => "minilm",
            Self::Vae => "vae",
            Self::MobileNet => "mobilenet",
            Self::Dino => "dino",
            Self::Inception => "inception",
        }
    }

    /// Where people get it.
    pub fn source(self) -> &'static str {
        match self {
            Self::Clip => "openai/clip-vit-large-patch14 on the Hugging Face hub",
            Self::MiniLm => "sentence-transformers/all-MiniLM-L6-v2 on the Hugging Face hub",
            Self::Vae => "stabilityai/sd-vae-ft-mse on the Hugging Face hub",
            Self::MobileNet => {
                "torchvision's mobilenet_v2, its ImageNet weights saved as safetensors under the names they have there"
            }
            Self::Dino => "facebook/dinov2-large on the Hugging Face hub",
            Self::Inception => {
                "the Inception network of 2015-12-05 that FID is defined on, saved as safetensors (conv.weight, conv.beta, conv.mean, conv.var, conv_1.weight ...)"
            }
        }
    }

    /// The file of its weights.
    pub fn weights_file(self) -> &'static str {
        match self {
            Self::Vae => "diffusion_pytorch_model.safetensors",
            _ => "model.safetensors",
        }
    }

    /// The file of its tokenizer, if it reads text.
    pub fn tokenizer_file(self) -> Option<&'static str> {
        matches!(self, Self::Clip | Self::MiniLm).then_some("tokenizer.json")
    }
}

/// Which encoder something was made with: what it is called, and the hashes of the files that define it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name: of a [`Network`], or of an encoder that is built in.
    pub name: String,
    /// BLAKE3 of its weights, 64 lower-case hexadecimal digits; nothing where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// BLAKE3 of its tokenizer, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

impl Identity {
    /// An encoder that is part of this program.
    pub fn built_in(name: &str) -> Self {
        Self { name: name.to_owned(), weights: None, tokenizer: None }
    }
}

/// A pretrained network that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// A file is missing or can't be read.
    #[error("{}: {}: {error}. Put {} into {}{}", .network.name(), .path.display(), .network.files(), .path.parent().unwrap_or(Path::new(".")).display(), hash_hint(.wanted))]
    File {
        /// The network.
        network: Network,
        /// The file.
        path: PathBuf,
        /// The hash that the run asks for.
        wanted: Option<String>,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file is not the one that the run was begun with.
    #[error(
        "{}: {} is not the file that this run uses: its BLAKE3 is {found}, the run's is {wanted}. Other weights would make another model: take the \
         file of {}, or ask whoever began the run for it", .network.name(), .path.display(), .network.source()
    )]
    Other {
        /// The network.
        network: Network,
        /// The file.
        path: PathBuf,
        /// The hash it has.
        found: String,
        /// The hash that the run asks for.
        wanted: String,
    },
    /// The weights are no safetensors.
    #[error("{}: the weights are no safetensors file ({error}). Take {}", .network.name(), .network.files())]
    Frame {
        /// The network.
        network: Network,
        /// What is wrong.
        error: safetensors::SafeTensorError,
    },
    /// Tensors are missing, left over or misshapen: all of them.
    #[error("{}: these weights are of another network: {}. Take {}", .network.name(), .faults.join("; "), .network.files())]
    Tensors {
        /// The network.
        network: Network,
        /// A sentence each.
        faults: Vec<String>,
    },
    /// The tokenizer's file is none, or none for this network.
    #[error("{}: the tokenizer can't be used: {reason}. Take {}", .network.name(), .network.files())]
    Tokenizer {
        /// The network.
        network: Network,
        /// What is wrong.
        reason: String,
    },
    /// The network can't be built.
    #[error("{}: {error}", .network.name())]
    Build {
        /// The network.
        network: Network,
        /// What candle said.
        error: candle_core::Error,
    },
}

impl Network {
    /// The files and where they come from, in words.
    fn files(self) -> String {
        let tokenizer = self.tokenizer_file().map_or(String::new(), |file| format!(" and {file}"));
        format!("{}{tokenizer} of {}", self.weights_file(), self.source())
    }
}

fn hash_hint(wanted: &Option<String>) -> String {
    wanted.as_ref().map_or(String::new(), |hash| format!("; the run asks for the file with BLAKE3 {hash}"))
}

/// The files of a network, as read.
pub struct Files {
    /// Which network.
    pub network: Network,
    /// Its weights, safetensors.
    pub weights: Vec<u8>,
    /// Its tokenizer, if it reads text; otherwise nothing.
    pub tokenizer: Vec<u8>,
}

impl Files {
    /// Reads the files of `network` below the encoders' `folder`. If the identity that a run `wanted` is given, they must be those.
    pub fn read(network: Network, folder: &Path, wanted: Option<&Identity>) -> Result<Self, PretrainedError> {
        let folder = folder.join(network.name());
        Self::read_from(network, &folder, &folder, wanted)
    }

    /// The same where weights and tokenizer lie in folders of their own.
    pub fn read_from(
        network: Network,
        weights: &Path,
        tokenizer: &Path,
        wanted: Option<&Identity>,
    ) -> Result<Self, PretrainedError> {
        let read = |folder: &Path, file: &str, limit, wanted: Option<&String>| {
            let path = folder.join(file);
            let bytes = read_whole(&path, limit).map_err(|error| PretrainedError::File {
                network,
                path: path.clone(),
                wanted: wanted.cloned(),
                error,
            })?;
            match wanted.map(|wanted| (blake3::hash(&bytes).to_hex().to_string(), wanted)) {
                Some((found, wanted)) if found != *wanted => {
                    Err(PretrainedError::Other { network, path, found, wanted: wanted.clone() })
                }
                _ => Ok(bytes),
            }
        };
        // The small file first: a missing one is said before gigabytes are read.
        let tokenizer = match network.tokenizer_file() {
            Some(file) => read(tokenizer, file, TOKENIZER_BYTES_MAX, wanted.and_then(|it| it.tokenizer.as_ref()))?,
            None => Vec::new(),
        };
        let weights =
            read(weights, network.weights_file(), WEIGHTS_BYTES_MAX, wanted.and_then(|it| it.weights.as_ref()))?;
        Ok(Self { network, weights, tokenizer })
    }

    /// What tells these files from others.
    pub fn identity(&self) -> Identity {
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        Identity {
            name: self.network.name().to_owned(),
            weights: Some(hash(&self.weights)),
            tokenizer: self.network.tokenizer_file().map(|_| hash(&self.tokenizer)),
        }
    }
}
