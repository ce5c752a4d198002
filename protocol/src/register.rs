//! The register: every peer's copy of who owns what and which checkpoints exist.
//!
//! A set of signed records that only grows (up to its bounds), merged by union; what it *means* — owner, head — is a pure function of the set.
//! No clock and no local observation enters it, or honest peers would diverge. Whether an owner is still alive is a separate, local
//! question: see [`lease`](crate::lease).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{BLOB_BYTES_MAX, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId},
    codec::{Wire, encoded_len},
    hash::Hash,
    identity::NodeId,
    invitation::{INVITATIONS_MAX, Invitation, Invitations, InvitedRecords},
    manifest::{Manifest, RunId},
    part::Part,
    part_map::PartMap,
    signed::{Signed, Verified},
};

/// The most claims kept of a part: a chain this long means as many changes of owner.
pub const CLAIMS_MAX: usize = 1024;
/// The most checkpoints kept of a part: the greatest by term, step and name.
pub const CHECKPOINTS_MAX: usize = 12;
/// The most of them made under one claim, so that no owner can push out what the others left.
pub const CHECKPOINTS_OF_A_CLAIM_MAX: usize = 4;
/// How many owners back a lost claim still speaks against who lost it.
pub const LOSSES_TERMS: usize = 8;

/// What merging a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The register grew.
    New,
    /// It was there, or something newer of its kind was, or there is no room for its kind.
    Known,
    /// Not kept: the claim that it builds on is missing. Pull from whoever sent it.
    Unlinked,
    /// No peer of this run makes such a record.
    Invalid(&'static str),
}

/// All records of a run.
#[derive(Clone, Debug)]
pub struct Register {
    run: RunId,
    manifest: Arc<Manifest>,
    /// Parts of which something is known.
    parts: PartMap<PartRegister>,
    /// Keys that signed two claims on one part and term.
    barred: BTreeSet<NodeId>,
    invitations: Invitations,
}

/// The records of a part.
#[derive(Clone, Debug, Default)]
struct PartRegister {
    /// Only claims whose predecessors are here too, back to term 1: a made-up term costs nobody any memory.
    claims: BTreeMap<ClaimId, Verified<Claim>>,
    /// The greatest of them by term and name.
    current: Option<(u64, ClaimId)>,
    checkpoints: BTreeMap<CheckpointId, Verified<Checkpoint>>,
    /// Their names, best first.
    order: Vec<CheckpointId>,
    /// The hash of all this, once it was asked for.
    digest: OnceLock<Hash>,
}

/// Records as they travel between registers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Records {
    /// Claims of all terms.
    pub claims: Vec<Signed<Claim>>,
    /// Checkpoints.
    pub checkpoints: Vec<Signed<Checkpoint>>,
}

impl Wire for Records {
    const NAME: &'static str = "register exchange";
    const LIMIT: usize = 1 << 20;
}

/// A hash a part over the records of it: equal digests, equal registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(pub BTreeMap<Part, Hash>);

impl Wire for Digest {
    const NAME: &'static str = "register digest";
    const LIMIT: usize = 64 * 1024;
}

impl Register {
    /// An empty register of a run.
    pub fn new(run: RunId, manifest: Arc<Manifest>) -> Self {
        Self { run, manifest, parts: PartMap::default(), barred: BTreeSet::new(), invitations: Invitations::default() }
    }

    /// True if `node` may own parts: by the manifest's word, or an organiser's.
    pub fn admits(&self, node: NodeId) -> bool {
        self.manifest.admits(node) || self.invitations.invites(node)
    }

    /// Adds an invitation.
    pub fn merge_invitation(&mut self, invitation: Verified<Invitation>) -> Merged {
        let from_organiser = self.manifest.is_by_invitation() && self.manifest.admits(invitation.author());
        if !from_organiser {
            return Merged::Invalid("its author is no organiser of a run by invitation");
        }
        if invitation.number >= INVITATIONS_MAX {
            return Merged::Invalid("its author has invited as many as it may");
        }
        match self.invitations.add(invitation) {
            true => Merged::New,
            false => Merged::Known,
        }
    }

    /// Adds a claim.
    pub fn merge_claim(&mut self, claim: Verified<Claim>) -> Merged {
        let id = self.id_of(&claim);
        // A heartbeat repeats evidence that was checked already.
        let repeats = self.claim(claim.part, id).is_some_and(|known| known.evidence == claim.evidence);
        let mut voters = claim.evidence.iter().map(|vote| vote.unverified().0);
        if !self.admits(claim.author()) || !(repeats || voters.all(|voter| self.admits(voter))) {
            // Who made it may not know better, and who passed it on may know an invitation that is still on its way to here.
            return match self.manifest.is_by_invitation() {
                true => Merged::Unlinked,
                false => Merged::Invalid("its author or a voter is not admitted"),
            };
        }
        if !self.manifest.has(claim.part) {
            return Merged::Invalid("the run has no such part");
        }
        let part = self.parts.get_or_default(claim.part);
        let newness = |claim: &Verified<Claim>| (claim.seq, claim.signed().tie_break());
        let known = part.claims.get(&id);
        if known.is_some_and(|known| newness(known) >= newness(&claim)) {
            return Merged::Known;
        }
        let quorum = usize::from(self.manifest.ownership.quorum);
        if !repeats && !claim.is_founded(self.run, claim.author(), quorum) {
            return Merged::Invalid("its evidence does not end the claim before");
        }
        if let Some(previous) = claim.previous {
            let Some(before) = part.claims.get(&previous.claim) else { return Merged::Unlinked };
            if before.author() != previous.owner || before.term.checked_add(1) != Some(claim.term) {
                return Merged::Invalid("it does not follow the claim that it names");
            }
        }
        if known.is_none() && part.claims.len() >= CLAIMS_MAX {
            return Merged::Known;
        }
        let twin = |other: &Verified<Claim>| other.author() == claim.author() && other.term == claim.term;
        if known.is_none() && part.claims.values().any(twin) {
            self.barred.insert(claim.author());
        }
        let before = part.current;
        part.current = before.max(Some((claim.term, id)));
        part.claims.insert(id, claim);
        part.digest.take();
        if part.current != before {
            part.sort_checkpoints();
        }
        Merged::New
    }

    /// Adds a checkpoint. Only the owner of a known claim can have made it.
    pub fn merge_checkpoint(&mut self, checkpoint: Verified<Checkpoint>) -> Merged {
        if !self.manifest.has(checkpoint.part) {
            return Merged::Invalid("the run has no such part");
        }
        let part = self.parts.get_or_default(checkpoint.part);
        if checkpoint.weights.bytes > BLOB_BYTES_MAX || checkpoint.state.bytes > BLOB_BYTES_MAX {
            return Merged::Invalid("its blobs are larger than any checkpoint's");
        }
        if !checkpoint.held_out_loss.is_finite() {
            return Merged::Invalid("its loss is not finite");
        }
        match part.claims.get(&checkpoint.claim) {
            None => return Merged::Unlinked,
            Some(claim) if claim.author() != checkpoint.author() => {
                return Merged::Invalid("another node owned the claim");
            }
            Some(claim) if claim.term != checkpoint.term => return Merged::Invalid("the claim has another term"),
            Some(_) => {}
        }
        let id = checkpoint.id();
        if part.checkpoints.contains_key(&id) {
            return Merged::Known;
        }
        let claim = checkpoint.claim;
        part.checkpoints.insert(id, checkpoint);
        part.keep_greatest(CHECKPOINTS_OF_A_CLAIM_MAX, |it| it.claim == claim);
        part.keep_greatest(CHECKPOINTS_MAX, |_| true);
        part.sort_checkpoints();
        part.digest.take();
        match part.checkpoints.contains_key(&id) {
            true => Merged::New,
            false => Merged::Known,
        }
    }

    /// True if this very claim is known, so that its signature need not be checked again.
    pub(crate) fn has_claim(&self, signed: &Signed<Claim>) -> bool {
        let (author, claim) = signed.unverified();
        self.claim(claim.part, claim.id(self.run, author)).is_some_and(|known| known.signed() == signed)
    }

    /// True if this very invitation is known.
    pub(crate) fn has_invitation(&self, signed: &Signed<Invitation>) -> bool {
        self.invitations.has(signed)
    }

    /// All invitations.
    pub fn invitations(&self) -> impl Iterator<Item = &Signed<Invitation>> {
        self.invitations.all()
    }

    /// A hash over them.
    pub(crate) fn invitations_digest(&self) -> Hash {
        self.invitations.digest()
    }

    /// The number of `organiser`'s next invitation, if it may have one more.
    pub(crate) fn next_invitation(&self, organiser: NodeId) -> Option<u16> {
        self.invitations.next_number(organiser)
    }

    /// True if this very checkpoint is known.
    pub(crate) fn has_checkpoint(&self, signed: &Signed<Checkpoint>) -> bool {
        let (author, checkpoint) = signed.unverified();
        let known = self.checkpoint(checkpoint.part, CheckpointId::of(author, checkpoint));
        known.is_some_and(|known| known.signed() == signed)
    }

    /// The part's current claim: the greatest by (term, name).
    pub fn current(&self, part: Part) -> Option<&Verified<Claim>> {
        let part = self.parts.get(part)?;
        part.claims.get(&part.current?.1)
    }

    /// True if the key signed two claims on one part and term, which no honest node does: it follows its own claim, never forks it. The two are
    /// their own proof, and travel as all claims do.
    pub fn is_barred(&self, node: NodeId) -> bool {
        self.barred.contains(&node)
    }

    /// How often `node` lost the part among its last owners, to votes and not by its own release: a measure of how it flaps.
    pub fn losses(&self, part: Part, node: NodeId) -> usize {
        let Some(claims) = self.parts.get(part).map(|part| &part.claims) else { return 0 };
        let chain = std::iter::successors(self.current(part), |claim| claims.get(&claim.previous?.claim));
        let lost = |claim: &&Verified<Claim>| {
            let released = |owner| claim.evidence.iter().any(|vote| vote.unverified().0 == owner);
            claim.previous.is_some_and(|it| it.owner == node && claim.author() != node && !released(node))
        };
        chain.take(LOSSES_TERMS).filter(lost).count()
    }

    /// The current claim's name.
    pub fn current_id(&self, part: Part) -> Option<ClaimId> {
        self.parts.get(part)?.current.map(|(_, id)| id)
    }

    /// A claim's name. Most claims that come are heartbeats of the current one, whose name need not be reckoned again.
    pub(crate) fn id_of(&self, claim: &Verified<Claim>) -> ClaimId {
        let same =
            |it: &Verified<Claim>| (it.author(), it.term, it.previous) == (claim.author(), claim.term, claim.previous);
        match self.current_id(claim.part) {
            Some(id) if self.current(claim.part).is_some_and(same) => id,
            _ => claim.id(self.run, claim.author()),
        }
    }

    /// A claim by its name.
    pub fn claim(&self, part: Part, id: ClaimId) -> Option<&Verified<Claim>> {
        self.parts.get(part)?.claims.get(&id)
    }

    /// The part's checkpoints, best first: those fenced by the current claim, then by term, step and name.
    pub fn checkpoints(&self, part: Part) -> Vec<&Verified<Checkpoint>> {
        self.named_checkpoints(part).map(|(_, checkpoint)| checkpoint).collect()
    }

    /// The same with their names, which are costly to compute again.
    pub(crate) fn named_checkpoints(&self, part: Part) -> impl Iterator<Item = (CheckpointId, &Verified<Checkpoint>)> {
        let part = self.parts.get(part);
        let order = part.map_or(&[][..], |part| &part.order).iter();
        order.filter_map(move |id| Some((*id, part?.checkpoints.get(id)?)))
    }

    /// A checkpoint by its name.
    pub fn checkpoint(&self, part: Part, id: CheckpointId) -> Option<&Verified<Checkpoint>> {
        self.parts.get(part)?.checkpoints.get(&id)
    }

    /// All claims and checkpoints.
    pub(crate) fn records(&self) -> (Vec<&Verified<Claim>>, Vec<&Verified<Checkpoint>>) {
        let parts = || self.parts.iter().map(|(_, part)| part);
        let claims = parts().flat_map(|part| part.claims.values()).collect();
        (claims, parts().flat_map(|part| part.checkpoints.values()).collect())
    }

    /// A hash a part, to compare registers by.
    pub fn digest(&self) -> Digest {
        let nothing = PartRegister::default();
        let hash = |part| self.parts.get(part).unwrap_or(&nothing).digest();
        Digest(self.manifest.parts().map(|part| (part, hash(part))).collect())
    }

    /// The records of every part in which `other` differs, as many as an answer may hold; a later exchange brings the rest. Which part comes
    /// first follows from `other`, so that busy parts cannot crowd out the same ones for ever.
    pub fn differing(&self, other: &Digest) -> Records {
        self.differing_within(Records::LIMIT - 1024, other)
    }

    /// The same, with all invitations if `invitations` is not the hash of those known here.
    pub(crate) fn differing_with_invitations(&self, invitations: Hash, other: &Digest) -> InvitedRecords {
        let mut answer = InvitedRecords::default();
        if invitations != self.invitations.digest() {
            answer.invitations = self.invitations.all().cloned().collect();
        }
        let room = (Records::LIMIT - 1024).saturating_sub(encoded_len(&answer.invitations));
        answer.records = self.differing_within(room, other);
        answer
    }

    fn differing_within(&self, mut room: usize, other: &Digest) -> Records {
        let mine = self.digest();
        let mut records = Records::default();
        let turn = other.0.values().fold(0, |turn: usize, hash| turn.wrapping_mul(31).wrapping_add(hash.0[0].into()));
        let known = self.parts.iter().count();
        for (part, register) in self.parts.iter().cycle().skip(turn % known.max(1)).take(known) {
            if other.0.get(&part) == mine.0.get(&part) {
                continue;
            }
            let mut claims: Vec<_> = register.claims.values().collect();
            claims.sort_by_key(|claim| claim.term);
            for claim in claims {
                let Some(left) = room.checked_sub(encoded_len(claim.signed())) else { return records };
                room = left;
                records.claims.push(claim.signed().clone());
            }
            for checkpoint in register.checkpoints.values() {
                let Some(left) = room.checked_sub(encoded_len(checkpoint.signed())) else { return records };
                room = left;
                records.checkpoints.push(checkpoint.signed().clone());
            }
        }
        records
    }
}

impl PartRegister {
    fn digest(&self) -> Hash {
        *self.digest.get_or_init(|| {
            let mut bytes = Vec::new();
            for (id, claim) in &self.claims {
                bytes.extend_from_slice(&id.0.0);
                bytes.extend_from_slice(&claim.seq.to_le_bytes());
                bytes.extend_from_slice(claim.signed().tie_break().as_flattened());
            }
            for id in self.checkpoints.keys() {
                bytes.extend_from_slice(&id.0.0);
            }
            Hash::of_fields("paris-node 1 register digest", &[&bytes])
        })
    }

    /// Best first: those fenced by the current claim, then by term, step and name.
    fn sort_checkpoints(&mut self) {
        let current = self.current.map(|(_, id)| id);
        let mut all: Vec<_> = self.checkpoints.iter().collect();
        all.sort_by_key(|(id, it)| Reverse((Some(it.claim) == current, it.term, it.step, **id)));
        self.order = all.into_iter().map(|(id, _)| *id).collect();
    }

    /// Drops the least of the checkpoints that `counts` until no more than `most` are left.
    fn keep_greatest(&mut self, most: usize, counts: impl Fn(&Checkpoint) -> bool) {
        let mut counted: Vec<_> = self.checkpoints.iter().filter(|(_, it)| counts(it)).collect();
        counted.sort_by_key(|(id, it)| Reverse((it.term, it.step, **id)));
        let surplus: Vec<_> = counted.into_iter().skip(most).map(|(id, _)| *id).collect();
        for id in surplus {
            self.checkpoints.remove(&id);
        }
    }
}
