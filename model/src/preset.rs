//! The sizes that the paper trains, by name (paper, table of architectures; the S row is DiT's, arXiv 2212.09748, table 1).

use std::{fmt, str::FromStr};

use crate::config::{ExpertConfig, RouterConfig};

/// A transformer's size under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What it is called.
    pub name: &'static str,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of the square patch that makes a token.
    pub patch: usize,
}

/// The experts' sizes.
pub const EXPERTS: [Preset; 3] = [
    Preset { name: "dit-s/2", width: 384, depth: 12, heads: 6, patch: 2 },
    Preset { name: "dit-b/2", width: 768, depth: 12, heads: 12, patch: 2 },
    Preset { name: "dit-xl/2", width: 1152, depth: 28, heads: 16, patch: 2 },
];

/// The router's size, whichever the experts are.
pub const ROUTER: Preset = Preset { name: "router", width: 768, depth: 12, heads: 12, patch: 2 };

/// Channels of the latents that the published models draw: those of `stabilityai/sd-vae-ft-mse`.
pub const CHANNELS: usize = 4;
/// Width and height of these latents, for pictures of 256 x 256.
pub const SIZE: usize = 32;
/// Tokens of a caption as `openai/clip-vit-large-patch14` gives it.
pub const TEXT_TOKENS: usize = 77;
/// Numbers of such a token.
pub const TEXT_WIDTH: usize = 768;

impl Preset {
    /// The expert of this size on the published latents and captions.
    pub fn expert(&self) -> ExpertConfig {
        ExpertConfig {
            channels: CHANNELS,
            size: SIZE,
            patch: self.patch,
            width: self.width,
            depth: self.depth,
            heads: self.heads,
            text_tokens: TEXT_TOKENS,
            text_width: TEXT_WIDTH,
        }
    }

    /// The router of this size on the published latents, which reads no text.
    pub fn router(&self, clusters: usize) -> RouterConfig {
        RouterConfig {
            channels: CHANNELS,
            size: SIZE,
            patch: self.patch,
            width: self.width,
            depth: self.depth,
            heads: self.heads,
            clusters,
            caption_width: None,
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    /// The experts' size of this name.
    fn from_str(name: &str) -> Result<Self, String> {
        let known = || EXPERTS.map(|it| it.name).join(", ");
        let found = EXPERTS.into_iter().find(|it| it.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("there is no preset {name}: {}", known()))
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PartConfig;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let count = |name: &str| PartConfig::Expert(name.parse::<Preset>().unwrap().expert()).parameter_count();
        assert_eq!(count("dit-b/2"), 118_566_928);
        assert_eq!(count("DiT-XL/2"), 605_970_448);
        assert_eq!(PartConfig::Router(ROUTER.router(8)).parameter_count(), 129_136_904);
    }

    #[test]
    fn every_preset_can_be_built() {
        for preset in EXPERTS {
            assert!(PartConfig::Expert(preset.expert()).validate().is_ok(), "{preset}");
        }
        assert!(PartConfig::Router(ROUTER.router(8)).validate().is_ok());
        assert!("dit-l/2".parse::<Preset>().unwrap_err().contains("dit-s/2, dit-b/2, dit-xl/2"));
    }
}
