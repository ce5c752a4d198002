//! CLIP's tokens: pieces of words, in lower case, by byte pair encoding (Radford et al., 2103.00020, §2.4).

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::pretrained::{Network, PretrainedError};

/// Tokens that CLIP reads, both marks included.
pub const CLIP_TOKENS: usize = 77;

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// What CLIP takes for a word before it is cut into pieces.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Captions to token ids, as `transformers`' CLIP tokenizer gives them.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
}

impl ClipTokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PretrainedError> {
        let fail = |reason: String| PretrainedError::Tokenizer { network: Network::Clip, reason };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| fail(error.to_string()))?;
        // Cutting and padding are done here, whatever the file says of them.
        tokenizer.with_truncation(None).map_err(|error| fail(error.to_string()))?.with_padding(None);
        let mark = |mark: &str| tokenizer.token_to_id(mark).ok_or_else(|| fail(format!("it has no token {mark}")));
        let (begin, end) = (mark(BEGIN)?, mark(END)?);
        Ok(Self { tokenizer, begin, end })
    }

    /// Makes one of `vocab.json` and `merges.txt`, as `transformers` wrote them before there was a `tokenizer.json`.
    pub fn from_vocabulary(vocabulary: &[u8], merges: &str) -> Result<Self, PretrainedError> {
        let fail = |reason: String| PretrainedError::Tokenizer { network: Network::Clip, reason };
        let vocabulary: Value =
            serde_json::from_slice(vocabulary).map_err(|error| fail(format!("vocab.json: {error}")))?;
        let merges: Vec<Vec<&str>> = merges
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.is_empty())
            .map(|line| line.split(' ').collect())
            .collect();
        let mark = |mark: &str| {
            let id = vocabulary.get(mark).and_then(Value::as_u64);
            id.ok_or_else(|| fail(format!("vocab.json has no token {mark}")))
        };
        let added = |content: &str, id: u64| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true});
        let (begin, end) = (mark(BEGIN)?, mark(END)?);
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [added(BEGIN, begin), added(END, end)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [BEGIN, begin], "trim_offsets": false, "add_prefix_space": false},
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                "fuse_unk": false, "vocab": vocabulary, "merges": merges},
        });
        Self::from_json(tokenizer.to_string().as_bytes())
    }

    /// The ids of a caption, [`CLIP_TOKENS`] of them: the begin mark, the words, the end mark, and end marks to the end, as the published
    /// pipelines pad. An overlong caption loses its last words and keeps its end mark.
    pub fn encode(&self, caption: &str) -> candle_core::Result<Vec<u32>> {
        let words = self.tokenizer.encode(caption, false).map_err(candle_core::Error::wrap)?;
        let words = words.get_ids().iter().copied().take(CLIP_TOKENS - 2);
        let mut ids: Vec<u32> = std::iter::once(self.begin).chain(words).collect();
        ids.resize(CLIP_TOKENS, self.end);
        Ok(ids)
    }

    /// The end mark.
    pub fn end(&self) -> u32 {
        self.end
    }
}
