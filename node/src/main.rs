//! `paris-node`: see [`paris_node::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;
use paris_node::memory::Counting;

/// Keeps freed pages for the next step's tensors; the system's allocator gives them back and faults them in again. It counts, so that
/// steps can be fitted to the machine.
#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);

fn main() -> ExitCode {
    paris_node::cli::main(std::env::args_os().collect())
}
