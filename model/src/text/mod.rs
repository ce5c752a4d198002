//! Captions to vectors: what an encoder offers, and those there are.

mod clip;
mod clip_tokenizer;
mod hashed;
mod minilm;
mod own_thread;
#[cfg(test)]
pub(crate) mod watched;

use candle_core::{Device, Result, Tensor};

pub use clip::ClipText;
pub use clip_tokenizer::{CLIP_TOKENS, ClipTokenizer};
pub use hashed::HashedText;
pub use minilm::{MINILM_TOKENS_MAX, MiniLmText};
pub use own_thread::OwnThreadText;

use crate::{batch::Text, pretrained::Identity};

/// A frozen encoder of captions. Equal captions give equal vectors: within rounding on every machine of a run, and on one device to the bit, whatever is
/// encoded with them. So what training reads does not depend on which captions were asked for before.
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

/// Captions that go through a network at once on a GPU.
const CAPTIONS_A_CALL: usize = 32;

/// Encodes captions on a device so that none changes another's last bits. Those follow from how products are cut. On the CPU that depends on what is summed
/// alone, not on how many rows there are; on a GPU on the shape of the whole, so that there all calls have one.
fn apart(captions: &[&str], device: &Device, encode: impl Fn(&[&str]) -> Result<Text>) -> Result<Text> {
    if device.is_cpu() { encode(captions) } else { in_equal_calls(captions, encode) }
}

/// Encodes captions in calls of [`CAPTIONS_A_CALL`], the last one filled up.
fn in_equal_calls(captions: &[&str], encode: impl Fn(&[&str]) -> Result<Text>) -> Result<Text> {
    let (mut tokens, mut pooled) = (Vec::new(), Vec::new());
    for call in captions.chunks(CAPTIONS_A_CALL) {
        let mut filled = call.to_vec();
        filled.resize(CAPTIONS_A_CALL, "");
        let text = encode(&filled)?;
        tokens.push(text.tokens.narrow(0, 0, call.len())?);
        pooled.push(text.pooled.narrow(0, 0, call.len())?);
    }
    Ok(Text { tokens: Tensor::cat(&tokens, 0)?, pooled: Tensor::cat(&pooled, 0)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_calls_give_what_one_call_gives() {
        let encoder = HashedText { tokens: 2, width: 4 };
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let captions: Vec<String> = (0..2 * CAPTIONS_A_CALL + 3).map(|number| format!("caption {number}")).collect();
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        for count in [1, CAPTIONS_A_CALL, captions.len()] {
            let found = in_equal_calls(&captions[..count], |captions| {
                assert_eq!(captions.len(), CAPTIONS_A_CALL);
                encoder.encode(captions, &Device::Cpu)
            });
            let (found, expected) = (found.unwrap(), encoder.encode(&captions[..count], &Device::Cpu).unwrap());
            assert_eq!(numbers(&found.tokens), numbers(&expected.tokens));
            assert_eq!(numbers(&found.pooled), numbers(&expected.pooled));
        }
    }
}
