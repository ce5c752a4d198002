//! Gossip hop by hop: a message goes from neighbour to neighbour, each passing on what its agent accepts, once.
//!
//! Gossipsub in short. Every node sends a new message to all its neighbours at once. What a link loses, the neighbour learns of from the
//! sender's next offer (IHAVE), asks for (IWANT) and gets, unless one of the three is lost again; after three offers the sender forgets
//! it. Copies of what a node already has, or gets sooner by another way, count as sent and cost no event.

use std::{sync::Arc, time::Duration};

use paris_protocol::{agent::Verdict, lease::Time};

use super::{
    gossip::Message,
    queue::{Event, Place},
    world::World,
};

/// Between two offers of what a node heard lately, milliseconds.
const OFFER_MS: u64 = 1000;
/// Offers of one message to one neighbour.
const OFFERS_MAX: usize = 3;
/// One in so many deliveries is timed.
const TIMED_EVERY: u64 = 64;

/// A message on its way.
pub(super) struct Flight {
    message: Arc<Message>,
    began: Time,
    /// When it comes, or came, to each node: microseconds, or `u64::MAX`.
    arrivals: Vec<u64>,
    /// Copies on their way.
    copies: u32,
}

/// Messages on their way, each in a slot of its own.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    vacant: Vec<usize>,
    /// Copies sent over links.
    pub(super) copies: u64,
    /// Deliveries to a node, the first of each message.
    pub(super) deliveries: u64,
    /// How long some of them took.
    pub(super) spans: Vec<Duration>,
}

impl Flights {
    fn add(&mut self, flight: Flight) -> usize {
        match self.vacant.pop() {
            Some(slot) => {
                self.slots[slot] = Some(flight);
                slot
            }
            None => {
                self.slots.push(Some(flight));
                self.slots.len() - 1
            }
        }
    }

    fn end(&mut self, slot: usize) {
        if self.slots[slot].take().is_some() {
            self.vacant.push(slot);
        }
    }
}

impl World {
    /// The author sends a message to its neighbours.
    pub(super) fn set_out(&mut self, message: &Arc<Message>) -> anyhow::Result<()> {
        let mut arrivals = vec![u64::MAX; self.nodes.len()];
        arrivals[message.from as usize] = 0;
        let flight = self.flights.add(Flight { message: message.clone(), began: self.now, arrivals, copies: 0 });
        self.pass_on(message.from, flight);
        self.end_if_done(flight);
        Ok(())
    }

    /// A copy comes to a node: if it is the first, and the node is up, the node hears it and, if it accepts it, passes it on. Liars pass nothing on.
    pub(super) fn hop(&mut self, from: Place, to: Place, slot: usize) -> anyhow::Result<()> {
        let now = micros(self.now);
        let Some(flight) = &mut self.flights.slots[slot] else { return Ok(()) };
        flight.copies -= 1;
        let (message, began) = (flight.message.clone(), flight.began);
        // Another copy was sooner, or the network was cut while this one was under way.
        let first = flight.arrivals[to as usize] == now;
        if first && self.reaches(from, to) {
            self.flights.deliveries += 1;
            if self.flights.deliveries.is_multiple_of(TIMED_EVERY) {
                self.flights.spans.push(self.now - began);
            }
            if self.hear(to, &message)? == Some(Verdict::Accept) {
                self.pass_on(to, slot);
            }
        }
        self.end_if_done(slot);
        Ok(())
    }

    fn pass_on(&mut self, from: Place, slot: usize) {
        for at in 0..self.nodes[from as usize].neighbours.len() {
            let to = self.nodes[from as usize].neighbours[at];
            if !self.reaches(from, to) {
                continue;
            }
            self.flights.copies += 1;
            let Some(delay) = self.link_delay() else { continue };
            let arrival = micros(self.now + delay);
            let Some(flight) = &mut self.flights.slots[slot] else { return };
            if arrival < flight.arrivals[to as usize] {
                flight.arrivals[to as usize] = arrival;
                flight.copies += 1;
                self.queue.plan(Duration::from_micros(arrival), Event::Hop { from, to, flight: slot });
            }
        }
    }

    /// How long a message takes over a link, repairs included. None if it is lost for good.
    fn link_delay(&mut self) -> Option<Duration> {
        let loss = self.scenario.loss;
        if !self.random.happens(loss) {
            return Some(self.delay());
        }
        let mut waited = Duration::ZERO;
        for _ in 0..OFFERS_MAX {
            waited += Duration::from_millis(self.random.between([OFFER_MS / 2, OFFER_MS * 3 / 2]));
            let lost = (0..3).any(|_| self.random.happens(loss));
            if !lost {
                return Some(waited + self.delay() + self.delay() + self.delay());
            }
        }
        None
    }

    fn end_if_done(&mut self, slot: usize) {
        if self.flights.slots[slot].as_ref().is_some_and(|flight| flight.copies == 0) {
            self.flights.end(slot);
        }
    }
}

fn micros(at: Time) -> u64 {
    at.as_micros() as u64
}
