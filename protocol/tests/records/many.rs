//! A hundred thousand values of every wire type, drawn from a counter: cheap to make, so that many can be.

use std::collections::BTreeMap;

use paris_protocol::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId, Previous, Vote},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    message::{Gossip, Presence, Progress},
    part::Part,
    register::{Digest, Records},
    signed::{Signed, Verified},
};

use crate::{common::key, values::run};

const CASES: u64 = 100_000;

/// Numbers of one case: SplitMix64, with the lengths of varints all as likely.
struct Draw(u64);

impl Draw {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    fn number(&mut self) -> u64 {
        let bits = self.below(65);
        self.word().checked_shr(64 - bits as u32).unwrap_or(0)
    }

    fn hash(&mut self) -> Hash {
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes());
        }
        Hash(bytes)
    }

    fn option<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| draw(self))
    }

    fn list<T>(&mut self, most: u64, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| draw(self)).collect()
    }

    fn part(&mut self) -> Part {
        self.option(|draw| Part::Expert(draw.number() as u16)).unwrap_or(Part::Router)
    }

    fn vote(&mut self) -> Vote {
        Vote {
            part: self.part(),
            claim: self.option(Self::hash).map(ClaimId),
            heir: self.option(|it| NodeId(it.hash().0)),
        }
    }

    fn claim(&mut self, pool: &Pool) -> Claim {
        Claim {
            part: self.part(),
            term: self.number(),
            previous: self.option(|it| Previous { claim: ClaimId(it.hash()), owner: NodeId(it.hash().0) }),
            evidence: self.list(3, |it| it.of(&pool.votes)),
            boot: self.number(),
            seq: self.number(),
        }
    }

    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint {
            part: self.part(),
            claim: ClaimId(self.hash()),
            term: self.number(),
            parent: self.option(Self::hash).map(CheckpointId),
            step: self.number(),
            held_out_loss: self.number() as u32 as f32,
            weights: Blob { hash: self.hash(), bytes: self.number() },
            state: Blob { hash: self.hash(), bytes: self.number() },
        }
    }

    fn presence(&mut self) -> Presence {
        let address = |it: &mut Self| ([127, 0, 0, it.word() as u8], it.word() as u16).into();
        let progress = |it: &mut Self| Progress {
            part: it.part(),
            step: it.number(),
            loss: it.number() as f32,
            held_out_loss: it.number() as f32,
        };
        Presence {
            capacity: self.number() as u16,
            addresses: self.list(3, address),
            holds: self.list(4, |it| CheckpointId(it.hash())),
            progress: self.list(3, progress),
        }
    }

    fn gossip(&mut self, pool: &Pool) -> Gossip {
        match self.below(3) {
            0 => Gossip::Beat { presence: self.presence(), claims: self.list(3, |it| it.of(&pool.claims)) },
            1 => Gossip::Vote(self.of(&pool.votes)),
            _ => Gossip::Checkpoint(self.of(&pool.checkpoints)),
        }
    }

    fn of<T: Clone>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len() as u64) as usize].clone()
    }
}

/// Records signed once for all cases: a signature takes longer than all the rest.
struct Pool {
    votes: Vec<Signed<Vote>>,
    claims: Vec<Signed<Claim>>,
    checkpoints: Vec<Signed<Checkpoint>>,
}

impl Pool {
    fn new() -> Self {
        let (mut draw, author) = (Draw(0), key(1));
        let votes = (0..64).map(|_| Verified::sign(&author, run(), draw.vote()).signed().clone()).collect();
        let mut pool = Self { votes, claims: Vec::new(), checkpoints: Vec::new() };
        pool.claims = (0..64).map(|_| Verified::sign(&author, run(), draw.claim(&pool)).signed().clone()).collect();
        pool.checkpoints =
            (0..64).map(|_| Verified::sign(&author, run(), draw.checkpoint()).signed().clone()).collect();
        pool
    }
}

/// Reads what it wrote; cut off anywhere, or with a byte more, it reads as something else or not at all.
fn round_trip<T: Wire + PartialEq>(case: u64, value: &T, cut: u64) {
    let mut bytes = value.to_bytes().unwrap();
    assert!(T::from_bytes(&bytes).unwrap() == *value, "case {case}: {} read as another", T::NAME);
    let cut = (cut % bytes.len() as u64) as usize;
    assert!(T::from_bytes(&bytes[..cut]).is_err(), "case {case}: {} cut off at {cut}", T::NAME);
    bytes.push(0);
    assert!(T::from_bytes(&bytes).is_err(), "case {case}: {} with a byte more", T::NAME);
}

#[test]
fn a_hundred_thousand_values_survive_their_wire_form() {
    let pool = Pool::new();
    for case in 0..CASES {
        let mut draw = Draw(case << 20);
        let cut = draw.word();
        round_trip(case, &draw.vote(), cut);
        round_trip(case, &draw.claim(&pool), cut);
        round_trip(case, &draw.checkpoint(), cut);
        round_trip(case, &draw.gossip(&pool), cut);
        let (claims, checkpoints) =
            (draw.list(2, |it| it.of(&pool.claims)), draw.list(2, |it| it.of(&pool.checkpoints)));
        round_trip(case, &Records { claims, checkpoints }, cut);
        let digest: BTreeMap<Part, Hash> = draw.list(4, |it| (it.part(), it.hash())).into_iter().collect();
        round_trip(case, &Digest(digest), cut);
    }
}
