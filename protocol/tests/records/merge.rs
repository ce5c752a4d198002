//! The laws of the register: whatever order records come in, equal sets mean the same.

use std::sync::{Arc, OnceLock};

use paris_protocol::{
    checkpoint::{Blob, Checkpoint},
    claim::{Claim, ClaimId, Previous, Vote},
    hash::Hash,
    identity::Keypair,
    manifest::{Manifest, RunId},
    part::Part,
    register::{Merged, Records, Register},
    signed::Verified,
};
use proptest::{collection::vec, prelude::*};

use crate::common::{key, manifest, shared};

const PARTS: [Part; 2] = [Part::Expert(0), Part::Router];
const KEYS: u8 = 3;

/// How one record is made from those before it.
#[derive(Clone, Debug)]
enum Draw {
    Claim { part: usize, author: u8, after: usize, votes: u8, seq: u64, boot: u64 },
    Checkpoint { after: usize, step: u64 },
}

#[derive(Clone, Debug)]
enum Made {
    Claim(Verified<Claim>),
    Checkpoint(Verified<Checkpoint>),
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let claim = (0..2usize, 0..KEYS, 0..30usize, 0..4u8, 0..4u64, 0..2u64)
        .prop_map(|(part, author, after, votes, seq, boot)| Draw::Claim { part, author, after, votes, seq, boot });
    let checkpoint = (0..30usize, 0..20u64).prop_map(|(after, step)| Draw::Checkpoint { after, step });
    vec(prop_oneof![claim, checkpoint], 1..30)
}

fn run(manifest: &Arc<Manifest>) -> RunId {
    manifest.id().unwrap()
}

/// Valid records: chains, forks, repeated heartbeats, and more checkpoints than are kept.
fn make(run: RunId, draws: &[Draw]) -> Vec<Made> {
    let mut made = Vec::new();
    let mut claims: Vec<Verified<Claim>> = Vec::new();
    for draw in draws {
        match *draw {
            Draw::Claim { part, author, after, votes, seq, boot } => {
                let part = PARTS[part];
                let before: Vec<_> = claims.iter().filter(|it| it.part == part).collect();
                let before = (!before.is_empty() && after % 3 > 0).then(|| before[after % before.len()]);
                let (term, previous, evidence) = match before {
                    None => (1, None, Vec::new()),
                    Some(before) => {
                        let claim = before.id(run, before.author());
                        let vote = Vote { part, claim: Some(claim), heir: Some(key(author).id()) };
                        let sign = |voter: &Keypair| Verified::sign(voter, run, vote).signed().clone();
                        let previous = Previous { claim, owner: before.author() };
                        // A vote of whomever, or none: the quorum is 1.
                        let evidence = (votes > 0).then(|| sign(&key(votes)));
                        (before.term + 1, Some(previous), evidence.into_iter().collect())
                    }
                };
                let claim = Claim { part, term, previous, evidence, boot, seq };
                let claim = Verified::sign(&key(author), run, claim);
                claims.push(claim.clone());
                made.push(Made::Claim(claim));
            }
            Draw::Checkpoint { after, step } if !claims.is_empty() => {
                let claim = &claims[after % claims.len()];
                let author = (0..KEYS).map(key).find(|key| key.id() == claim.author()).unwrap();
                let blob = Blob { hash: Hash::of(&step.to_le_bytes()), bytes: step };
                let checkpoint = Checkpoint {
                    part: claim.part,
                    claim: claim.id(run, claim.author()),
                    term: claim.term,
                    parent: None,
                    step,
                    held_out_loss: 1.0,
                    weights: blob,
                    state: blob,
                };
                made.push(Made::Checkpoint(Verified::sign(&author, run, checkpoint)));
            }
            Draw::Checkpoint { .. } => {}
        }
    }
    made
}

/// Merges records in any order, as peers do: what finds no predecessor comes again in a later exchange.
fn merge(register: &mut Register, records: &[Made]) {
    let mut waiting: Vec<_> = records.to_vec();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|record| {
            let merged = match record.clone() {
                Made::Claim(claim) => register.merge_claim(claim),
                Made::Checkpoint(checkpoint) => register.merge_checkpoint(checkpoint),
            };
            assert!(!matches!(merged, Merged::Invalid(_)), "{merged:?}: {record:?}");
            merged == Merged::Unlinked
        });
        assert!(waiting.len() < before, "every record has its predecessors in the set");
    }
}

fn merged<'a>(manifest: &Arc<Manifest>, sets: impl IntoIterator<Item = &'a [Made]>) -> Register {
    let mut register = Register::new(run(manifest), manifest.clone());
    sets.into_iter().for_each(|set| merge(&mut register, set));
    register
}

/// All that a register says.
fn meaning(register: &Register) -> impl PartialEq + std::fmt::Debug + use<> {
    let part = |part: Part| {
        let current = register.current(part).cloned();
        let checkpoints: Vec<_> = register.checkpoints(part).into_iter().cloned().collect();
        (current, checkpoints)
    };
    (register.digest(), PARTS.map(part))
}

/// Brings all that `from` knows to `to`, as a pull does.
fn pull(to: &mut Register, from: &Register, run: RunId) {
    let Records { claims, checkpoints } = from.differing(&to.digest());
    let claims = claims.into_iter().map(|it| Made::Claim(it.verify(run).unwrap()));
    let checkpoints = checkpoints.into_iter().map(|it| Made::Checkpoint(it.verify(run).unwrap()));
    merge(to, &claims.chain(checkpoints).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn records_mean_the_same_in_any_order_and_however_often_they_come(draws in draws(), shuffle in any::<u64>()) {
        let manifest = shared(manifest(1, 1));
        let all = make(run(&manifest), &draws);
        let once = merged(&manifest, [all.as_slice()]);
        let mut other = all.clone();
        other.sort_by_key(|it| Hash::of(format!("{shuffle}{it:?}").as_bytes()));
        prop_assert_eq!(meaning(&merged(&manifest, [other.as_slice()])), meaning(&once));
        prop_assert_eq!(meaning(&merged(&manifest, [all.as_slice(), &other, &all])), meaning(&once));
    }

    #[test]
    fn registers_that_exchanged_records_are_equal(draws in draws(), cut in any::<prop::sample::Index>()) {
        let manifest = shared(manifest(1, 1));
        let run = run(&manifest);
        let all = make(run, &draws);
        let cut = cut.index(all.len() + 1);
        // Each has all up to the cut; one has what follows.
        let mut one = merged(&manifest, [&all[..cut]]);
        let mut other = merged(&manifest, [all.as_slice()]);
        pull(&mut one, &other, run);
        pull(&mut other, &one, run);
        prop_assert_eq!(meaning(&one), meaning(&other));
        prop_assert_eq!(one.differing(&other.digest()), Records::default());
    }

    #[test]
    fn merging_registers_is_commutative_and_associative(draws in draws(), ways in vec(0..3usize, 30)) {
        let manifest = shared(manifest(1, 1));
        let run = run(&manifest);
        // Claims are known to all, so that each of three registers is closed; checkpoints and heartbeats are dealt out.
        let all = make(run, &draws);
        let deal = |hand: usize| -> Vec<Made> {
            let dealt = |(at, it): &(usize, &Made)| matches!(it, Made::Claim(_)) || ways[*at] == hand;
            all.iter().enumerate().filter(dealt).map(|(_, it)| it.clone()).collect()
        };
        let [a, b, c] = [deal(0), deal(1), deal(2)].map(|hand| merged(&manifest, [hand.as_slice()]));
        let join = |one: &Register, other: &Register| {
            let mut joined = one.clone();
            pull(&mut joined, other, run);
            joined
        };
        prop_assert_eq!(meaning(&join(&a, &b)), meaning(&join(&b, &a)));
        prop_assert_eq!(meaning(&join(&join(&a, &b), &c)), meaning(&join(&a, &join(&b, &c))));
        prop_assert_eq!(meaning(&join(&a, &a)), meaning(&a));
    }

    #[test]
    fn the_current_claim_never_goes_back(draws in draws()) {
        let manifest = shared(manifest(1, 1));
        let run = run(&manifest);
        let mut register = Register::new(run, manifest.clone());
        let mut before: [Option<(u64, ClaimId, u64)>; 2] = [None; 2];
        for record in make(run, &draws) {
            merge(&mut register, &[record]);
            let now = PARTS.map(|part| {
                register.current(part).map(|claim| (claim.term, claim.id(run, claim.author()), claim.seq))
            });
            prop_assert!(now[0] >= before[0] && now[1] >= before[1]);
            before = now;
        }
    }
}

#[test]
fn a_register_larger_than_an_answer_arrives_in_several() {
    // Claims with 59 votes each, so that a few hundred fill an answer.
    let manifest = shared(manifest(3, 60));
    let run = run(&manifest);
    let mut full = Register::new(run, manifest.clone());
    for part in manifest.parts() {
        let mut previous = None;
        for term in 1..=60 {
            let over = previous.map(|it: Previous| it.claim);
            let vote = Vote { part, claim: over, heir: Some(key(100).id()) };
            let evidence = (1..=59).map(|voter| Verified::sign(&key(voter), run, vote).signed().clone()).collect();
            let claim = Verified::sign(&key(100), run, Claim { part, term, previous, evidence, boot: 0, seq: 0 });
            previous = Some(Previous { claim: claim.id(run, claim.author()), owner: claim.author() });
            assert_eq!(full.merge_claim(claim), Merged::New);
        }
    }
    let mut empty = Register::new(run, manifest.clone());
    let mut exchanges = 0;
    while empty.digest() != full.digest() {
        pull(&mut empty, &full, run);
        exchanges += 1;
        assert!(exchanges < 10, "no progress");
    }
    assert!(exchanges > 1, "the test is about more than one answer");
}

#[test]
fn one_claim_signed_twice_with_one_seq_is_settled_alike_everywhere() {
    let manifest = shared(manifest(1, 1));
    let run = run(&manifest);
    let twin = |boot| {
        let claim = Claim { part: Part::Router, term: 1, previous: None, evidence: Vec::new(), boot, seq: 5 };
        Verified::sign(&key(1), run, claim)
    };
    let mut one = Register::new(run, manifest.clone());
    let mut other = Register::new(run, manifest.clone());
    one.merge_claim(twin(1));
    other.merge_claim(twin(2));
    assert_ne!(one.digest(), other.digest(), "or they would never exchange the difference");
    one.merge_claim(twin(2));
    other.merge_claim(twin(1));
    assert_eq!(meaning(&one), meaning(&other));
}

#[test]
fn two_peers_that_each_know_one_half_of_a_fork_bar_its_key_after_an_exchange() {
    let manifest = shared(manifest(1, 1));
    let run = run(&manifest);
    let claim = |author: u8, previous: Option<&Verified<Claim>>| {
        let previous = previous.map(|it| Previous { claim: it.id(run, it.author()), owner: it.author() });
        let term = if previous.is_some() { 2 } else { 1 };
        let claim = Claim { part: Part::Router, term, previous, evidence: Vec::new(), boot: 0, seq: 0 };
        Made::Claim(Verified::sign(&key(author), run, claim))
    };
    let of = |made: &Made| match made {
        Made::Claim(claim) => claim.clone(),
        Made::Checkpoint(_) => panic!("a claim"),
    };
    let [first, second] = [claim(1, None), claim(2, None)];
    let half = |before: &Made| [first.clone(), second.clone(), claim(3, Some(&of(before)))];
    let [mut one, mut other] = [half(&first), half(&second)].map(|half| merged(&manifest, [&half[..]]));
    assert!(!one.is_barred(key(3).id()) && !other.is_barred(key(3).id()));
    let (before, after) = (one.clone(), other.clone());
    pull(&mut one, &after, run);
    pull(&mut other, &before, run);
    assert!(one.is_barred(key(3).id()) && other.is_barred(key(3).id()));
    assert_eq!(meaning(&one), meaning(&other));
}

/// Records signed once for all cases: chains and forks of both parts without evidence (the quorum is 1), heartbeats, and checkpoints.
fn pool() -> &'static (Arc<Manifest>, Vec<Made>) {
    static POOL: OnceLock<(Arc<Manifest>, Vec<Made>)> = OnceLock::new();
    POOL.get_or_init(|| {
        let manifest = shared(manifest(1, 1));
        let draw = |at: usize| match at % 4 {
            3 => Draw::Checkpoint { after: at / 3, step: (at % 7) as u64 },
            _ => {
                let (author, seq) = ((at % 5 % 3) as u8, (at % 3) as u64);
                Draw::Claim { part: at / 2 % 2, author, after: at / 2, votes: 0, seq, boot: (at % 2) as u64 }
            }
        };
        let made = make(run(&manifest), &(0..48).map(draw).collect::<Vec<_>>());
        (manifest, made)
    })
}

/// What a register makes of records in this order, each tried again as long as any finds its predecessor.
fn settled(order: &[usize]) -> Register {
    let (manifest, pool) = pool();
    let mut register = Register::new(run(manifest), manifest.clone());
    let mut waiting: Vec<_> = order.iter().map(|at| &pool[at % pool.len()]).collect();
    loop {
        let before = waiting.len();
        waiting.retain(|record| {
            let merged = match (*record).clone() {
                Made::Claim(claim) => register.merge_claim(claim),
                Made::Checkpoint(checkpoint) => register.merge_checkpoint(checkpoint),
            };
            merged == Merged::Unlinked
        });
        if waiting.len() == before {
            return register;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// Commutative, associative and idempotent at once: three sets of records joined in any order and grouping, some of them twice.
    #[test]
    fn a_hundred_thousand_joins_mean_the_same_in_every_order(
        a in vec(0..48usize, 0..8), b in vec(0..48usize, 0..8), c in vec(0..48usize, 0..8),
    ) {
        let one = settled(&[&a[..], &b, &c].concat());
        let other = settled(&[&c[..], &a, &b, &a, &c].concat());
        prop_assert_eq!(one.digest(), other.digest());
        for part in PARTS {
            prop_assert_eq!(one.current_id(part), other.current_id(part));
        }
        prop_assert_eq!(key_bars(&one), key_bars(&other));
        // Monotone: more records never make a part's current claim less.
        let less = settled(&a);
        for part in PARTS {
            let fence = |register: &Register| register.current(part).map(|it| it.term).zip(register.current_id(part));
            prop_assert!(fence(&less) <= fence(&one));
        }
    }
}

fn key_bars(register: &Register) -> Vec<bool> {
    (0..KEYS).map(|author| register.is_barred(key(author).id())).collect()
}
