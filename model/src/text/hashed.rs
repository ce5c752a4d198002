//! A text encoder that needs no download.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use super::TextEncoder;
use crate::{batch::Text, pretrained::Identity};

/// How much of a token is the word itself, next to its letters (which count as 1) and its place.
const WORD_SHARE: f32 = 0.6;
const PLACE_SHARE: f32 = 0.25;
/// Letters in an n-gram; the word is taken with a mark at either end.
const GRAM_LETTERS: [usize; 2] = [3, 4];

/// Frozen hashed vectors of words and their letters, so that a run needs no hub.
///
/// A word's vector joins one vector of the whole word and the mean of those of its 3- and 4-letter pieces, each drawn from
/// BLAKE3 of the text with about normal values; so "berry" lies near "berries", and both far from "rocket". Token i is
/// word i with a little of its place; the last token is the mean of all words, so that what an overlong caption says at its
/// end isn't lost; what is left over is a fixed null vector, and `""` is nothing but null vectors. Every token has unit
/// variance per element. The pooled vector is the mean of the words, at the same scale.
///
/// It knows spelling, not meaning: "cat" and "kitten" are strangers until the expert has seen both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashedText {
    /// Tokens a caption gives, at least 2.
    pub tokens: usize,
    /// Values in a vector.
    pub width: usize,
}

impl TextEncoder for HashedText {
    fn identity(&self) -> Identity {
        Identity::built_in("hashed")
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn width(&self) -> usize {
        self.width
    }

    fn encode(&self, captions: &[&str], device: &Device) -> Result<Text> {
        if self.tokens < 2 || self.width == 0 {
            candle_core::bail!(
                "hashed text of {} tokens of {} values: at least 2 of 1 are needed",
                self.tokens,
                self.width
            );
        }
        let null = self.draw("null", "");
        let places: Vec<_> = (0..self.tokens - 1).map(|place| self.draw("place", &place.to_string())).collect();
        let mut known: HashMap<String, Vec<f32>> = HashMap::new();
        let mut tokens = Vec::with_capacity(captions.len() * self.tokens * self.width);
        let mut pooled = Vec::with_capacity(captions.len() * self.width);
        for caption in captions {
            let mut mean = vec![0.0; self.width];
            let mut words = 0;
            for word in words_of(caption) {
                let vector = known.entry(word).or_insert_with_key(|word| self.word(word));
                add(&mut mean, vector, 1.0);
                if let Some(place) = places.get(words) {
                    let mut token = vector.clone();
                    add(&mut token, place, PLACE_SHARE);
                    scale_to_unit_variance(&mut token);
                    tokens.extend_from_slice(&token);
                }
                words += 1;
            }
            for _ in words..self.tokens - 1 {
                tokens.extend_from_slice(&null);
            }
            if words == 0 {
                mean.copy_from_slice(&null);
            }
            scale_to_unit_variance(&mut mean);
            tokens.extend_from_slice(&mean);
            pooled.extend_from_slice(&mean);
        }
        Ok(Text {
            tokens: Tensor::from_vec(tokens, (captions.len(), self.tokens, self.width), device)?,
            pooled: Tensor::from_vec(pooled, (captions.len(), self.width), device)?,
        })
    }
}

impl HashedText {
    fn word(&self, word: &str) -> Vec<f32> {
        let marked: Vec<char> = std::iter::once('<').chain(word.chars()).chain(std::iter::once('>')).collect();
        let mut vector = vec![0.0; self.width];
        for letters in GRAM_LETTERS {
            for gram in marked.windows(letters) {
                add(&mut vector, &self.draw("gram", &gram.iter().collect::<String>()), 1.0);
            }
        }
        if vector.iter().any(|value| *value != 0.0) {
            scale_to_unit_variance(&mut vector);
        }
        add(&mut vector, &self.draw("word", word), WORD_SHARE);
        scale_to_unit_variance(&mut vector);
        vector
    }

    /// The fixed vector of a text: each value is the sum of four hash bytes about its mean, which is near enough to normal.
    /// Integers up to the last division, so every machine gets the same bits.
    fn draw(&self, kind: &str, text: &str) -> Vec<f32> {
        let mut hasher = blake3::Hasher::new_derive_key("paris-node hashed text 1");
        hasher.update(kind.as_bytes()).update(&[0]).update(text.as_bytes());
        let mut bytes = vec![0; self.width * 4];
        hasher.finalize_xof().fill(&mut bytes);
        let sums = bytes.as_chunks::<4>().0.iter().map(|four| four.iter().map(|byte| i32::from(*byte)).sum::<i32>());
        let mut vector: Vec<f32> = sums.map(|sum| (sum - 510) as f32).collect();
        scale_to_unit_variance(&mut vector);
        vector
    }
}

/// Lower-case runs of letters and digits.
fn words_of(caption: &str) -> impl Iterator<Item = String> {
    caption.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn add(to: &mut [f32], vector: &[f32], share: f32) {
    to.iter_mut().zip(vector).for_each(|(to, value)| *to += value * share);
}

fn scale_to_unit_variance(vector: &mut [f32]) {
    let power = vector.iter().map(|value| value * value).sum::<f32>() / vector.len() as f32;
    if power > 0.0 {
        let scale = power.sqrt().recip();
        vector.iter_mut().for_each(|value| *value *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODER: HashedText = HashedText { tokens: 6, width: 64 };

    fn encode(caption: &str) -> (Vec<Vec<f32>>, Vec<f32>) {
        let text = ENCODER.encode(&[caption], &Device::Cpu).unwrap();
        (text.tokens.squeeze(0).unwrap().to_vec2().unwrap(), text.pooled.squeeze(0).unwrap().to_vec1().unwrap())
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / 64.0
    }

    #[test]
    fn spelling_decides_what_lies_near() {
        let [berry, berries, rocket] = ["berry", "berries", "rocket"].map(|word| encode(word).1);
        assert!(cosine(&berry, &berries) > cosine(&berry, &rocket) + 0.2);
        assert_eq!(encode("A Red BERRY!"), encode("a red berry"));
        assert_ne!(encode("red berry").0, encode("berry red").0);
    }

    #[test]
    fn every_token_has_unit_variance_and_the_last_is_the_pooled_one() {
        let (tokens, pooled) = encode("a glossy 3D render");
        assert_eq!(tokens.len(), 6);
        for token in &tokens {
            assert!((cosine(token, token) - 1.0).abs() < 1e-4);
        }
        assert_eq!(tokens[5], pooled);
    }

    #[test]
    fn the_end_of_an_overlong_caption_still_counts() {
        let long = "one two three four five six ";
        let [cat, dog] = ["cat", "dog"].map(|end| encode(&format!("{long}{end}")));
        assert_eq!(cat.0[..5], dog.0[..5]);
        assert_ne!(cat.0[5], dog.0[5]);
    }

    #[test]
    fn the_null_text_is_one_vector_all_over() {
        let (tokens, pooled) = encode("");
        assert!(tokens.iter().all(|token| *token == pooled));
        assert_eq!(encode(" .. "), encode(""));
    }

    #[test]
    fn captions_encode_alike_alone_and_together() {
        let both = ENCODER.encode(&["a berry", ""], &Device::Cpu).unwrap().tokens;
        let alone = ENCODER.encode(&[""], &Device::Cpu).unwrap().tokens;
        assert_eq!(both.dims(), [2, 6, 64]);
        assert_eq!(both.get(1).unwrap().to_vec2::<f32>().unwrap(), alone.get(0).unwrap().to_vec2::<f32>().unwrap());
    }

    /// Changing these values changes what every trained expert understands.
    #[test]
    fn the_vectors_never_change() {
        let bits = |caption: &str| encode(caption).1[..4].iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(""), [1058112337, 1024865529, 3196899753, 1033254137]);
        assert_eq!(bits("a berry"), [1047524077, 1052728557, 1061168425, 1070788393]);
    }

    #[test]
    fn too_few_tokens_are_refused() {
        assert!(HashedText { tokens: 1, width: 8 }.encode(&["a"], &Device::Cpu).is_err());
        assert!(HashedText { tokens: 2, width: 0 }.encode(&["a"], &Device::Cpu).is_err());
    }
}
