//! The sentence encoder all-MiniLM-L6-v2 (Wang et al., 2002.10957; Reimers and Gurevych, 1908.10084): small, and it knows meanings.

use candle_core::{DType, Device, Result, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::{Tokenizer, TruncationParams};

use super::{TextEncoder, apart};
use crate::{
    batch::Text,
    pretrained::{Files, Identity, Network, PretrainedError, Weights},
};

/// Most tokens of a caption: the sentence encoder was trained on no more.
pub const MINILM_TOKENS_MAX: usize = 256;

/// Attention heads; they stand in no tensor's shape.
const HEADS: usize = 12;
/// A layer that only whole-sentence classification uses, and a buffer of old files.
const UNUSED: [&str; 2] = ["pooler.", "embeddings.position_ids"];

/// all-MiniLM-L6-v2: 384 values a token.
///
/// Tokens are the last hidden states, with both marks; a caption longer than `tokens` is cut before its end mark, and what is left over after it
/// is zero. The pooled vector is the published sentence vector: the mean of the states, scaled to length one.
pub struct MiniLmText {
    identity: Identity,
    tokenizer: Tokenizer,
    tokens: usize,
    width: usize,
    model: BertModel,
    device: Device,
}

impl MiniLmText {
    /// Loads `model.safetensors` and `tokenizer.json`, to give `tokens` vectors a caption: 3 to [`MINILM_TOKENS_MAX`].
    pub fn load(files: &Files, tokens: usize, device: &Device) -> std::result::Result<Self, PretrainedError> {
        let network = Network::MiniLm;
        let fail = |reason: String| PretrainedError::Tokenizer { network, reason };
        if !(3..=MINILM_TOKENS_MAX).contains(&tokens) {
            return Err(fail(format!("{tokens} tokens a caption where 3 to {MINILM_TOKENS_MAX} are possible")));
        }
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer).map_err(|error| fail(error.to_string()))?;
        let truncation = TruncationParams { max_length: tokens, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| fail(error.to_string()))?.with_padding(None);

        let weights = Weights::new(network, &files.weights)?;
        let width = weights.extent("embeddings.word_embeddings.weight", 1, 384);
        let config = Config {
            vocab_size: weights.extent("embeddings.word_embeddings.weight", 0, 30_522),
            hidden_size: width,
            num_hidden_layers: weights.layers("encoder.layer.", 6),
            num_attention_heads: HEADS,
            intermediate_size: weights.extent("encoder.layer.0.intermediate.dense.weight", 0, 1536),
            ..Config::default()
        };
        if tokenizer.get_vocab_size(true) > config.vocab_size {
            let known = tokenizer.get_vocab_size(true);
            return Err(fail(format!("it has {known} tokens, and the weights know {}", config.vocab_size)));
        }
        let model = weights.build(device, &UNUSED, |vs| BertModel::load(vs, &config))?;
        Ok(Self { identity: files.identity(), tokenizer, tokens, width, model, device: device.clone() })
    }
}

impl TextEncoder for MiniLmText {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text> {
        apart(captions, &self.device, |captions| self.encode_at_once(captions))?.to_device(device)
    }
}

impl MiniLmText {
    /// Encodes captions on the model's device.
    fn encode_at_once(&self, captions: &[&str]) -> Result<Text> {
        let (count, tokens) = (captions.len(), self.tokens);
        let (mut ids, mut kept) = (vec![0u32; count * tokens], vec![0f32; count * tokens]);
        for (row, caption) in captions.iter().enumerate() {
            let encoded = self.tokenizer.encode(*caption, true).map_err(candle_core::Error::wrap)?;
            for (place, id) in encoded.get_ids().iter().enumerate().take(tokens) {
                (ids[row * tokens + place], kept[row * tokens + place]) = (*id, 1.0);
            }
        }
        let ids = Tensor::from_vec(ids, (count, tokens), &self.device)?;
        let kept = Tensor::from_vec(kept, (count, tokens), &self.device)?;
        let states = self.model.forward(&ids, &ids.zeros_like()?, Some(&kept))?.to_dtype(DType::F32)?;
        let states = states.broadcast_mul(&kept.unsqueeze(2)?)?;
        let sums = states.sum(1)?;
        // The length of the sum and of the mean differ by a factor that scaling removes.
        let pooled = sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)?;
        Ok(Text { tokens: states, pooled })
    }
}
