//! The histories of a small network, searched breadth first up to a bound: three nodes, one part, three terms, with loss, reorder, partition and crashes.
//!
//! A node's register is a set of records, and what it means is asked of the real [`Register`]. A message not yet delivered is one that a peer has and this
//! node lacks, so that loss, delay, reorder and partition are all the order in which `Hear` happens, if it does.

#[path = "../common/mod.rs"]
mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use common::{key, manifest, shared};
use paris_protocol::{
    claim::{Claim, ClaimId, Previous},
    manifest::Manifest,
    part::Part,
    register::{Merged, Register},
    signed::Verified,
};
use stateright::{Checker, Model, Property};

const PART: Part = Part::Router;
const NODES: usize = 3;
const TERMS: u64 = 3;
/// Where the search ends.
const STATES: usize = 300_000;

/// How a node reads its records.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// As the register does.
    Greatest,
    /// The record that came last, as with last-writer-wins by the reader's clock.
    LastHeard,
}

/// Every claim that can be made in so many terms, predecessors first; a set of them is a mask.
struct Claims {
    manifest: Arc<Manifest>,
    all: Vec<Verified<Claim>>,
    owner: Vec<usize>,
    ids: Vec<ClaimId>,
    /// By set: what the register names current.
    current: Mutex<BTreeMap<u64, Option<usize>>>,
}

impl Claims {
    fn new() -> Self {
        let manifest = shared(manifest(1, 1));
        let run = manifest.id().unwrap();
        let (mut all, mut owner, mut ids): (Vec<Verified<Claim>>, Vec<usize>, Vec<ClaimId>) = Default::default();
        for term in 1..=TERMS {
            let before: Vec<Option<usize>> = match term {
                1 => vec![None],
                _ => (0..all.len()).filter(|at| all[*at].term + 1 == term).map(Some).collect(),
            };
            for before in before {
                for node in 0..NODES {
                    let previous = before.map(|at| Previous { claim: ids[at], owner: all[at].author() });
                    let claim = Claim { part: PART, term, previous, evidence: Vec::new(), boot: 0, seq: 1 };
                    let claim = Verified::sign(&key(node as u8 + 1), run, claim);
                    ids.push(claim.id(run, claim.author()));
                    owner.push(node);
                    all.push(claim);
                }
            }
        }
        Self { manifest, all, owner, ids, current: Mutex::default() }
    }

    /// What the real register makes of a set of claims.
    fn current(&self, set: u64) -> Option<usize> {
        let mut known = self.current.lock().unwrap();
        *known.entry(set).or_insert_with(|| {
            let mut register = Register::new(self.manifest.id().unwrap(), self.manifest.clone());
            // Predecessors have lower numbers.
            for at in (0..self.all.len()).filter(|at| set & 1 << at != 0) {
                assert!(!matches!(register.merge_claim(self.all[at].clone()), Merged::Invalid(_)));
            }
            register.current_id(PART).map(|id| self.ids.iter().position(|it| *it == id).unwrap())
        })
    }

    fn fence(&self, at: usize) -> (u64, ClaimId) {
        (self.all[at].term, self.ids[at])
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    /// Claims it has, on disk before they are told.
    knows: u64,
    /// For [`Rule::LastHeard`].
    last: Option<usize>,
    /// The fence that it names once went back.
    went_back: bool,
    trains: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State([Node; NODES]);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// The node thinks, rightly or not, that the current claim is over.
    Claim(usize),
    /// A node hears a claim that another has.
    Hear { node: usize, from: usize, claim: usize },
    /// It loses all but its disk.
    Crash(usize),
}

struct Network {
    claims: Claims,
    rule: Rule,
}

impl Network {
    fn current(&self, node: &Node) -> Option<usize> {
        match self.rule {
            Rule::Greatest => self.claims.current(node.knows),
            Rule::LastHeard => node.last,
        }
    }

    /// The claim that the node would make next.
    fn next(&self, state: &State, node: usize) -> Option<usize> {
        let current = self.current(&state.0[node]);
        let term = current.map_or(1, |at| self.claims.all[at].term + 1);
        let follows = |at: &usize| {
            let claim = &self.claims.all[*at];
            claim.term == term && claim.previous.map(|it| it.claim) == current.map(|at| self.claims.ids[at])
        };
        (0..self.claims.all.len()).find(|at| self.claims.owner[*at] == node && follows(at))
    }
}

impl Model for Network {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let node = Node { knows: 0, last: None, went_back: false, trains: false };
        vec![State([node.clone(), node.clone(), node])]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        for node in 0..NODES {
            let me = &state.0[node];
            // An owner in training has no doubt of itself.
            if !me.trains && self.next(state, node).is_some_and(|claim| me.knows & 1 << claim == 0) {
                actions.push(Step::Claim(node));
            }
            if me.trains {
                actions.push(Step::Crash(node));
            }
            for from in (0..NODES).filter(|from| *from != node) {
                let news = state.0[from].knows & !me.knows;
                let linked = |at: &usize| match self.claims.all[*at].previous {
                    None => true,
                    Some(before) => {
                        self.claims.ids.iter().zip(0..).any(|(id, at)| *id == before.claim && me.knows & 1 << at != 0)
                    }
                };
                let heard = (0..self.claims.all.len()).filter(|at| news & 1 << at != 0).filter(linked);
                actions.extend(heard.map(|claim| Step::Hear { node, from, claim }));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut state = state.clone();
        let (node, claim) = match step {
            Step::Crash(node) => {
                state.0[node].trains = false;
                return Some(state);
            }
            Step::Claim(node) => (node, self.next(&state, node)?),
            Step::Hear { node, claim, .. } => (node, claim),
        };
        let before = self.current(&state.0[node]);
        let me = &mut state.0[node];
        me.knows |= 1 << claim;
        me.last = Some(claim);
        let after = self.current(me);
        me.went_back |= before.map(|at| self.claims.fence(at)) > after.map(|at| self.claims.fence(at));
        me.trains =
            after.is_some_and(|at| self.claims.owner[at] == node) && (me.trains || self.claims.owner[claim] == node);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn same_records(state: &State) -> bool {
            state.0.iter().all(|node| node.knows == state.0[0].knows)
        }
        vec![
            Property::always("equal records name equal owners", |network: &Network, state: &State| {
                let pairs = (0..NODES).flat_map(|a| (0..a).map(move |b| (&state.0[a], &state.0[b])));
                pairs.into_iter().all(|(a, b)| a.knows != b.knows || network.current(a) == network.current(b))
            }),
            Property::always("the fence never goes back", |_, state: &State| {
                !state.0.iter().any(|node| node.went_back)
            }),
            Property::always("no key claims twice in one term", |network: &Network, state: &State| {
                let made = state.0.iter().fold(0, |all, node| all | node.knows);
                let mut seen = std::collections::BTreeSet::new();
                let claims = (0..network.claims.all.len()).filter(|at| made & 1 << at != 0);
                claims.into_iter().all(|at| seen.insert((network.claims.owner[at], network.claims.all[at].term)))
            }),
            Property::always("when all know the same, no more than one trains", |_, state: &State| {
                !same_records(state) || state.0.iter().filter(|node| node.trains).count() <= 1
            }),
            Property::sometimes("a part is taken over", |network: &Network, state: &State| {
                same_records(state)
                    && network.current(&state.0[0]).is_some_and(|at| network.claims.all[at].term == TERMS)
            }),
            Property::sometimes("two own one part", |_, state: &State| {
                state.0.iter().filter(|it| it.trains).count() > 1
            }),
            Property::sometimes("a tie is broken by name", |network: &Network, state: &State| {
                let first = (0..NODES).filter(|at| state.0[0].knows & 1 << at != 0).count();
                same_records(state) && first > 1 && network.current(&state.0[0]).is_some()
            }),
        ]
    }
}

#[test]
fn the_histories_of_three_nodes_keep_the_laws() {
    let network = Network { claims: Claims::new(), rule: Rule::Greatest };
    let checker = network.checker().target_state_count(STATES).spawn_bfs().join();
    println!("{} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn a_rule_that_believes_what_came_last_is_caught() {
    let network = Network { claims: Claims::new(), rule: Rule::LastHeard };
    let checker = network.checker().target_state_count(STATES).spawn_bfs().join();
    assert!(checker.discovery("equal records name equal owners").is_some());
    assert!(checker.discovery("the fence never goes back").is_some());
}
