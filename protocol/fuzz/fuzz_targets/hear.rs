//! No bytes make an agent panic, grow beyond its bounds, or act on what nobody signed.
#![no_main]

#[allow(dead_code, reason = "each target enters at one of the two")]
#[path = "../../tests/strange_bytes/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::hear(bytes));
