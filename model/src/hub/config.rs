//! `config.json`: what the published folders say of a model, and what ours add.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::{ExpertConfig, RouterConfig},
    objective::Objective,
    preset::TEXT_TOKENS,
    tensor_file::TensorFile,
};

/// The longest config that is read, bytes.
const BYTES_MAX: u64 = 1 << 20;
/// The only ratio of an MLP's inner width to its outer that the models have.
const MLP_RATIO: f64 = 4.0;
/// The share of captions dropped that the paper trains with.
const CAPTION_DROP: f64 = 0.1;

/// A part's config. The fields are those of the published files, then ours; others are not looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PartFields {
    hidden_size: Option<usize>,
    num_layers: Option<usize>,
    num_heads: Option<usize>,
    patch_size: Option<usize>,
    in_channels: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_channels: Option<usize>,
    mlp_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_embed_dim: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    use_adaln_single: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cfg_dropout_prob: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_clusters: Option<usize>,
    /// Ours: width and height of what is drawn. In published folders it follows from the position table.
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_size: Option<usize>,
    /// Ours: tokens of a caption; 77 in published folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    text_tokens: Option<usize>,
    /// Ours: width of the pooled caption that the router reads; none in published folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    caption_embed_dim: Option<usize>,
    /// Ours: what an expert predicts; the velocity in published folders.
    pub(super) objective: Objective,
}

/// The folder's config: what its models learnt with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct FolderFields {
    pub(super) num_clusters: Option<usize>,
    /// Ours: the name of a built-in text encoder, which needs no files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text_encoder: Option<String>,
    /// Ours: the name of a built-in image codec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_codec: Option<String>,
}

/// Reads a config, or says in words why not.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > BYTES_MAX {
        return Err(format!("{bytes} bytes, longer than any config"));
    }
    serde_json::from_slice(&fs::read(path).map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

impl PartFields {
    pub(super) fn of_expert(config: &ExpertConfig, objective: Objective) -> Self {
        Self {
            hidden_size: Some(config.width),
            num_layers: Some(config.depth),
            num_heads: Some(config.heads),
            patch_size: Some(config.patch),
            in_channels: Some(config.channels),
            out_channels: Some(config.channels),
            mlp_ratio: Some(MLP_RATIO),
            text_embed_dim: Some(config.text_width),
            use_adaln_single: Some(true),
            cfg_dropout_prob: Some(CAPTION_DROP),
            sample_size: Some(config.size),
            text_tokens: Some(config.text_tokens),
            objective,
            ..Self::default()
        }
    }

    pub(super) fn of_router(config: &RouterConfig) -> Self {
        Self {
            hidden_size: Some(config.width),
            num_layers: Some(config.depth),
            num_heads: Some(config.heads),
            patch_size: Some(config.patch),
            in_channels: Some(config.channels),
            mlp_ratio: Some(MLP_RATIO),
            num_clusters: Some(config.clusters),
            sample_size: Some(config.size),
            caption_embed_dim: config.caption_width,
            ..Self::default()
        }
    }

    /// The expert that is described; what follows from the weights alone is read off them. Otherwise all that is wrong.
    pub(super) fn expert(&self, weights: &TensorFile) -> Result<ExpertConfig, Vec<String>> {
        let mut problems = self.problems();
        if self.use_adaln_single == Some(false) {
            problems.push("use_adaln_single is false: only experts with adaLN-single are known".to_owned());
        }
        let mut needed = |name: &str, value: Option<usize>| needed(name, value, &mut problems);
        let config = ExpertConfig {
            channels: needed("in_channels", self.in_channels),
            size: self.size(weights),
            patch: needed("patch_size", self.patch_size),
            width: needed("hidden_size", self.hidden_size),
            depth: needed("num_layers", self.num_layers),
            heads: needed("num_heads", self.num_heads),
            text_tokens: self.text_tokens.unwrap_or(TEXT_TOKENS),
            text_width: needed("text_embed_dim", self.text_embed_dim),
        };
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// The router that is described, likewise.
    pub(super) fn router(&self, weights: &TensorFile) -> Result<RouterConfig, Vec<String>> {
        let mut problems = self.problems();
        let mut needed = |name: &str, value: Option<usize>| needed(name, value, &mut problems);
        let config = RouterConfig {
            channels: needed("in_channels", self.in_channels),
            size: self.size(weights),
            patch: needed("patch_size", self.patch_size),
            width: needed("hidden_size", self.hidden_size),
            depth: needed("num_layers", self.num_layers),
            heads: needed("num_heads", self.num_heads),
            clusters: needed("num_clusters", self.num_clusters),
            caption_width: self.caption_embed_dim,
        };
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// What no model of this program can have.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let (Some(output), Some(input)) = (self.out_channels, self.in_channels)
            && output != input
        {
            problems.push(format!(
                "out_channels is {output}, in_channels {input}: they must be equal (no learnt variance)"
            ));
        }
        if let Some(ratio) = self.mlp_ratio.filter(|ratio| *ratio != MLP_RATIO) {
            problems.push(format!("mlp_ratio is {ratio}: only {MLP_RATIO} is known"));
        }
        problems
    }

    /// Width and height of what is drawn: as said, or as many patches a side as the position table has.
    fn size(&self, weights: &TensorFile) -> usize {
        let tokens = match weights.shape("pos_embed") {
            Some([1, tokens, _]) => *tokens,
            _ => 0,
        };
        self.sample_size.unwrap_or(tokens.isqrt().saturating_mul(self.patch_size.unwrap_or(0)))
    }
}

fn needed(name: &str, value: Option<usize>, problems: &mut Vec<String>) -> usize {
    value.unwrap_or_else(|| {
        problems.push(format!("{name} is not given"));
        0
    })
}
