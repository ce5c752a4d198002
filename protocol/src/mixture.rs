//! Mixtures: one checkpoint a part, held still, so that a picture can be drawn again anywhere.
//!
//! Which checkpoints are best changes while a run trains. A mixture names some of them for good: it is the list of their signed records, and its own name is
//! the hash of its bytes. So it is a blob like any other, kept and served by whoever wants to, and believed of anyone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Checkpoint,
    codec::{CodecError, Wire},
    hash::Hash,
    manifest::{Manifest, RunId},
    part::Part,
    signed::{Signed, Verified},
};

/// The version this code writes and reads.
pub const MIXTURE_VERSION: u16 = 1;

/// One checkpoint of some or all parts of a run. Of equal checkpoints there is one mixture, whoever puts it together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    version: u16,
    run: RunId,
    /// In the order of their parts, at most one of each.
    checkpoints: Vec<Signed<Checkpoint>>,
}

impl Wire for Mixture {
    const NAME: &'static str = "mixture";
    /// A record of each of 1025 parts takes about half of it.
    const LIMIT: usize = 512 * 1024;
}

/// A mixture that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MixtureError {
    /// The bytes are no mixture.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Written by a later program.
    #[error("the mixture has version {0}, this program reads version {MIXTURE_VERSION}: draw with a newer release")]
    Version(u16),
    /// Of another run.
    #[error(
        "the mixture belongs to run {theirs}, and this node is in run {ours}: join that run first, with a ticket of it"
    )]
    OtherRun {
        /// The mixture's run.
        theirs: RunId,
        /// This node's.
        ours: RunId,
    },
    /// It names a part twice, out of order, or that the run does not have.
    #[error("the mixture lists {0} where no mixture of this run can: whoever made it made it up")]
    Part(Part),
    /// A checkpoint's author never signed it.
    #[error("the mixture's checkpoint of {0} is not signed by its author: whoever made the mixture forged it")]
    Signature(Part),
}

impl Mixture {
    /// The mixture of these checkpoints of a run; of several of one part the last counts.
    pub fn of<'a>(run: RunId, checkpoints: impl IntoIterator<Item = &'a Verified<Checkpoint>>) -> Self {
        let by_part: BTreeMap<Part, _> = checkpoints.into_iter().map(|it| (it.part, it.signed().clone())).collect();
        Self { version: MIXTURE_VERSION, run, checkpoints: by_part.into_values().collect() }
    }

    /// The same without the parts that `keep` refuses.
    pub fn only(mut self, keep: impl Fn(Part) -> bool) -> Self {
        self.checkpoints.retain(|signed| keep(signed.unverified().1.part));
        self
    }

    /// The mixture's name: the hash of its bytes.
    pub fn hash(&self) -> Result<Hash, CodecError> {
        Ok(Hash::of(&self.to_bytes()?))
    }

    /// Reads a mixture of a run and checks every signature. Whoever fetched the bytes compares their hash with the mixture's name.
    pub fn read(bytes: &[u8], run: RunId, manifest: &Manifest) -> Result<Vec<Verified<Checkpoint>>, MixtureError> {
        // The version stands first, so that a newer mixture is called newer, not garbage.
        if let Some(&version) = bytes.first()
            && u16::from(version) != MIXTURE_VERSION
        {
            return Err(MixtureError::Version(version.into()));
        }
        let mixture = Self::from_bytes(bytes)?;
        if mixture.run != run {
            return Err(MixtureError::OtherRun { theirs: mixture.run, ours: run });
        }
        let mut checkpoints: Vec<Verified<Checkpoint>> = Vec::new();
        for signed in mixture.checkpoints {
            let part = signed.unverified().1.part;
            if !manifest.has(part) || checkpoints.last().is_some_and(|last| last.part >= part) {
                return Err(MixtureError::Part(part));
            }
            checkpoints.push(signed.verify(run).map_err(|_| MixtureError::Signature(part))?);
        }
        Ok(checkpoints)
    }
}
