//! What of a source couldn't be used, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many entries [`Skipped`] lists by name.
pub const LISTED_MAX: usize = 1000;
/// How many of them a message shows.
const SHOWN_MAX: usize = 8;
/// How much of a name or a detail is kept, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Why an entry was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nothing says what the picture shows.
    NoCaption,
    /// A caption or a line of metadata without its picture.
    NoPicture,
    /// The caption is larger than is read, or not UTF-8.
    BadCaption,
    /// A line of metadata that isn't one.
    BadMetadata,
    /// The picture's bytes can't be decoded.
    Undecodable,
    /// The picture's shorter side is under the least that was asked for.
    TooSmall,
    /// The picture has more bytes or pixels than are decoded.
    TooLarge,
    /// The operating system can't read it.
    Unreadable,
    /// The rest of a file was lost, for it is damaged or cut short.
    Damaged,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoCaption => "no caption",
            Self::NoPicture => "no picture",
            Self::BadCaption => "bad caption",
            Self::BadMetadata => "bad metadata",
            Self::Undecodable => "not decodable",
            Self::TooSmall => "too small",
            Self::TooLarge => "too large",
            Self::Unreadable => "unreadable",
            Self::Damaged => "damaged from here on",
        })
    }
}

/// Why an entry can't be used, with the particulars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of trouble.
    pub reason: Reason,
    /// More about it; may be empty.
    pub detail: String,
}

impl Refusal {
    pub(in crate::data) fn new(reason: Reason, detail: impl std::fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// One entry that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedEntry {
    /// Where it stands in its source.
    pub name: String,
    /// The kind of trouble.
    pub reason: Reason,
    /// More about it; may be empty.
    pub detail: String,
}

/// How many entries of a source couldn't be used, by reason, and which were the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Entries left out, by reason.
    pub by_reason: BTreeMap<Reason, u64>,
    /// The first [`LISTED_MAX`] of them.
    pub listed: Vec<SkippedEntry>,
}

impl Skipped {
    /// Entries left out.
    pub fn count(&self) -> u64 {
        self.by_reason.values().sum()
    }

    /// Counts one more.
    pub fn add(&mut self, name: &str, refusal: &Refusal) {
        *self.by_reason.entry(refusal.reason).or_default() += 1;
        if self.listed.len() < LISTED_MAX {
            let (name, detail) = (cut(name, TEXT_BYTES_MAX), cut(&refusal.detail, TEXT_BYTES_MAX));
            self.listed.push(SkippedEntry { name: name.into(), reason: refusal.reason, detail: detail.into() });
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} skipped", self.count())?;
        for (place, (reason, count)) in self.by_reason.iter().enumerate() {
            write!(f, "{}{count} {reason}", if place == 0 { ": " } else { ", " })?;
        }
        for SkippedEntry { name, reason, detail } in self.listed.iter().take(SHOWN_MAX) {
            let colon = if detail.is_empty() { "" } else { ": " };
            write!(f, "; {name}: {reason}{colon}{detail}")?;
        }
        if self.count() > SHOWN_MAX as u64 { write!(f, "; ...") } else { Ok(()) }
    }
}

/// The beginning of a text, at most `bytes` long, cut between letters.
pub(in crate::data) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
