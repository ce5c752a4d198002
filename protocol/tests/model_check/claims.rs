//! All claims that a small network can make, and what the real register makes of each set of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use paris_protocol::{
    claim::{Claim, ClaimId, Previous},
    manifest::Manifest,
    part::Part,
    register::{Merged, Register},
    signed::Verified,
};

use crate::common::{key, manifest, shared};

/// The claims on one part, predecessors first; a set of them is a mask.
struct OfPart {
    part: Part,
    all: Vec<Verified<Claim>>,
    owner: Vec<usize>,
    ids: Vec<ClaimId>,
    /// The number of the claim before.
    before: Vec<Option<usize>>,
    /// By set: what the register names current.
    current: Mutex<BTreeMap<u64, Option<usize>>>,
}

pub(crate) struct Claims {
    manifest: Arc<Manifest>,
    parts: Vec<OfPart>,
}

impl Claims {
    pub(crate) fn new(nodes: usize, parts: usize, terms: u64) -> Self {
        let manifest = shared(manifest(parts as u8, 1));
        let run = manifest.id().unwrap();
        let of_part = |part: Part| {
            let mut claims = OfPart {
                part,
                all: Vec::new(),
                owner: Vec::new(),
                ids: Vec::new(),
                before: Vec::new(),
                current: Mutex::default(),
            };
            for term in 1..=terms {
                let last_term = (0..claims.all.len()).filter(|at| claims.all[*at].term + 1 == term);
                let befores: Vec<Option<usize>> = if term == 1 { vec![None] } else { last_term.map(Some).collect() };
                for before in befores {
                    for node in 0..nodes {
                        let previous =
                            before.map(|at| Previous { claim: claims.ids[at], owner: claims.all[at].author() });
                        let claim = Claim { part, term, previous, evidence: Vec::new(), boot: 0, seq: 1 };
                        let claim = Verified::sign(&key(node as u8 + 1), run, claim);
                        claims.ids.push(claim.id(run, claim.author()));
                        claims.owner.push(node);
                        claims.before.push(before);
                        claims.all.push(claim);
                    }
                }
            }
            assert!(claims.all.len() <= 64, "a set of claims is a mask of 64 bits");
            claims
        };
        let parts = manifest.parts().take(parts).map(of_part).collect();
        Self { manifest, parts }
    }

    /// What the real register makes of a set of claims, merged forwards, and backwards with every one of them twice.
    pub(crate) fn current(&self, part: usize, set: u64) -> Option<usize> {
        let claims = &self.parts[part];
        let mut known = claims.current.lock().unwrap();
        *known.entry(set).or_insert_with(|| {
            let all: Vec<usize> = (0..claims.all.len()).filter(|at| set & 1 << at != 0).collect();
            let forwards = self.read(part, &all);
            let backwards: Vec<usize> = all.iter().rev().flat_map(|at| [*at, *at]).collect();
            assert_eq!(self.read(part, &backwards), forwards, "the order of records means something");
            forwards
        })
    }

    /// What a register names current that heard these claims in this order, and those without a predecessor again later.
    fn read(&self, part: usize, order: &[usize]) -> Option<usize> {
        let claims = &self.parts[part];
        let mut register = Register::new(self.manifest.id().unwrap(), self.manifest.clone());
        let mut waiting = order.to_vec();
        loop {
            let before = waiting.len();
            waiting.retain(|at| {
                let merged = register.merge_claim(claims.all[*at].clone());
                assert!(!matches!(merged, Merged::Invalid(_)));
                merged == Merged::Unlinked
            });
            if waiting.len() == before {
                break;
            }
        }
        register.current_id(claims.part).map(|id| claims.ids.iter().position(|it| *it == id).unwrap())
    }

    /// The claim of `node` that would follow `current`.
    pub(crate) fn following(&self, part: usize, current: Option<usize>, node: usize) -> Option<usize> {
        let claims = &self.parts[part];
        (0..claims.all.len()).find(|at| claims.owner[*at] == node && claims.before[*at] == current)
    }

    /// The claims of a set whose predecessor is in another.
    pub(crate) fn linked(&self, part: usize, news: u64, known: u64) -> impl Iterator<Item = usize> {
        let claims = &self.parts[part];
        let fits =
            move |at: &usize| news & 1 << at != 0 && claims.before[*at].is_none_or(|before| known & 1 << before != 0);
        (0..claims.all.len()).filter(fits)
    }

    pub(crate) fn owner(&self, part: usize, claim: usize) -> usize {
        self.parts[part].owner[claim]
    }

    /// What claims are ordered by.
    pub(crate) fn fence(&self, part: usize, claim: usize) -> (u64, ClaimId) {
        (self.parts[part].all[claim].term, self.parts[part].ids[claim])
    }

    /// True if no key made two claims of a set in one term.
    pub(crate) fn are_single(&self, part: usize, set: u64) -> bool {
        let claims = &self.parts[part];
        let mut seen = BTreeSet::new();
        let mut made = (0..claims.all.len()).filter(|at| set & 1 << at != 0);
        made.all(|at| seen.insert((claims.owner[at], claims.all[at].term)))
    }

    /// True if two claims of a set have the same term.
    pub(crate) fn has_tie(&self, part: usize, set: u64) -> bool {
        let claims = &self.parts[part];
        let mut terms = BTreeSet::new();
        let mut made = (0..claims.all.len()).filter(|at| set & 1 << at != 0);
        !made.all(|at| terms.insert(claims.all[at].term))
    }
}
