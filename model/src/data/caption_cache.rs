//! Captions are encoded when they are drawn; those that come again soon are kept, within a bound.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Device, Result, Tensor};

use crate::{batch::Text, host::with_numbers, text::TextEncoder};

/// Most memory that kept captions take, in bytes.
pub const CAPTION_CACHE_BYTES_MAX: usize = 32 << 20;
/// How many captions go through the encoder at once.
const CAPTIONS_A_CALL: usize = 256;

/// A caption's tokens, and then its pooled vector.
type Row = Arc<[f32]>;

/// An encoder that remembers.
pub(super) struct CaptionCache {
    encoder: Arc<dyn TextEncoder>,
    kept: Mutex<Generations>,
}

/// What was used lately, in two generations: when the younger is full it becomes the older, and the older is forgotten. So what is used again is kept,
/// and no order need be.
#[derive(Default)]
struct Generations {
    young: HashMap<String, Row>,
    old: HashMap<String, Row>,
    young_bytes: usize,
}

impl Generations {
    fn get(&mut self, caption: &str) -> Option<Row> {
        if let Some(row) = self.young.get(caption) {
            return Some(row.clone());
        }
        let row = self.old.remove(caption)?;
        self.keep(caption, row.clone());
        Some(row)
    }

    fn keep(&mut self, caption: &str, row: Row) {
        let bytes = caption.len() + size_of_val(&*row);
        if self.young_bytes + bytes > CAPTION_CACHE_BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        // One that alone is too large is not worth the room of all others.
        if bytes <= CAPTION_CACHE_BYTES_MAX / 2 && self.young.insert(caption.to_owned(), row).is_none() {
            self.young_bytes += bytes;
        }
    }
}

impl CaptionCache {
    pub(super) fn new(encoder: Arc<dyn TextEncoder>) -> Self {
        Self { encoder, kept: Mutex::default() }
    }

    /// Encodes captions, as the encoder would, in that order.
    pub(super) fn encode(&self, captions: &[String], device: &Device) -> Result<Text> {
        let mut rows: HashMap<&str, Row> = HashMap::new();
        let mut missing: Vec<&str> = Vec::new();
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for caption in captions {
                match kept.get(caption) {
                    Some(row) => drop(rows.insert(caption, row)),
                    None => missing.push(caption),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        for captions in missing.chunks(CAPTIONS_A_CALL) {
            let encoded = self.encode_rows(captions)?;
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for (caption, row) in captions.iter().zip(encoded) {
                kept.keep(caption, row.clone());
                rows.insert(caption, row);
            }
        }
        let (count, tokens, width) = (captions.len(), self.encoder.tokens(), self.encoder.width());
        let (mut token_numbers, mut pooled) =
            (Vec::with_capacity(count * tokens * width), Vec::with_capacity(count * width));
        for caption in captions {
            let (row_tokens, row_pooled) = rows[caption.as_str()].split_at(tokens * width);
            token_numbers.extend_from_slice(row_tokens);
            pooled.extend_from_slice(row_pooled);
        }
        Ok(Text {
            tokens: Tensor::from_vec(token_numbers, (count, tokens, width), device)?,
            pooled: Tensor::from_vec(pooled, (count, width), device)?,
        })
    }

    fn encode_rows(&self, captions: &[&str]) -> Result<Vec<Row>> {
        let text = self.encoder.encode(captions, &Device::Cpu)?;
        let (tokens, width) = (self.encoder.tokens(), self.encoder.width());
        if text.tokens.dims() != [captions.len(), tokens, width] || text.pooled.dims() != [captions.len(), width] {
            let (tokens, pooled) = (text.tokens.shape(), text.pooled.shape());
            candle_core::bail!("the text encoder gave {tokens:?} and {pooled:?} for {} captions", captions.len());
        }
        with_numbers([&text.tokens, &text.pooled], |[tokens_of_all, pooled_of_all]| {
            let rows = tokens_of_all.chunks(tokens * width).zip(pooled_of_all.chunks(width));
            Ok(rows.map(|(tokens, pooled)| tokens.iter().chain(pooled).copied().collect()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::text::watched::{TEXT, WatchedText};

    fn numbers(text: &Text) -> (Vec<f32>, Vec<f32>) {
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        (flat(&text.tokens), flat(&text.pooled))
    }

    #[test]
    fn it_gives_what_the_encoder_gives_and_asks_it_once() {
        let encoded = Arc::new(AtomicUsize::new(0));
        let counted = encoded.clone();
        let cache = CaptionCache::new(Arc::new(WatchedText(move |captions: &[&str]| {
            counted.fetch_add(captions.len(), Ordering::Relaxed);
            Ok(())
        })));
        let captions = ["a cat", "a dog", "a cat", ""].map(str::to_owned);
        let direct = TEXT.encode(&captions.each_ref().map(String::as_str), &Device::Cpu).unwrap();
        for _ in 0..3 {
            assert_eq!(numbers(&cache.encode(&captions, &Device::Cpu).unwrap()), numbers(&direct));
        }
        assert_eq!(encoded.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_used_again_stays() {
        let mut kept = Generations::default();
        let row: Row = vec![0.0; CAPTION_CACHE_BYTES_MAX / 4 / 100].into();
        kept.keep("often", row.clone());
        for number in 0..1000 {
            kept.keep(&format!("caption {number}"), row.clone());
            assert!(kept.get("often").is_some(), "after {number}");
            let all = kept.young.iter().chain(&kept.old);
            assert!(
                all.map(|(caption, row)| caption.len() + size_of_val(&**row)).sum::<usize>() <= CAPTION_CACHE_BYTES_MAX
            );
        }
        assert!(kept.get("caption 0").is_none());
        let huge: Row = vec![0.0; CAPTION_CACHE_BYTES_MAX / 4].into();
        kept.keep("huge", huge);
        assert!(kept.get("huge").is_none());
    }
}
