//! Liars: nodes that say what helps them, each for itself, and know all that an honest node knows.

use std::collections::BTreeMap;

use clap::ValueEnum;
use paris_protocol::{
    claim::{Claim, Previous, Vote},
    codec::Wire,
    identity::{Keypair, NodeId},
    message::{Gossip, Presence},
    part::Part,
    signed::Verified,
};
use serde::{Deserialize, Serialize};

use super::{queue::Place, world::World};

/// Votes for one liar that it keeps.
const SECONDED_MAX: usize = 64;
/// Parts for which a squatter wishes at once.
const WISHES_MAX: usize = 16;
/// Old messages that a liar replays at once.
const REPLAYED: u64 = 4;

/// What a liar may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Claims the next term with its own word alone.
    Steal,
    /// Claims a part in term 1, as if nobody had.
    Found,
    /// Claims a part in the last term there can be.
    Jump,
    /// Says that a live owner is gone, and that it may follow.
    Accuse,
    /// Claims what it is seconded for, and trains nothing.
    Squat,
    /// Signs two heartbeats with one number for what it owns.
    Fork,
    /// Sends what others said long ago once more.
    Replay,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Steal, Self::Found, Self::Jump, Self::Accuse, Self::Squat, Self::Fork, Self::Replay];
}

/// A part that a liar came to own by the votes of others.
pub(super) struct Squat(Claim);

impl World {
    /// A liar says it has room, keeps what it owns alive, and lies.
    pub(super) fn lie(&mut self, place: Place) -> anyhow::Result<()> {
        let secret = Keypair::from_secret(&self.nodes[place as usize].secret);
        let lies = self.scenario.lies.clone();
        let lie = lies[self.random.below(lies.len() as u64) as usize];
        let parts: Vec<Part> = self.parts().collect();
        let part = parts[self.random.below(parts.len() as u64) as usize];
        // Sybils are many keys of one liar: they speak for the first of them.
        let heir = if self.scenario.liars_collude { self.nodes.iter().find(|it| it.liar) } else { None };
        let heir = heir.map_or(secret.id(), |first| first.id);
        let (previous, term) = self.next_claim(part);
        let vote = self.vote_for(&secret, part, heir);
        if let Some(place) = self.places.get(&heir).copied().filter(|it| *it != place) {
            self.hear_as_liar(place, vote.clone());
        }
        let claim = |term, previous, evidence| Claim { part, term, previous, evidence, boot: 1, seq: 1 };
        let word = vec![vote.signed().clone()];
        let mut claims = match lie {
            Lie::Steal => vec![claim(term, previous, word)],
            Lie::Found => vec![claim(1, None, Vec::new())],
            Lie::Jump => vec![claim(u64::MAX, previous, word)],
            Lie::Accuse | Lie::Squat | Lie::Fork | Lie::Replay => Vec::new(),
        };
        if lies.contains(&Lie::Squat) || lies.contains(&Lie::Fork) || self.scenario.liars_collude {
            self.squat(place, &secret);
        }
        for Squat(claim) in self.squats.entry(place).or_default() {
            claim.seq += 1;
            claims.push(claim.clone());
            if lie == Lie::Fork {
                claims.push(Claim { boot: 2, ..claim.clone() });
            }
        }
        self.say(place, &secret, Vec::new())?;
        for claim in claims {
            self.say(place, &secret, vec![claim])?;
        }
        let mut votes = vec![vote];
        if lie == Lie::Squat {
            // Whatever becomes free, it has wished for it.
            let first = self.random.below(parts.len() as u64) as usize;
            let some = parts.iter().cycle().skip(first).take(parts.len().min(WISHES_MAX));
            votes = some.map(|part| self.vote_for(&secret, *part, heir)).collect();
        }
        for vote in votes {
            if let Ok(bytes) = Gossip::Vote(vote.signed().clone()).to_bytes() {
                self.publish(place, &bytes)?;
            }
        }
        if lie == Lie::Replay && !self.captured.is_empty() {
            for _ in 0..REPLAYED {
                let old = self.random.below(self.captured.len() as u64) as usize;
                let message = self.captured[old].clone();
                self.spread(&message)?;
            }
        }
        Ok(())
    }

    /// "The part's owner is gone, and that one may follow."
    fn vote_for(&self, secret: &Keypair, part: Part, heir: NodeId) -> Verified<Vote> {
        let claim = self.next_claim(part).0.map(|it| it.claim);
        Verified::sign(secret, self.run, Vote { part, claim, heir: Some(heir) })
    }

    /// What a claim on the part would follow, and its term.
    fn next_claim(&self, part: Part) -> (Option<Previous>, u64) {
        let registers = self.registers();
        let current = registers.first().and_then(|register| register.current(part));
        let previous = current.map(|it| Previous { claim: it.id(self.run, it.author()), owner: it.author() });
        (previous, current.map_or(1, |it| it.term.saturating_add(1)))
    }

    /// A vote that names a liar.
    pub(super) fn hear_as_liar(&mut self, liar: Place, vote: Verified<Vote>) {
        let votes = self.seconded.entry(liar).or_default();
        if votes.len() >= SECONDED_MAX {
            votes.remove(0);
        }
        votes.push(vote);
    }

    /// Claims the parts for which enough others named it.
    fn squat(&mut self, place: Place, secret: &Keypair) {
        let id = secret.id();
        let votes = self.seconded.entry(place).or_default().clone();
        let held: Vec<Part> = self.squats.entry(place).or_default().iter().map(|it| it.0.part).collect();
        let others = usize::from(self.scenario.times.quorum).saturating_sub(1);
        for part in self.parts().filter(|part| !held.contains(part)) {
            let (previous, term) = self.next_claim(part);
            if previous.is_some_and(|it| it.owner == id) {
                continue;
            }
            let over = previous.map(|it| it.claim);
            let fits = |vote: &&Verified<Vote>| {
                vote.part == part && vote.claim == over && vote.heir == Some(id) && vote.author() != id
            };
            let released = votes.iter().filter(fits).find(|vote| previous.is_some_and(|it| it.owner == vote.author()));
            let evidence: Vec<_> = match released {
                Some(release) => vec![release.signed().clone()],
                None => {
                    let mut distinct = BTreeMap::new();
                    for vote in votes.iter().filter(fits) {
                        distinct.insert(vote.author(), vote.signed().clone());
                    }
                    distinct.into_values().take(others).collect()
                }
            };
            if released.is_some() || (evidence.len() == others && others > 0) {
                let claim = Claim { part, term, previous, evidence, boot: 1, seq: 0 };
                // Where its key is not admitted its own word for it is all it has.
                let admitted = self.registers().first().is_some_and(|register| register.admits(id));
                self.squats.entry(place).or_default().push(Squat(claim));
                self.squatted += u64::from(admitted);
            }
        }
        // What was taken from it since is over.
        let run = self.run;
        let lost: Vec<Part> = self.squats[&place]
            .iter()
            .filter(|it| it.0.seq > 0 && self.next_claim(it.0.part).0.map(|it| it.claim) != Some(it.0.id(run, id)))
            .map(|it| it.0.part)
            .collect();
        self.squats.entry(place).or_default().retain(|it| !lost.contains(&it.0.part));
    }

    /// Publishes a heartbeat with these claims, pretending to have room for more.
    fn say(&mut self, place: Place, secret: &Keypair, claims: Vec<Claim>) -> anyhow::Result<()> {
        let sign = |claim: Claim| Verified::sign(secret, self.run, claim).signed().clone();
        let presence = Presence { capacity: 8, ..Presence::default() };
        let beat = Gossip::Beat { presence, claims: claims.into_iter().map(sign).collect() };
        match beat.to_bytes() {
            Ok(bytes) => self.publish(place, &bytes),
            Err(_) => Ok(()),
        }
    }
}
