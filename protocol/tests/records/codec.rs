//! Every value survives its wire form, and no bytes from a stranger do harm.

use std::fmt::Debug;

use paris_protocol::{
    checkpoint::Checkpoint,
    claim::{Claim, Vote},
    codec::{CodecError, Wire},
    manifest::{Manifest, ManifestError},
    message::Gossip,
    mixture::Mixture,
    register::{Digest, Records},
    ticket::Ticket,
};
use proptest::{collection::vec, prelude::*};

use crate::{common::manifest, values};

/// Reads what it wrote; cut off or with a byte more it does not read.
fn round_trip<T: Wire + PartialEq + Debug>(value: &T) -> Result<(), TestCaseError> {
    let bytes = value.to_bytes().unwrap();
    prop_assert_eq!(&T::from_bytes(&bytes).unwrap(), value);
    prop_assert!(T::from_bytes(&bytes[..bytes.len() - 1]).is_err(), "cut off");
    prop_assert!(T::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err(), "one byte more");
    Ok(())
}

/// What reads at all has this one wire form.
fn reads_canonically<T: Wire>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = T::from_bytes(bytes) {
        prop_assert_eq!(value.to_bytes().unwrap(), bytes);
    }
    Ok(())
}

fn all_read_without_panic(bytes: &[u8]) -> Result<(), TestCaseError> {
    reads_canonically::<Gossip>(bytes)?;
    reads_canonically::<Records>(bytes)?;
    reads_canonically::<Digest>(bytes)?;
    reads_canonically::<Manifest>(bytes)?;
    reads_canonically::<Ticket>(bytes)?;
    reads_canonically::<Claim>(bytes)?;
    reads_canonically::<Vote>(bytes)?;
    reads_canonically::<Checkpoint>(bytes)?;
    reads_canonically::<Mixture>(bytes)?;
    let _ = Manifest::read(bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn claims_survive(value in values::claim()) { round_trip(&value)?; }

    #[test]
    fn votes_survive(value in values::vote()) { round_trip(&value)?; }

    #[test]
    fn checkpoints_survive(value in values::checkpoint()) { round_trip(&value)?; }

    #[test]
    fn gossip_survives(value in values::gossip()) { round_trip(&value)?; }

    #[test]
    fn register_exchanges_survive(value in values::records()) { round_trip(&value)?; }

    #[test]
    fn mixtures_survive(value in values::mixture()) { round_trip(&value)?; }

    #[test]
    fn digests_survive(value in values::digest()) { round_trip(&value)?; }

    #[test]
    fn tickets_survive_as_bytes_and_as_text(value in values::ticket()) {
        round_trip(&value)?;
        prop_assert_eq!(value.to_string().parse::<Ticket>().unwrap(), value);
    }

    #[test]
    fn manifests_survive(clusters in 1u8..20, quorum in 1u16..64, name in "\\PC{0,20}", noise in any::<u32>()) {
        let mut value = manifest(clusters, quorum);
        value.name = name;
        value.additions.epsilon_experts = (0..u16::from(clusters)).filter(|cluster| noise >> cluster & 1 == 1).collect();
        value.version = value.additions.version();
        round_trip(&value)?;
        prop_assert_eq!(Manifest::read(&value.to_bytes().unwrap()).unwrap(), value);
    }

    #[test]
    fn damaged_gossip_never_panics(value in values::gossip(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = value.to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        all_read_without_panic(&bytes)?;
    }

    #[test]
    fn any_text_may_be_tried_as_a_ticket(text in "\\PC{0,80}", body in "[a-z2-7]{0,120}") {
        prop_assert!(text.parse::<Ticket>().is_err());
        let ticket = ["paris1", &body].concat();
        prop_assert!(ticket.parse::<Ticket>().is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) { all_read_without_panic(&bytes)?; }
}

#[test]
fn length_prefixes_that_the_bytes_do_not_back_are_refused() {
    // A varint of 2^64 - 1, then of 2^32 - 1, wherever a list's length could stand.
    for bomb in [&[253u8, 255, 255, 255, 255, 255, 255, 255, 255][..], &[252, 255, 255, 255, 255]] {
        assert!(Records::from_bytes(bomb).is_err());
        assert!(Digest::from_bytes(bomb).is_err());
        // A beat with capacity 0 and an endless list of addresses; a manifest with an endless name.
        assert!(Gossip::from_bytes(&[&[0, 0], bomb].concat()).is_err());
        assert!(Manifest::read(&[&[1], bomb].concat()).is_err());
        assert!(Ticket::from_bytes(&[&[7; 32], bomb].concat()).is_err());
    }
}

#[test]
fn what_is_over_its_limit_is_refused_unread() {
    let refused = |result: Result<Gossip, CodecError>| matches!(result, Err(CodecError::TooLong { .. }));
    assert!(refused(Gossip::from_bytes(&vec![0; Gossip::LIMIT + 1])));
    assert!(matches!(Digest::from_bytes(&vec![0; Digest::LIMIT + 1]), Err(CodecError::TooLong { .. })));
    assert!(matches!(Records::from_bytes(&vec![0; Records::LIMIT + 1]), Err(CodecError::TooLong { .. })));
}

#[test]
fn a_number_written_longer_than_needed_is_refused() {
    // Otherwise one manifest would have several ids.
    let bytes = manifest(1, 1).to_bytes().unwrap();
    assert_eq!(bytes[..2], [1, 4], "version 1, a name of four bytes");
    let padded = [&[1, 251, 4, 0], &bytes[2..]].concat();
    assert!(matches!(Manifest::read(&padded), Err(ManifestError::Codec(CodecError::Malformed { .. }))));
}

#[test]
fn a_newer_manifest_is_called_newer_and_not_garbage() {
    let mut newer = manifest(1, 1).to_bytes().unwrap();
    newer[0] = 3;
    assert!(matches!(Manifest::read(&newer), Err(ManifestError::Version(3))));
}
