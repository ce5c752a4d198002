//! Tickets: one string with which a stranger joins a run.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{CodecError, Wire},
    identity::NodeId,
    manifest::RunId,
};

/// What every ticket begins with.
const PREFIX: &str = "paris1";
/// The most seeds a ticket may name.
pub const SEEDS_MAX: usize = 16;

/// A run and some peers to begin with. The manifest itself is fetched from them and checked against the run's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The run.
    pub run: RunId,
    /// Peers to dial first. Any will do; none is special.
    pub seeds: Vec<Seed>,
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
        Ticket {
            run: RunId(Hash::of(b"run")),
            seeds: vec![Seed {
                node: NodeId([3; 32]),
                gossip: vec!["/ip4/192.0.2.7/udp/4001/quic-v1".into()],
                blobs: vec!["192.0.2.7:4002".parse().unwrap()],
            }],
        }
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
