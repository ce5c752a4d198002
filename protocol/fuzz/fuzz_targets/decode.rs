//! No bytes make a decoder panic, and what reads has one wire form.
#![no_main]

#[allow(dead_code, reason = "each target enters at one of the two")]
#[path = "../../tests/strange_bytes/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::decode(bytes));
