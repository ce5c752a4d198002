//! For tests: an encoder that is watched.

use candle_core::{Device, Result};

use super::{HashedText, TextEncoder};
use crate::{batch::Text, pretrained::Identity};

/// What is watched.
pub(crate) const TEXT: HashedText = HashedText { tokens: 3, width: 4 };

/// [`TEXT`], where the function sees the captions first and may refuse them.
pub(crate) struct WatchedText<F>(pub(crate) F);

impl<F: Fn(&[&str]) -> Result<()> + Send + Sync> TextEncoder for WatchedText<F> {
    fn identity(&self) -> Identity {
        TEXT.identity()
    }

    fn tokens(&self) -> usize {
        TEXT.tokens
    }

    fn width(&self) -> usize {
        TEXT.width
    }

    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text> {
        self.0(captions)?;
        TEXT.encode(captions, device)
    }
}
