//! No bytes make a decoder panic, and what reads has one wire form.
#![no_main]

#[path = "../../tests/strange_bytes/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::decode(bytes));
