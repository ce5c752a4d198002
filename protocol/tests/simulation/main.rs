//! Many agents in virtual time: what the network does as a whole. Every scenario is replayed exactly by its seed.

mod chaos;
mod checkpoints;
#[path = "../common/mod.rs"]
mod common;
mod failures;
mod invitations;
mod ownership;
mod strangers;
mod world;
