//! The operations of [`crate::operations`] on CUDA, in f32 or bf16, always summed in f32: kernels of our own around cuBLAS's matrix products.
//!
//! No operation waits for the device, and none adds with atomics: equal inputs give equal bits. Kernels stand in `kernels/`, a file for each
//! concept; what surrounds them here checks shapes, so that a kernel never reads what is not there.

mod attention;
mod launch;
mod modulation;
mod prepare;
mod products;

pub(crate) use attention::{attend, attend_within, attends};
pub(crate) use launch::{ADAMW, Gpu, Spread, address, size, suffix};
pub(crate) use modulation::{gated, modulate};
pub(crate) use prepare::prepare;
pub(crate) use products::{gelu, linear};

#[cfg(test)]
mod tests;
