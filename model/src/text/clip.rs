//! CLIP's text transformer (Radford et al., 2103.00020), as Paris and Stable Diffusion 1 use it.

use candle_core::{Device, IndexOp, Result, Tensor};
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};

use super::{CLIP_TOKENS, ClipTokenizer, TextEncoder, apart};
use crate::{
    batch::Text,
    pretrained::{Files, Identity, Network, PretrainedError, Weights},
};

/// Width of an attention head in every published CLIP.
const HEAD_WIDTH: usize = 64;
/// Names of the image half and of what joins both, which a file of the whole CLIP holds too, and a buffer of old files.
const UNUSED: [&str; 6] = [
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
    "embeddings.position_ids",
];

/// The text transformer of `openai/clip-vit-large-patch14`: 77 tokens of 768.
///
/// Tokens are the last hidden state after the final layer norm, padding included, as the published pipelines hand it to the transformer, without
/// a mask but the causal one. The pooled vector is the state at the first end mark, which has read the whole caption (`pooler_output` of
/// `transformers`' `CLIPTextModel`).
pub struct ClipText {
    identity: Identity,
    tokenizer: ClipTokenizer,
    width: usize,
    model: ClipTextTransformer,
    device: Device,
}

impl ClipText {
    /// Loads `model.safetensors`, of the whole CLIP or of its text half, and `tokenizer.json`.
    pub fn load(files: &Files, device: &Device) -> std::result::Result<Self, PretrainedError> {
        Self::with_tokenizer(files, ClipTokenizer::from_json(&files.tokenizer)?, device)
    }

    /// Loads the weights beside a tokenizer that was read otherwise.
    pub fn with_tokenizer(
        files: &Files,
        tokenizer: ClipTokenizer,
        device: &Device,
    ) -> std::result::Result<Self, PretrainedError> {
        let weights = Weights::new(Network::Clip, &files.weights)?;
        // Newer versions of `transformers` name the text half alone without a prefix.
        let prefix = if weights.has("embeddings.token_embedding.") { "" } else { "text_model." };
        let extent = |name: &str, axis, published| weights.extent(&format!("{prefix}{name}"), axis, published);
        let width = extent("embeddings.token_embedding.weight", 1, 768);
        let config = ClipTextConfig {
            vocab_size: extent("embeddings.token_embedding.weight", 0, 49_408),
            embed_dim: width,
            activation: Activation::QuickGelu,
            intermediate_size: extent("encoder.layers.0.mlp.fc1.weight", 0, 3072),
            max_position_embeddings: CLIP_TOKENS,
            pad_with: None,
            num_hidden_layers: weights.layers(&format!("{prefix}encoder.layers."), 12),
            num_attention_heads: (width / HEAD_WIDTH).max(1),
            projection_dim: width,
        };
        let vocabulary = config.vocab_size;
        let model = weights.build(device, &UNUSED, |vs| {
            let vs = if prefix.is_empty() { vs } else { vs.pp("text_model") };
            ClipTextTransformer::new(vs, &config)
        })?;
        if tokenizer.end() as usize >= vocabulary {
            let reason = format!("its end mark is {}, and the weights know {vocabulary} tokens", tokenizer.end());
            return Err(PretrainedError::Tokenizer { network: Network::Clip, reason });
        }
        Ok(Self { identity: files.identity(), tokenizer, width, model, device: device.clone() })
    }
}

impl TextEncoder for ClipText {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn tokens(&self) -> usize {
        CLIP_TOKENS
    }

    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text> {
        apart(captions, &self.device, |captions| self.encode_at_once(captions))?.to_device(device)
    }
}

impl ClipText {
    /// Encodes captions on the model's device.
    fn encode_at_once(&self, captions: &[&str]) -> Result<Text> {
        let ids = captions.iter().map(|caption| self.tokenizer.encode(caption)).collect::<Result<Vec<_>>>()?;
        let ends =
            ids.iter().map(|ids| ids.iter().position(|id| *id == self.tokenizer.end()).unwrap_or(CLIP_TOKENS - 1));
        let ends: Vec<usize> = ends.collect();
        let ids = Tensor::from_vec(ids.concat(), (captions.len(), CLIP_TOKENS), &self.device)?;
        // Without a mask: a position looks back alone, padding is read by padding only.
        let tokens = self.model.forward_with_mask(&ids, usize::MAX)?;
        let pooled = ends.iter().enumerate().map(|(caption, end)| tokens.i((caption, *end)));
        let pooled = Tensor::stack(&pooled.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(Text { tokens, pooled })
    }
}
