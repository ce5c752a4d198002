//! Signed records: what is stored and passed on carries its own signature, since a gossip envelope is not kept.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::{
    codec::Wire,
    identity::{Keypair, NodeId},
    manifest::RunId,
};

/// A value that nodes sign.
pub trait Record: Wire {
    /// Separates the signatures of one kind of record from those of every other kind.
    const DOMAIN: &'static str;
}

/// A record with its author and signature, as it came: not yet believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    author: NodeId,
    record: T,
    /// Two halves, because serde knows arrays up to 32.
    signature: [[u8; 32]; 2],
}

/// A record whose signature was checked against the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(Signed<T>);

/// A signature that does not fit its record, its author or the run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not fit: damaged, made for another run, or forged")]
pub struct BadSignature;

/// What is signed: domain, run and record, so that nothing can be replayed as something else or somewhere else.
fn message<T: Record>(run: RunId, record: &T) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(256);
    message.extend_from_slice(b"paris-node/1/");
    message.extend_from_slice(T::DOMAIN.as_bytes());
    message.push(0);
    message.extend_from_slice(&run.0.0);
    message.extend_from_slice(&record.to_bytes().ok()?);
    Some(message)
}

impl<T> Signed<T> {
    /// Author and record as claimed: to look up what is known, never to believe.
    pub(crate) fn unverified(&self) -> (NodeId, &T) {
        (self.author, &self.record)
    }

    /// Orders two records of one author that are equal in all that matters.
    pub(crate) fn tie_break(&self) -> [[u8; 32]; 2] {
        self.signature
    }
}

impl<T: Record> Signed<T> {
    /// Checks the signature.
    pub fn verify(self, run: RunId) -> Result<Verified<T>, BadSignature> {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&self.signature[0]);
        signature[32..].copy_from_slice(&self.signature[1]);
        match message(run, &self.record).is_some_and(|message| self.author.verifies(&message, &signature)) {
            true => Ok(Verified(self)),
            false => Err(BadSignature),
        }
    }
}

impl<T> Verified<T> {
    /// Believes a record without looking at its signature.
    pub(crate) fn assume(record: Signed<T>) -> Self {
        Self(record)
    }

    /// The same author's later record under this one's signature, which does not fit it: for whoever believes signatures unseen.
    pub(crate) fn repeated(&self, record: T) -> Self {
        let Signed { author, signature, .. } = self.0;
        Self(Signed { author, record, signature })
    }
}

impl<T: Record> Verified<T> {
    /// Signs `record` as the owner of `keypair`.
    ///
    /// # Panics
    /// If the record is longer than its own limit, which is a mistake of the caller, not of a peer.
    pub fn sign(keypair: &Keypair, run: RunId, record: T) -> Self {
        let message = message(run, &record).expect("own records are within their limits");
        let signature = keypair.sign(&message);
        let mut halves = [[0; 32]; 2];
        halves[0].copy_from_slice(&signature[..32]);
        halves[1].copy_from_slice(&signature[32..]);
        Self(Signed { author: keypair.id(), record, signature: halves })
    }

    /// Who signed it.
    pub fn author(&self) -> NodeId {
        self.0.author
    }

    /// The form that travels.
    pub fn signed(&self) -> &Signed<T> {
        &self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Note(u32);
    impl Wire for Note {
        const NAME: &'static str = "note";
        const LIMIT: usize = 16;
    }
    impl Record for Note {
        const DOMAIN: &'static str = "note";
    }

    #[test]
    fn a_signature_holds_for_one_run_and_one_record() {
        let keypair = Keypair::from_secret(&[7; 32]);
        let run = RunId(Hash::of(b"a run"));
        let signed = Verified::sign(&keypair, run, Note(5)).signed().clone();
        assert!(signed.clone().verify(run).is_ok());
        assert_eq!(signed.clone().verify(RunId(Hash::of(b"another"))), Err(BadSignature));
        let forged = Signed { record: Note(6), ..signed.clone() };
        assert_eq!(forged.verify(run), Err(BadSignature));
        let stolen = Signed { author: Keypair::from_secret(&[8; 32]).id(), ..signed };
        assert_eq!(stolen.verify(run), Err(BadSignature));
    }
}
