//! Compares the model with a twin: `cargo run --release -p paris-model --example parity REFERENCE.safetensors`.
//!
//! Prints the largest relative error of the output and of each gradient; exits with 1 where one is above the limit.

use std::process::ExitCode;

use anyhow::Context;

/// The largest error that rounding explains.
const LIMIT: f64 = 1e-4;

fn main() -> anyhow::Result<ExitCode> {
    let path = std::env::args().nth(1).context("usage: parity REFERENCE.safetensors")?;
    let reference = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let parity = paris_model::parity::compare(&reference)?;
    println!("{:?}", parity.config);
    println!("{:9.2e}  output", parity.output);
    for (name, error) in &parity.gradients {
        println!("{error:9.2e}  gradient of {name}");
    }
    println!("{:9.2e}  worst; the limit is {LIMIT:.0e}", parity.worst());
    Ok(if parity.worst() > LIMIT { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
