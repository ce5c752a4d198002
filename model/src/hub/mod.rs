//! The layout in which Paris's weights are published: a folder that holds a whole mixture and needs no network and no run.
//!
//! ```text
//! config.json  model_index.json
//! expert_0..7/{config.json, diffusion_pytorch_model.safetensors}
//! router/{config.json, pytorch_model.safetensors}        (safetensors despite its name)
//! vae/  text_encoder/  tokenizer/
//! ```
//!
//! - [`Published`]: a folder whose every name and shape was checked, before any weight is read
//! - [`export()`]: a mixture written as such a folder
//!
//! Folders that [`export()`] wrote say in their `config.json` what the published ones leave to convention: which text encoder and image codec the
//! experts learnt with, so that built-in ones need no files.

mod config;
mod export;
mod folder;
mod layout;

use std::{io, path::PathBuf};

pub use self::{
    export::{Exported, ExportedPart, export},
    layout::{CodecSource, Published, PublishedPart, TextSource},
};

/// Names in the layout.
mod names {
    pub(super) const CONFIG: &str = "config.json";
    pub(super) const INDEX: &str = "model_index.json";
    pub(super) const EXPERT_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
    pub(super) const ROUTER: &str = "router";
    /// Safetensors despite its name.
    pub(super) const ROUTER_WEIGHTS: &str = "pytorch_model.safetensors";
    /// Ours: temperatures of the router.
    pub(super) const CALIBRATION: &str = "calibration.json";
    pub(super) const CODEC: &str = "vae";
    pub(super) const TEXT_ENCODER: &str = "text_encoder";
    pub(super) const TOKENIZER: &str = "tokenizer";

    pub(super) fn expert(cluster: usize) -> String {
        format!("expert_{cluster}")
    }
}

/// A folder that is no mixture in the published layout, or cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// All that is wrong with it.
    #[error("{} is no mixture in the published layout:\n{}", .folder.display(), list(.problems))]
    Layout {
        /// The folder.
        folder: PathBuf,
        /// What is missing, too much, or of another shape; a line each.
        problems: Vec<String>,
    },
    /// The operating system refused.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The folder to write exists.
    #[error("{} exists and is not empty: nothing is overwritten, choose another folder", .0.display())]
    Exists(PathBuf),
    /// A part's weights are not the ones that were meant.
    #[error("{}: {reason}", .path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn list(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n")
}

fn io_error(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> HubError {
    let path = path.into();
    move |error| HubError::Io { path, error }
}
