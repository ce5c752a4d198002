//! The shapes of experts and routers, and the parameters that follow from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Numbers in the sinusoidal encoding of the time.
pub const TIME_FREQUENCIES: usize = 256;

/// Shapes that no model can have.
#[derive(Debug, thiserror::Error)]
#[error("{name} is {value}: {needed}")]
pub struct ConfigError {
    name: &'static str,
    value: usize,
    needed: String,
}

fn require(name: &'static str, value: usize, fits: bool, needed: impl Into<String>) -> Result<(), ConfigError> {
    match fits {
        true => Ok(()),
        false => Err(ConfigError { name, value, needed: needed.into() }),
    }
}

/// An expert: a DiT with adaLN-single and cross-attention to the caption (paper, table of architectures).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertConfig {
    /// Channels of the picture or latent.
    pub channels: usize,
    /// Its width and height.
    pub size: usize,
    /// Side of the square patch that makes a token.
    pub patch: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens of a caption.
    pub text_tokens: usize,
    /// Numbers of a caption token.
    pub text_width: usize,
}

/// A router: a DiT with adaLN-zero and a class token, which classifies the cluster of a noisy picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterConfig {
    /// Channels of the picture or latent.
    pub channels: usize,
    /// Its width and height.
    pub size: usize,
    /// Side of the square patch that makes a token.
    pub patch: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Clusters to tell apart.
    pub clusters: usize,
    /// Width of the pooled caption that is added to the time embedding; none for the published router, which reads no text.
    pub caption_width: Option<usize>,
}

/// The model of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartConfig {
    /// An expert.
    Expert(ExpertConfig),
    /// The router.
    Router(RouterConfig),
}

/// Parameter names and shapes, in the order of the names.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Collects the shapes of a model.
struct Collector(Shapes);

impl Collector {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    fn linear(&mut self, name: &str, input: usize, output: usize) {
        self.add(format!("{name}.weight"), &[output, input]);
        self.add(format!("{name}.bias"), &[output]);
    }

    fn attention(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.in_proj_weight"), &[3 * width, width]);
        self.add(format!("{name}.in_proj_bias"), &[3 * width]);
        self.linear(&format!("{name}.out_proj"), width, width);
    }

    fn trunk(&mut self, channels: usize, size: usize, patch: usize, width: usize) {
        self.add("patch_embed.weight", &[width, channels, patch, patch]);
        self.add("patch_embed.bias", &[width]);
        self.add("pos_embed", &[1, (size / patch) * (size / patch), width]);
        self.linear("time_embed.mlp.0", TIME_FREQUENCIES, width);
        self.linear("time_embed.mlp.2", width, width);
    }

    fn mlp(&mut self, name: &str, width: usize) {
        self.linear(&format!("{name}.mlp.0"), width, 4 * width);
        self.linear(&format!("{name}.mlp.2"), 4 * width, width);
    }
}

impl ExpertConfig {
    /// Tokens of a picture: its patches.
    pub fn tokens(&self) -> usize {
        (self.size / self.patch).pow(2)
    }

    /// Names and shapes of all parameters, as in the published weights.
    pub fn shapes(&self) -> Shapes {
        let mut shapes = Collector(Shapes::new());
        let width = self.width;
        shapes.trunk(self.channels, self.size, self.patch, width);
        shapes.linear("text_proj", self.text_width, width);
        shapes.linear("t_block.1", width, 6 * width);
        for layer in 0..self.depth {
            let name = format!("layers.{layer}");
            shapes.add(format!("{name}.scale_shift_table"), &[6, width]);
            shapes.attention(&format!("{name}.attn"), width);
            shapes.attention(&format!("{name}.cross_attn"), width);
            shapes.mlp(&name, width);
        }
        shapes.linear("final_layer.linear", width, self.patch * self.patch * self.channels);
        shapes.add("final_layer.scale_shift_table", &[2, width]);
        shapes.0
    }
}

impl RouterConfig {
    /// Tokens of a picture: its patches, and the class token.
    pub fn tokens(&self) -> usize {
        (self.size / self.patch).pow(2) + 1
    }

    /// Names and shapes of all parameters, as in the published weights; `caption_proj` is ours.
    pub fn shapes(&self) -> Shapes {
        let mut shapes = Collector(Shapes::new());
        let width = self.width;
        shapes.trunk(self.channels, self.size, self.patch, width);
        shapes.add("cls_token", &[1, 1, width]);
        if let Some(caption_width) = self.caption_width {
            shapes.linear("caption_proj", caption_width, width);
        }
        for layer in 0..self.depth {
            let name = format!("layers.{layer}");
            shapes.linear(&format!("{name}.adaLN_modulation.1"), width, 6 * width);
            shapes.attention(&format!("{name}.attn"), width);
            shapes.mlp(&name, width);
        }
        shapes.linear("head.0", width, width);
        shapes.linear("head.4", width, self.clusters);
        shapes.add("head.2.weight", &[width]);
        shapes.add("head.2.bias", &[width]);
        shapes.0
    }
}

impl PartConfig {
    /// Names and shapes of all parameters.
    pub fn shapes(&self) -> Shapes {
        match self {
            PartConfig::Expert(config) => config.shapes(),
            PartConfig::Router(config) => config.shapes(),
        }
    }

    /// Tokens of a picture that go through the trunk.
    pub fn tokens(&self) -> usize {
        match self {
            PartConfig::Expert(config) => config.tokens(),
            PartConfig::Router(config) => config.tokens(),
        }
    }

    /// Numbers in all parameters together.
    pub fn parameter_count(&self) -> usize {
        self.shapes().values().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Checks that the shapes fit each other and are of a size that some machine can hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (channels, size, patch, width, depth, heads) = match self {
            PartConfig::Expert(it) => (it.channels, it.size, it.patch, it.width, it.depth, it.heads),
            PartConfig::Router(it) => (it.channels, it.size, it.patch, it.width, it.depth, it.heads),
        };
        require("channels", channels, (1..=64).contains(&channels), "1 to 64")?;
        require("size", size, (1..=1024).contains(&size), "1 to 1024")?;
        require(
            "patch",
            patch,
            patch >= 1 && size.is_multiple_of(patch.max(1)),
            format!("a divisor of the size {size}"),
        )?;
        require(
            "width",
            width,
            (4..=16_384).contains(&width) && width.is_multiple_of(4),
            "a multiple of 4 up to 16384",
        )?;
        require(
            "heads",
            heads,
            heads >= 1 && width.is_multiple_of(heads.max(1)),
            format!("a divisor of the width {width}"),
        )?;
        require("depth", depth, (1..=256).contains(&depth), "1 to 256")?;
        match self {
            PartConfig::Expert(it) => {
                require("text tokens", it.text_tokens, (1..=1024).contains(&it.text_tokens), "1 to 1024")?;
                require("text width", it.text_width, (1..=8192).contains(&it.text_width), "1 to 8192")
            }
            PartConfig::Router(it) => {
                require("clusters", it.clusters, (1..=1024).contains(&it.clusters), "1 to 1024")?;
                let caption = it.caption_width.unwrap_or(1);
                require("caption width", caption, (1..=8192).contains(&caption), "1 to 8192")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expert(width: usize, depth: usize, heads: usize) -> PartConfig {
        let (text_tokens, text_width) = (77, 768);
        PartConfig::Expert(ExpertConfig {
            channels: 4,
            size: 32,
            patch: 2,
            width,
            depth,
            heads,
            text_tokens,
            text_width,
        })
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        assert!(expert(768, 12, 12).validate().is_ok());
        let says = |config: PartConfig| config.validate().unwrap_err().to_string();
        assert!(says(expert(766, 12, 12)).contains("width is 766"));
        assert!(says(expert(768, 12, 7)).contains("heads is 7"));
        assert!(says(expert(768, 0, 12)).contains("depth is 0"));
    }
}
