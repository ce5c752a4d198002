//! `paris-node`: see [`paris_node::cli`].

use std::process::ExitCode;

/// Keeps freed pages for the next step's tensors; the system's allocator gives them back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    paris_node::cli::main(std::env::args_os())
}
