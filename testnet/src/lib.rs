//! Many Paris nodes on one machine.
//!
//! [`process`] starts real nodes, each a process with a data directory of its own, and can kill them; [`demo`] lets them train and draw while
//! you watch.

pub mod demo;
pub mod process;
mod view;
