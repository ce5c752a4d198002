//! Generated values of every wire type.

use std::net::{IpAddr, SocketAddr};

use paris_protocol::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    claim::{Claim, ClaimId, Previous, Vote},
    hash::Hash,
    identity::NodeId,
    manifest::RunId,
    message::{Gossip, Presence, Progress},
    mixture::Mixture,
    part::Part,
    register::{Digest, Records},
    signed::{Signed, Verified},
    ticket::{Seed, Ticket},
};
use proptest::{collection::vec, option, prelude::*};

use crate::common::key;

pub(crate) fn run() -> RunId {
    RunId(Hash::of(b"a run"))
}

pub(crate) fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

pub(crate) fn part() -> impl Strategy<Value = Part> {
    prop_oneof![any::<u16>().prop_map(Part::Expert), Just(Part::Router)]
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId)
}

/// Without the scope of a link-local address, which means nothing on another machine and does not travel.
fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

pub(crate) fn vote() -> impl Strategy<Value = Vote> {
    let claim = option::of(hash().prop_map(ClaimId));
    (part(), claim, option::of(node())).prop_map(|(part, claim, heir)| Vote { part, claim, heir })
}

fn signed_vote() -> impl Strategy<Value = Signed<Vote>> {
    (0u8..4, vote()).prop_map(|(author, vote)| Verified::sign(&key(author), run(), vote).signed().clone())
}

pub(crate) fn claim() -> impl Strategy<Value = Claim> {
    let previous = (hash(), node()).prop_map(|(claim, owner)| Previous { claim: ClaimId(claim), owner });
    (part(), any::<u64>(), option::of(previous), vec(signed_vote(), 0..4), any::<u64>(), any::<u64>())
        .prop_map(|(part, term, previous, evidence, boot, seq)| Claim { part, term, previous, evidence, boot, seq })
}

pub(crate) fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let blob = || (hash(), any::<u64>()).prop_map(|(hash, bytes)| Blob { hash, bytes });
    let parent = option::of(hash().prop_map(CheckpointId));
    (part(), hash(), any::<u64>(), parent, any::<u64>(), any::<i32>(), blob(), blob()).prop_map(
        |(part, claim, term, parent, step, loss, weights, state)| Checkpoint {
            part,
            claim: ClaimId(claim),
            term,
            parent,
            step,
            held_out_loss: loss as f32 / 1000.0,
            weights,
            state,
        },
    )
}

fn signed_claim() -> impl Strategy<Value = Signed<Claim>> {
    (0u8..4, claim()).prop_map(|(author, claim)| Verified::sign(&key(author), run(), claim).signed().clone())
}

fn signed_checkpoint() -> impl Strategy<Value = Signed<Checkpoint>> {
    (0u8..4, checkpoint()).prop_map(|(author, it)| Verified::sign(&key(author), run(), it).signed().clone())
}

fn presence() -> impl Strategy<Value = Presence> {
    let progress = (part(), any::<u64>(), any::<i16>(), any::<i16>()).prop_map(|(part, step, loss, held_out)| {
        Progress { part, step, loss: loss.into(), held_out_loss: held_out.into() }
    });
    (any::<u16>(), vec(address(), 0..8), vec(hash().prop_map(CheckpointId), 0..8), vec(progress, 0..4))
        .prop_map(|(capacity, addresses, holds, progress)| Presence { capacity, addresses, holds, progress })
}

pub(crate) fn gossip() -> impl Strategy<Value = Gossip> {
    prop_oneof![
        (presence(), vec(signed_claim(), 0..3)).prop_map(|(presence, claims)| Gossip::Beat { presence, claims }),
        signed_vote().prop_map(Gossip::Vote),
        signed_checkpoint().prop_map(Gossip::Checkpoint),
    ]
}

pub(crate) fn records() -> impl Strategy<Value = Records> {
    (vec(signed_claim(), 0..4), vec(signed_checkpoint(), 0..4))
        .prop_map(|(claims, checkpoints)| Records { claims, checkpoints })
}

pub(crate) fn mixture() -> impl Strategy<Value = Mixture> {
    vec(checkpoint(), 0..4).prop_map(|all| {
        let signed: Vec<_> = all.into_iter().map(|it| Verified::sign(&key(1), run(), it)).collect();
        Mixture::of(run(), &signed)
    })
}

pub(crate) fn digest() -> impl Strategy<Value = Digest> {
    proptest::collection::btree_map(part(), hash(), 0..20).prop_map(Digest)
}

pub(crate) fn ticket() -> impl Strategy<Value = Ticket> {
    let seed = (node(), vec("[a-z0-9/.]{0,40}", 0..3), vec(address(), 0..3)).prop_map(|(node, gossip, blobs)| Seed {
        node,
        gossip,
        blobs,
    });
    (hash(), vec(seed, 0..4)).prop_map(|(run, seeds)| Ticket::new(RunId(run), seeds))
}
