//! Records, their wire forms, and the register that merges them.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod codec;
mod golden;
mod many;
mod merge;
mod mixture;
mod values;
mod versions;
