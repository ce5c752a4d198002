//! Text encoders and their tokens.

use candle_core::{Device, Tensor};
use paris_model::{
    pretrained::Network,
    text::{ClipText, ClipTokenizer, MiniLmText, TextEncoder},
};
use serde::Deserialize;

use crate::fixture::{Fixture, equal, folder};

/// Awkward captions, and the ids that `transformers` gives them.
#[derive(Deserialize)]
pub(crate) struct Prompts {
    pub(crate) prompts: Vec<String>,
    pub(crate) ids: Vec<Vec<u32>>,
}

impl Prompts {
    pub(crate) fn read(folder: &std::path::Path) -> Self {
        serde_json::from_slice(&std::fs::read(folder.join("prompts.json")).unwrap()).unwrap()
    }

    /// Both forms of the vocabulary must give the ids.
    pub(crate) fn check(&self, folder: &std::path::Path) {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let merges = String::from_utf8(read("merges.txt")).unwrap();
        let tokenizers = [
            ClipTokenizer::from_json(&read("tokenizer.json")).unwrap(),
            ClipTokenizer::from_vocabulary(&read("vocab.json"), &merges).unwrap(),
        ];
        assert!(self.prompts.len() >= 20);
        for tokenizer in tokenizers {
            for (prompt, ids) in self.prompts.iter().zip(&self.ids) {
                assert_eq!(tokenizer.encode(prompt).unwrap(), *ids, "{prompt:?}");
            }
        }
    }
}

#[test]
fn clip_tokens_are_those_of_transformers() {
    let folder = folder().join("clip");
    let prompts = Prompts::read(&folder);
    prompts.check(&folder);
    // What the fixture is to hold: an empty caption is marks alone, and an overlong one keeps its end mark.
    let end = *prompts.ids[0].last().unwrap();
    assert!(prompts.ids[0][1..].iter().all(|id| *id == end));
    let long = prompts.ids.iter().filter(|ids| ids.iter().filter(|id| **id == end).count() == 1);
    assert!(long.count() >= 2);
}

/// A caption's vectors are the same to the bit, whatever is encoded with it.
fn neighbours_do_not_count(encoder: &dyn TextEncoder, captions: &[&str]) {
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let encode = |captions: &[&str]| encoder.encode(captions, &Device::Cpu).unwrap();
    let all = encode(captions);
    for (place, caption) in captions.iter().enumerate() {
        for neighbours in [0, 2, 40] {
            let others = captions.iter().cycle().take(neighbours);
            let with_others: Vec<&str> = others.chain([caption]).copied().collect();
            let text = encode(&with_others);
            for (found, expected) in [(&text.tokens, &all.tokens), (&text.pooled, &all.pooled)] {
                let (found, expected) = (found.get(neighbours).unwrap(), expected.get(place).unwrap());
                assert!(numbers(&found) == numbers(&expected), "{caption:?} after {neighbours} others");
            }
        }
    }
}

#[test]
fn clip_equals_transformers() {
    let fixture = Fixture::read("clip");
    let tokenizer = std::fs::read(folder().join("clip/tokenizer.json")).unwrap();
    let prompts = Prompts::read(&folder().join("clip")).prompts;
    let prompts: Vec<&str> = prompts[..4].iter().map(String::as_str).collect();
    let encoder = ClipText::load(&fixture.files(Network::Clip, tokenizer.clone()), &Device::Cpu).unwrap();
    assert_eq!((encoder.tokens(), encoder.width()), (77, 128));
    let text = encoder.encode(&prompts, &Device::Cpu).unwrap();
    equal("CLIP tokens", &text.tokens, &fixture.outputs["tokens"], 1e-5);
    equal("CLIP pooled", &text.pooled, &fixture.outputs["pooled"], 1e-5);

    neighbours_do_not_count(&encoder, &prompts);

    // The names of older files, which hold the image half and a buffer too.
    let weights = fixture.weights.iter().map(|(name, tensor)| (format!("text_model.{name}"), tensor.clone()));
    let mut whole = Fixture { weights: weights.collect(), outputs: Default::default() };
    let extra = fixture.weights["final_layer_norm.bias"].clone();
    for name in ["vision_model.post_layernorm.bias", "logit_scale", "text_model.embeddings.position_ids"] {
        whole.weights.insert(name.to_owned(), extra.clone());
    }
    let whole = ClipText::load(&whole.files(Network::Clip, tokenizer), &Device::Cpu).unwrap();
    let same = whole.encode(&prompts, &Device::Cpu).unwrap();
    equal("CLIP of the whole file", &same.tokens, &text.tokens, 0.0);
    assert_ne!(whole.identity(), encoder.identity());
}

#[test]
fn minilm_equals_transformers() {
    let fixture = Fixture::read("minilm");
    let tokenizer = std::fs::read(folder().join("minilm/tokenizer.json")).unwrap();
    let files = fixture.files(Network::MiniLm, tokenizer);
    let encoder = MiniLmText::load(&files, 16, &Device::Cpu).unwrap();
    let prompts = Prompts::read(&folder().join("clip")).prompts;
    let long = "a cat ".repeat(30);
    let prompts: Vec<&str> = prompts[..5].iter().map(String::as_str).chain([long.as_str()]).collect();
    let text = encoder.encode(&prompts, &Device::Cpu).unwrap();
    equal("MiniLM tokens", &text.tokens, &fixture.outputs["tokens"], 1e-5);
    equal("MiniLM pooled", &text.pooled, &fixture.outputs["pooled"], 1e-5);
    neighbours_do_not_count(&encoder, &prompts);
    assert!(MiniLmText::load(&files, 2, &Device::Cpu).is_err());
    assert!(MiniLmText::load(&files, 257, &Device::Cpu).is_err());
}
