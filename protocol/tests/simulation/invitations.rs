//! Runs by invitation: who is let in, who waits, and who cannot let anybody in.

use paris_protocol::{
    agent::{InviteError, Verdict},
    identity::Keypair,
    invitation::{INVITATIONS_MAX, Invitation},
    manifest::{Admission, Manifest},
    message::Gossip,
    part::Part,
    signed::Verified,
};

use crate::{
    common::{key, manifest},
    strangers::{beat, claim_of, current, say, vote_for},
    world::{World, owner},
};

/// Node 0's key is the organiser's.
const ORGANISER: usize = 0;
const PART: Part = Part::Expert(0);

fn by_invitation(clusters: u8, quorum: u16) -> Manifest {
    Manifest { admission: Admission::Invite(vec![key(1).id()]), ..manifest(clusters, quorum) }
}

fn invite(world: &mut World, node: usize) -> Result<bool, InviteError> {
    let id = world.agent(node).id();
    world.input(ORGANISER, |agent, _| agent.invite(id))
}

fn invitation(world: &World, author: &Keypair, number: u16) -> Gossip {
    let record = Invitation { invitee: key(200).id(), number };
    Gossip::Invitation(Verified::sign(author, world.agent(0).run(), record).signed().clone())
}

#[test]
fn who_is_invited_takes_its_share_and_stays_invited_and_who_is_not_waits() {
    let mut world = World::of(61, by_invitation(3, 1), 3, 4);
    assert_eq!(invite(&mut world, 1), Err(InviteError::Listening));
    world.run_secs(60);
    assert_eq!([0, 1, 2].map(|node| world.load(node)), [4, 0, 0]);
    assert!(world.agent(0).is_admitted() && !world.agent(1).is_admitted());
    assert_eq!(invite(&mut world, 1), Ok(true));
    assert_eq!(invite(&mut world, 1), Ok(false), "it is in already");
    world.run_secs(120);
    assert_eq!([0, 1, 2].map(|node| world.load(node)), [2, 2, 0]);
    // The invitation outlives its author, and everyone's restart.
    world.kill(ORGANISER);
    world.kill(1);
    world.start(1);
    world.run_secs(120);
    assert_eq!([1, 2].map(|node| world.load(node)), [4, 0]);
    // Who comes later hears of it in its first exchange.
    let late = world.add(owner(4));
    world.run_secs(30);
    assert!(world.agent(late).register().admits(world.agent(1).id()) && !world.agent(late).is_admitted());
    for part in world.parts() {
        assert_eq!(world.agent(late).register().current(part).map(|claim| claim.author()), Some(world.agent(1).id()));
    }
}

#[test]
fn the_uninvited_take_nothing_and_a_peer_that_passes_their_word_on_is_not_blamed() {
    let mut world = World::of(62, by_invitation(2, 2), 4, 3);
    world.run_secs(20);
    for node in [1, 2] {
        assert_eq!(invite(&mut world, node), Ok(true));
    }
    world.run_secs(60);
    let (owner, liar) = (world.owner(PART), key(200));
    let before = current(&world);
    // Whoever passed these on may know an invitation that has not come here yet: the beats go on, and the claims in them count for nothing.
    let first = claim_of(&world, &liar, 1, None, vec![vote_for(&world, &key(201), None, liar.id())]);
    assert_eq!(say(&mut world, liar.id(), &beat(&first)), Verdict::Accept);
    let suspicion = |author: &Keypair| vote_for(&world, author, Some(before.claim), liar.id());
    let votes = vec![suspicion(&key(201))];
    let theft = claim_of(&world, &liar, 2, Some(before), votes.clone());
    assert_eq!(say(&mut world, liar.id(), &beat(&theft)), Verdict::Accept);
    assert_eq!(say(&mut world, key(201).id(), &Gossip::Vote(votes[0].clone())), Verdict::Ignore);
    world.run_secs(60);
    assert_eq!((world.owner(PART), current(&world)), (owner, before));
    // A voter that nobody invited founds nothing for one who is invited either.
    let invited = key(2);
    let votes = vec![vote_for(&world, &liar, Some(before.claim), invited.id())];
    let theft = claim_of(&world, &invited, 2, Some(before), votes);
    say(&mut world, invited.id(), &beat(&theft));
    assert_eq!(current(&world), before);
}

#[test]
fn a_claim_that_came_before_its_invitation_is_taken_after_it() {
    let mut world = World::of(63, by_invitation(1, 1), 1, 0);
    world.run_secs(20);
    let newcomer = key(200);
    let claim = beat(&claim_of(&world, &newcomer, 1, None, Vec::new()));
    say(&mut world, newcomer.id(), &claim);
    assert!(world.agent(0).register().current(PART).is_none());
    let invited = world.input(ORGANISER, |agent, _| agent.invite(newcomer.id()));
    assert_eq!(invited, Ok(true));
    say(&mut world, newcomer.id(), &claim);
    assert_eq!(world.agent(0).register().current(PART).unwrap().author(), newcomer.id());
}

#[test]
fn nobody_but_an_organiser_invites_and_no_organiser_without_end() {
    let mut world = World::of(64, by_invitation(1, 1), 2, 2);
    world.run_secs(20);
    let (organiser, guest) = (key(1), key(2));
    assert_eq!(invite(&mut world, 1), Ok(true));
    let by_guest = invitation(&world, &guest, 0);
    assert_eq!(say(&mut world, guest.id(), &by_guest), Verdict::Reject, "who is invited invites nobody");
    let too_many = invitation(&world, &organiser, INVITATIONS_MAX);
    assert_eq!(say(&mut world, organiser.id(), &too_many), Verdict::Reject);
    let relayed = invitation(&world, &organiser, 7);
    assert_eq!(say(&mut world, guest.id(), &relayed), Verdict::Reject, "under another envelope");
    assert_eq!(world.input(1, |agent, _| agent.invite(key(200).id())), Err(InviteError::NotAnOrganiser));
    assert!(!world.agent(0).register().admits(key(200).id()));
    assert_eq!(say(&mut world, organiser.id(), &relayed), Verdict::Ignore, "known since it was said the first time");
    assert!(world.agent(0).register().admits(key(200).id()));
    // An open run has no use for it.
    let mut open = World::of(64, manifest(1, 1), 1, 2);
    open.run_secs(20);
    let out_of_place = invitation(&open, &organiser, 0);
    assert_eq!(say(&mut open, organiser.id(), &out_of_place), Verdict::Reject);
    assert_eq!(open.input(0, |agent, _| agent.invite(guest.id())), Err(InviteError::NotByInvitation));
}
