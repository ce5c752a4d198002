//! Captions to vectors: what an encoder offers, and those there are.

mod clip;
mod clip_tokenizer;
mod hashed;
mod minilm;
mod own_thread;
#[cfg(test)]
pub(crate) mod watched;

use candle_core::{Device, Result};

pub use clip::ClipText;
pub use clip_tokenizer::{CLIP_TOKENS, ClipTokenizer};
pub use hashed::HashedText;
pub use minilm::{MINILM_TOKENS_MAX, MiniLmText};
pub use own_thread::OwnThreadText;

use crate::{batch::Text, pretrained::Identity};

/// A frozen encoder of captions. Equal captions give equal vectors, on every machine of a run.
pub trait TextEncoder: Send + Sync {
    /// Which encoder this is.
    fn identity(&self) -> Identity;

    /// Token vectors a caption gives; longer captions are cut, shorter ones padded.
    fn tokens(&self) -> usize;

    /// Values in one token vector, and in the pooled one.
    fn width(&self) -> usize;

    /// Encodes captions. The caption `""` is the null text of classifier-free guidance.
    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text>;
}
