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

/// The place of the greatest of some numbers; of equal ones the first.
fn greatest(numbers: &[f32]) -> usize {
    (1..numbers.len()).fold(0, |best, next| if numbers[next] > numbers[best] { next } else { best })
}
