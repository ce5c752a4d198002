//! The histories of a small network, searched breadth first: claims, messages in any order or never, crashes and restarts, a cut and its healing.
//!
//! A node's register is a set of records, and what it means is asked of the real [`Register`], which is given every set twice over and backwards as
//! well: duplicates and reorder change nothing. A message not yet delivered is one that a peer has and this node lacks, so that loss and delay are the
//! order in which `Hear` happens, if it does. Small networks are searched to the end; of the network of three nodes, two parts and three terms, the
//! histories up to a number of states.

mod claims;
#[path = "../common/mod.rs"]
mod common;

use claims::Claims;
use stateright::{Checker, Model, Property};

/// States of the largest network that are looked at.
const STATES: usize = 2_000_000;

/// How large a network is searched, and how much may befall it.
#[derive(Clone, Copy)]
struct Size {
    nodes: usize,
    parts: usize,
    terms: u64,
    crashes: u8,
    cuts: u8,
}

/// How a node reads and keeps its records.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// As the register does, and on disk before they are told.
    Greatest,
    /// The record that came last, as with last-writer-wins by the reader's clock.
    LastHeard,
    /// As the register does, but in memory alone: a crash loses what the node itself claimed.
    Volatile,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    /// Claims it has, a set for each part.
    knows: Vec<u64>,
    /// The claim on each part that came last: for [`Rule::LastHeard`].
    last: Vec<Option<usize>>,
    /// Parts that it trains, a set.
    trains: u8,
    up: bool,
    /// The fence that it names once went back.
    went_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    nodes: Vec<Node>,
    /// Claims that were ever told, a set for each part.
    told: Vec<u64>,
    /// The first node hears nobody and is heard by nobody.
    cut: bool,
    crashes_left: u8,
    cuts_left: u8,
    healed: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// The node thinks, rightly or not, that the part's current claim is over.
    Claim {
        node: usize,
        part: usize,
    },
    /// A node hears a claim that another has.
    Hear {
        node: usize,
        from: usize,
        part: usize,
        claim: usize,
    },
    /// It loses all but its disk.
    Crash(usize),
    /// It starts from its disk, and goes on with what is its own.
    Restart(usize),
    Cut,
    Heal,
}

struct Network {
    size: Size,
    claims: Claims,
    rule: Rule,
}

impl Network {
    fn new(size: Size, rule: Rule) -> Self {
        Self { size, claims: Claims::new(size.nodes, size.parts, size.terms), rule }
    }

    fn current(&self, node: &Node, part: usize) -> Option<usize> {
        match self.rule {
            Rule::Greatest | Rule::Volatile => self.claims.current(part, node.knows[part]),
            Rule::LastHeard => node.last[part],
        }
    }

    /// The claim that the node would make next.
    fn next(&self, state: &State, node: usize, part: usize) -> Option<usize> {
        self.claims.following(part, self.current(&state.nodes[node], part), node)
    }

    fn learn(&self, me: &mut Node, number: usize, part: usize, claim: usize) {
        let before = self.current(me, part);
        me.knows[part] |= 1 << claim;
        me.last[part] = Some(claim);
        let after = self.current(me, part);
        let fence = |at: Option<usize>| at.map(|at| self.claims.fence(part, at));
        me.went_back |= fence(before) > fence(after);
        let mine = after.is_some_and(|at| self.claims.owner(part, at) == number);
        let trains = me.trains & 1 << part != 0 || self.claims.owner(part, claim) == number;
        me.trains = me.trains & !(1 << part) | u8::from(mine && trains) << part;
    }

    /// True if every node runs and knows all that any knows.
    fn at_rest(&self, state: &State) -> bool {
        !state.cut && state.nodes.iter().all(|node| node.up && node.knows == state.told)
    }

    fn trainers(&self, state: &State, part: usize) -> usize {
        state.nodes.iter().filter(|node| node.trains & 1 << part != 0).count()
    }
}

impl Model for Network {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let Size { nodes, parts, crashes, cuts, .. } = self.size;
        let node = Node { knows: vec![0; parts], last: vec![None; parts], trains: 0, up: true, went_back: false };
        let told = vec![0; parts];
        vec![State {
            nodes: vec![node; nodes],
            told,
            cut: false,
            crashes_left: crashes,
            cuts_left: cuts,
            healed: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        match state.cut {
            true => actions.push(Step::Heal),
            false if state.cuts_left > 0 => actions.push(Step::Cut),
            false => {}
        }
        for (node, me) in state.nodes.iter().enumerate() {
            if !me.up {
                actions.push(Step::Restart(node));
                continue;
            }
            if me.trains != 0 && state.crashes_left > 0 {
                actions.push(Step::Crash(node));
            }
            for part in 0..self.size.parts {
                // An owner in training has no doubt of itself.
                let trains = me.trains & 1 << part != 0;
                if !trains && self.next(state, node, part).is_some_and(|claim| me.knows[part] & 1 << claim == 0) {
                    actions.push(Step::Claim { node, part });
                }
                for (from, other) in state.nodes.iter().enumerate() {
                    let apart = state.cut && (node == 0) != (from == 0);
                    let news = other.knows[part] & !me.knows[part];
                    if from == node || apart || news == 0 {
                        continue;
                    }
                    let linked = self.claims.linked(part, news, me.knows[part]);
                    actions.extend(linked.map(|claim| Step::Hear { node, from, part, claim }));
                }
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Cut => (next.cut, next.cuts_left) = (true, state.cuts_left - 1),
            Step::Heal => (next.cut, next.healed) = (false, true),
            Step::Crash(node) => {
                next.crashes_left -= 1;
                let me = &mut next.nodes[node];
                (me.up, me.trains) = (false, 0);
                if self.rule == Rule::Volatile {
                    me.knows.fill(0);
                }
            }
            Step::Restart(node) => {
                let of_its_own = |part: &usize| {
                    let current = self.current(&state.nodes[node], *part);
                    current.is_some_and(|at| self.claims.owner(*part, at) == node)
                };
                let me = &mut next.nodes[node];
                me.up = true;
                me.trains = (0..self.size.parts).filter(of_its_own).fold(0, |set, part| set | 1 << part);
            }
            Step::Claim { node, part } => {
                let claim = self.next(state, node, part)?;
                next.told[part] |= 1 << claim;
                self.learn(&mut next.nodes[node], node, part, claim);
            }
            Step::Hear { node, part, claim, .. } => self.learn(&mut next.nodes[node], node, part, claim),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn parts(network: &Network) -> std::ops::Range<usize> {
            0..network.size.parts
        }
        vec![
            Property::always("equal records name equal owners", |network: &Network, state: &State| {
                let pairs =
                    state.nodes.iter().enumerate().flat_map(|(at, a)| state.nodes[..at].iter().map(move |b| (a, b)));
                let mut of_parts = pairs.flat_map(|pair| parts(network).map(move |part| (pair, part)));
                of_parts.all(|((a, b), part)| {
                    a.knows[part] != b.knows[part] || network.current(a, part) == network.current(b, part)
                })
            }),
            Property::always("the fence never goes back", |_, state: &State| {
                !state.nodes.iter().any(|node| node.went_back)
            }),
            Property::always("no key claims twice in one term", |network: &Network, state: &State| {
                parts(network).all(|part| network.claims.are_single(part, state.told[part]))
            }),
            Property::always(
                "when all know the same, no more than one trains a part",
                |network: &Network, state: &State| {
                    !network.at_rest(state) || parts(network).all(|part| network.trainers(state, part) <= 1)
                },
            ),
            Property::eventually(
                "all parts are trained once, and all know by whom",
                |network: &Network, state: &State| {
                    network.at_rest(state) && parts(network).all(|part| network.trainers(state, part) == 1)
                },
            ),
            Property::sometimes("a part is taken over", |network: &Network, state: &State| {
                let taken = |part| {
                    let current = network.current(&state.nodes[0], part);
                    current.is_some_and(|at| network.claims.fence(part, at).0 == 2)
                };
                network.at_rest(state) && parts(network).any(taken)
            }),
            Property::sometimes("two own one part", |network: &Network, state: &State| {
                parts(network).any(|part| network.trainers(state, part) > 1)
            }),
            Property::sometimes("a tie is broken by name", |network: &Network, state: &State| {
                parts(network).any(|part| network.at_rest(state) && network.claims.has_tie(part, state.told[part]))
            }),
            Property::sometimes("a cut is healed after both sides claimed", |network: &Network, state: &State| {
                let sides = |part: usize| {
                    let [a, b] = [&state.nodes[0], &state.nodes[1]].map(|node| node.trains & 1 << part != 0);
                    a && b
                };
                state.healed && parts(network).any(sides)
            }),
        ]
    }
}

/// Searches, and says how much was seen.
fn search(size: Size, rule: Rule, states: usize) -> impl Checker<Network> {
    let Size { nodes, parts, terms, crashes, cuts } = size;
    let checker = Network::new(size, rule).checker().target_state_count(states).spawn_bfs().join();
    let (all, distinct) = (checker.state_count(), checker.unique_state_count());
    println!(
        "{nodes} nodes, {parts} parts, {terms} terms, {crashes} crashes, {cuts} cuts: {all} states, {distinct} distinct, depth {}, {}",
        checker.max_depth(),
        if checker.is_done() && all < states { "searched to the end" } else { "cut off there" },
    );
    checker
}

#[test]
fn every_history_of_two_nodes_and_two_parts_ends_well() {
    let size = Size { nodes: 2, parts: 2, terms: 3, crashes: 1, cuts: 1 };
    let checker = search(size, Rule::Greatest, usize::MAX);
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn every_history_of_three_nodes_and_one_part_ends_well() {
    let size = Size { nodes: 3, parts: 1, terms: 2, crashes: 1, cuts: 1 };
    let checker = search(size, Rule::Greatest, usize::MAX);
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn three_nodes_two_parts_and_three_terms_keep_the_laws() {
    let size = Size { nodes: 3, parts: 2, terms: 3, crashes: 2, cuts: 1 };
    search(size, Rule::Greatest, STATES).assert_properties();
}

#[test]
fn a_rule_that_believes_what_came_last_is_caught() {
    let size = Size { nodes: 3, parts: 1, terms: 3, crashes: 0, cuts: 0 };
    let checker = search(size, Rule::LastHeard, STATES / 10);
    assert!(checker.discovery("equal records name equal owners").is_some());
    assert!(checker.discovery("the fence never goes back").is_some());
}

#[test]
fn claims_that_are_not_on_disk_before_they_are_told_are_caught() {
    let size = Size { nodes: 3, parts: 1, terms: 2, crashes: 1, cuts: 0 };
    let checker = search(size, Rule::Volatile, STATES / 10);
    assert!(checker.discovery("no key claims twice in one term").is_some());
}
