//! Tickets: one string with which a stranger joins a run.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{CodecError, Wire, encoded_len},
    identity::NodeId,
    manifest::RunId,
};

/// What every ticket begins with.
const PREFIX: &str = "paris1";
/// The most seeds a ticket may name.
pub const SEEDS_MAX: usize = 16;

/// A run and some peers to begin with. The manifest itself is fetched from them and checked against the run's id.
///
/// Made by [`Ticket::new`] or read, so that its wire form is within its bounds and it can always be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    run: RunId,
    seeds: Vec<Seed>,
}

/// A peer to dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// Its key.
    pub node: NodeId,
    /// Its libp2p addresses, as multiaddresses without the peer id.
    pub gossip: Vec<String>,
    /// Its blob addresses.
    pub blobs: Vec<SocketAddr>,
}

impl Wire for Ticket {
    const NAME: &'static str = "ticket";
    const LIMIT: usize = 8 * 1024;
}

impl Ticket {
    /// A ticket for `run`. A seed for which there is no room after those before it is left out.
    pub fn new(run: RunId, seeds: impl IntoIterator<Item = Seed>) -> Self {
        let mut ticket = Self { run, seeds: Vec::new() };
        for seed in seeds {
            ticket.seeds.push(seed);
            if ticket.seeds.len() > SEEDS_MAX || encoded_len(&ticket) > Self::LIMIT {
                ticket.seeds.pop();
            }
        }
        ticket
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Peers to dial first. Any will do; none is special.
    pub fn seeds(&self) -> &[Seed] {
        &self.seeds
    }
}

/// A text that is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Another text, or a later kind of ticket.
    #[error(
        "a ticket begins with {PREFIX:?}; copy the whole line that `paris-node manifest inspect` or `paris-node run` printed"
    )]
    Prefix,
    /// Characters are missing, changed or added.
    #[error("the ticket is damaged (a character is missing, changed or added): copy it again, whole")]
    Damaged,
    /// It reads, but means nothing.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl fmt::Display for Ticket {
    /// `paris1` and lower-case base32 of a four-byte checksum and the wire form: survives chats, mails and shells.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.to_bytes().map_err(|_| fmt::Error)?;
        let mut bytes = blake3::hash(&body).as_bytes()[..4].to_vec();
        bytes.extend_from_slice(&body);
        write!(f, "{PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        if body.len() > 2 * Self::LIMIT {
            return Err(TicketError::Damaged);
        }
        let decoded = data_encoding::BASE32_NOPAD.decode(body.to_uppercase().as_bytes());
        let bytes = decoded.map_err(|_| TicketError::Damaged)?;
        let (checksum, body) = bytes.split_at_checked(4).ok_or(TicketError::Damaged)?;
        if blake3::hash(body).as_bytes()[..4] != *checksum {
            return Err(TicketError::Damaged);
        }
        let ticket = Self::from_bytes(body)?;
        match ticket.seeds.len() <= SEEDS_MAX {
            true => Ok(ticket),
            false => Err(TicketError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    fn ticket() -> Ticket {
        Ticket::new(RunId(Hash::of(b"run")), [seed(3, 1)])
    }

    fn seed(node: u8, addresses: usize) -> Seed {
        Seed {
            node: NodeId([node; 32]),
            gossip: vec!["/ip4/192.0.2.7/udp/4001/quic-v1".into(); addresses],
            blobs: vec!["192.0.2.7:4002".parse().unwrap(); addresses],
        }
    }

    #[test]
    fn a_seed_for_which_there_is_no_room_is_left_out() {
        // The largest seed with which a ticket can be read: a node that joined by it names itself before it.
        let large = (1..1000).rev().map(|addresses| seed(9, addresses));
        let large = large.map(|seed| Ticket::new(ticket().run, [seed])).find(|it| !it.seeds.is_empty()).unwrap();
        let large = large.to_string().parse::<Ticket>().unwrap().seeds[0].clone();
        let written = Ticket::new(ticket().run, [seed(1, 6), large, seed(2, 1)]);
        assert_eq!(written.seeds, [seed(1, 6), seed(2, 1)]);
        assert_eq!(written.to_string().parse::<Ticket>().unwrap(), written);
        let many = Ticket::new(ticket().run, (0..100).map(|node| seed(node, 1)));
        assert_eq!(many.seeds.len(), SEEDS_MAX);
        assert_eq!(many.to_string().parse::<Ticket>().unwrap(), many);
    }

    #[test]
    fn a_ticket_survives_copying_with_spaces_and_capitals() {
        let text = format!("  {}\n", ticket());
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket());
    }

    #[test]
    fn every_single_damaged_character_is_noticed() {
        let text = ticket().to_string();
        for at in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(damaged).unwrap().parse::<Ticket>().is_err(), "character {at}");
            assert!(text[..at].parse::<Ticket>().is_err(), "cut off at {at}");
        }
    }
}
