//! How good a mixture is, on data that nobody trained on.
//!
//! - [`held_out`]: the questions that models are asked, the same for all
//! - [`losses`]: every expert's loss on every cluster
//! - [`classification`]: how well a router tells clusters apart, and its temperatures
//! - [`frechet`], [`kernel`], [`distances`]: how far drawn pictures lie from real ones, by named features
//! - [`contest`]: strategies against each other
//! - [`table`]: how all that is written
//!
//! A distance is called by its features: FD-ColourAndEdges is not FID, and says nothing beside it.

pub mod classification;
pub mod contest;
pub mod distances;
pub mod frechet;
pub mod held_out;
pub mod kernel;
pub mod losses;
mod symmetric;
pub mod table;
