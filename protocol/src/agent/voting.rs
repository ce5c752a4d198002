//! Votes: releases, suspicions, and wishes to be the heir. One vote names one heir, so a quorum stands behind one node alone.

use super::{Action, Agent, LogEntry, claiming::Loads};
use crate::{
    claim::{VOTES_MAX, Vote},
    identity::NodeId,
    lease::Time,
    message::Gossip,
    part::Part,
    signed::{Signed, Verified},
};

/// Heirs of whom one voter is believed to have named them for one part; the earliest makes room.
const HEIRS_OF_A_VOTER_MAX: usize = 3;

/// A vote, and when it was first heard.
#[derive(Clone, Debug)]
pub(super) struct Filed {
    vote: Verified<Vote>,
    heard: Time,
}

/// This node's own last word on who may follow in a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    heir: NodeId,
    since: Time,
    /// When to say it again: gossip loses messages.
    again: Time,
}

impl Agent {
    /// Signs and spreads this node's word that the part's current claim is over, and who may follow.
    pub(super) fn vote(&mut self, now: Time, part: Part, heir: Option<NodeId>) {
        let vote = Vote { part, claim: self.register.current_id(part), heir };
        let vote = Verified::sign(&self.keypair, self.run, vote);
        self.publish(&Gossip::Vote(vote.signed().clone()));
        self.note_vote(now, vote);
    }

    /// Files a vote on a part's current claim. False if it is on another claim, or from a key that has no say.
    pub(super) fn note_vote(&mut self, now: Time, vote: Verified<Vote>) -> bool {
        let (part, author) = (vote.part, vote.author());
        let has_a_say = self.register.admits(author) && !self.register.is_barred(author);
        if !self.manifest.has(part) || !has_a_say || self.register.current_id(part) != vote.claim {
            return false;
        }
        let released = self.register.current(part).is_some_and(|claim| claim.author() == author);
        let votes = self.votes.get_or_default(part);
        votes.retain(|_, filed| filed.vote.claim == vote.claim);
        let key = (author, vote.heir);
        if !votes.contains_key(&key) {
            let earlier: Vec<_> = votes.iter().filter(|((voter, _), _)| *voter == author).collect();
            let earliest = earlier.iter().min_by_key(|(_, filed)| filed.heard).map(|(key, _)| **key);
            match earliest.filter(|_| earlier.len() >= HEIRS_OF_A_VOTER_MAX) {
                Some(earliest) => drop(votes.remove(&earliest)),
                None if votes.len() >= VOTES_MAX && !released => return false,
                None => {}
            }
        }
        votes.entry(key).or_insert(Filed { vote, heard: now });
        self.quiet_until = Time::ZERO;
        self.stirred = true;
        true
    }

    /// The votes on the part's current claim.
    fn votes_on(&self, part: Part) -> impl Iterator<Item = &Verified<Vote>> {
        let current = self.register.current_id(part);
        let votes = self.votes.get(part).into_iter().flat_map(|votes| votes.values());
        votes.map(|filed| &filed.vote).filter(move |vote| vote.claim == current)
    }

    /// The word of the part's owner that its claim is over.
    pub(super) fn release_of(&self, part: Part) -> Option<&Verified<Vote>> {
        let owner = self.register.current(part)?.author();
        self.votes_on(part).find(|vote| vote.author() == owner)
    }

    /// What makes this node the heir of the part: the release of another owner, or a quorum with itself. None if there is not enough.
    pub(super) fn evidence(&self, part: Part) -> Option<Vec<Signed<Vote>>> {
        let me = self.id();
        let owner = self.register.current(part).map(|claim| claim.author()).filter(|owner| *owner != me);
        let for_me = || self.votes_on(part).filter(|vote| vote.heir == Some(me) && vote.author() != me);
        if let Some(release) = for_me().find(|vote| Some(vote.author()) == owner) {
            return Some(vec![release.signed().clone()]);
        }
        let others = usize::from(self.manifest.ownership.quorum) - 1;
        let votes: Vec<_> = for_me().take(others).map(|vote| vote.signed().clone()).collect();
        (votes.len() == others).then_some(votes)
    }

    /// Where no quorum stands behind this node: seconds the heir that would win among those who wish to be it, or else wishes itself.
    ///
    /// An heir that was named and does not claim is passed over for another after two ttls.
    pub(super) fn speak(&mut self, now: Time, part: Part, loads: &Loads, may_wish: bool) {
        let me = self.id();
        let said = self.words.get(&part).copied().filter(|_| self.votes_on(part).any(|vote| vote.author() == me));
        let tardy = said.filter(|word| word.heir != me && now >= word.since + 2 * self.ttl()).map(|word| word.heir);
        let wishes = self.votes_on(part).map(|vote| vote.author()).filter(|voter| {
            *voter != me && Some(*voter) != tardy && self.has_room(loads, *voter) && self.wishes(part, *voter)
        });
        let own = (may_wish || self.wishes(part, me)).then_some(me);
        let Some(heir) = wishes.chain(own).max_by_key(|heir| self.name_of_next(part, *heir)) else { return };
        match said {
            Some(word) if word.heir == heir && now < word.again => self.wake_at(word.again),
            _ => {
                let since = said.filter(|word| word.heir == heir).map_or(now, |word| word.since);
                let again = now + self.ttl();
                self.words.insert(part, Word { heir, since, again });
                self.vote(now, part, Some(heir));
                self.wake_at(again);
            }
        }
    }

    /// True if `node` asked to be the part's heir.
    pub(super) fn wishes(&self, part: Part, node: NodeId) -> bool {
        self.votes_on(part).any(|vote| vote.author() == node && vote.heir == Some(node))
    }

    /// Makes a reservation durable before it is used.
    pub(super) fn reserve(&mut self, entry: LogEntry) {
        self.log.insert(entry.claim, entry.seq_reserved);
        self.act(Action::Log(entry));
    }
}
