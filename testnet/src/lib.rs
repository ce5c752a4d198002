//! Many Paris nodes on one machine.
//!
//! [`process`] starts real nodes, each a process with a data directory of its own, and can kill them; [`demo`] lets them train and draw while
//! you watch; [`experiment`] compares mixtures with a monolith; [`mod@bench`] measures what the network costs their training; [`sim`] runs thousands of agents in virtual time, without any process, and checks what the protocol promises.

pub mod bench;
pub mod demo;
pub mod experiment;
pub mod process;
pub mod sim;
mod span;
mod usage;
mod view;
