//! One entry of a source, as it was found: still encoded, so that many can be decoded at once elsewhere.

use std::ops::ControlFlow;

use image::RgbImage;

use super::skipped::{Reason, Refusal, cut};
use crate::data::{picture, shard::CAPTION_BYTES_MAX};

/// One entry, in the order of its source.
#[derive(Debug)]
pub struct Entry {
    /// Where it stands in its source; for messages.
    pub name: String,
    /// How much of the source is read with it, in the units of [`Listing::extent`](super::Listing).
    pub position: u64,
    /// The picture with its caption, or why it is neither.
    pub content: Result<Content, Refusal>,
}

/// A picture that waits to be decoded, and its caption.
#[derive(Debug)]
pub struct Content {
    pub(super) encoded: Encoded,
    pub(super) caption: String,
}

/// A picture as its source holds it.
#[derive(Debug)]
pub(super) enum Encoded {
    /// The bytes of a PNG, JPEG or WebP.
    File(Vec<u8>),
    /// Bare grey pixels, row by row, with their width.
    Grey(Vec<u8>, u32),
}

/// One picture with its caption.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it stands in its source; for messages.
    pub name: String,
    /// The picture, scaled to the square of the run.
    pub picture: RgbImage,
    /// What it shows: not empty, without white space around it, at most [`CAPTION_BYTES_MAX`] (a longer one was cut).
    pub caption: String,
}

impl Content {
    /// A caption is wanted, and may be longer than is kept.
    pub(super) fn new(encoded: Encoded, caption: Option<&str>) -> Result<Self, Refusal> {
        let caption = caption.map(str::trim).filter(|caption| !caption.is_empty());
        let caption = caption.ok_or_else(|| Refusal::new(Reason::NoCaption, ""))?;
        Ok(Self { encoded, caption: cut(caption, CAPTION_BYTES_MAX).to_owned() })
    }
}

impl Entry {
    /// Decodes the picture, crops its middle square and scales that to `size` x `size` pixels; refuses one whose shorter side is under `side_min`.
    pub fn decode(self, size: u32, side_min: u32) -> Result<Sample, (String, Refusal)> {
        let Self { name, content, .. } = self;
        let decoded = content.and_then(|Content { encoded, caption }| {
            let picture = match encoded {
                Encoded::File(bytes) => picture::decode_square(&bytes, size, side_min),
                Encoded::Grey(pixels, width) => picture::grey_square(pixels, width, size, side_min),
            };
            picture.map(|picture| (picture, caption))
        });
        match decoded {
            Ok((picture, caption)) => Ok(Sample { name, picture, caption }),
            Err(refusal) => Err((name, refusal)),
        }
    }

    /// Memory that it takes until it is decoded, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Ok(Content { encoded: Encoded::File(bytes) | Encoded::Grey(bytes, _), caption }) => {
                bytes.len() + caption.len()
            }
            Err(_) => self.name.len(),
        }
    }
}

/// What the readers of the formats hand their findings to, one after the other.
pub(super) struct Sink<'a> {
    /// How much of the source was read so far.
    pub(super) position: u64,
    /// Entries that still are to be passed over, since an earlier run took them.
    passing: u64,
    visit: &'a mut dyn FnMut(Entry) -> ControlFlow<()>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(passing: u64, visit: &'a mut dyn FnMut(Entry) -> ControlFlow<()>) -> Self {
        Self { position: 0, passing, visit }
    }

    /// Hands one entry on; `content` isn't asked for where the entry is passed over.
    pub(super) fn offer(&mut self, name: &str, content: impl FnOnce() -> Result<Content, Refusal>) -> ControlFlow<()> {
        if self.passing > 0 {
            self.passing -= 1;
            return ControlFlow::Continue(());
        }
        (self.visit)(Entry { name: name.to_owned(), position: self.position, content: content() })
    }

    /// Hands on that an entry can't be used.
    pub(super) fn refuse(&mut self, name: &str, reason: Reason, detail: impl std::fmt::Display) -> ControlFlow<()> {
        self.offer(name, || Err(Refusal::new(reason, detail)))
    }
}
