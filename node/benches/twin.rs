//! `cargo bench -p paris-node --bench twin`: training steps and forward passes beside the PyTorch twin's.
//!
//! Each round runs `paris-node bench train` and the twin, eager and compiled, one after the other in processes of their own, so that a machine whose
//! speed drifts is as slow for all of them. Prints medians over the rounds as a Markdown table. The twin needs PyTorch and safetensors
//! (`pip install torch safetensors`) and is left out where `--python` has none.
//!
//! Options: `--rounds N` (3), `--steps N` (6), `--python PROGRAM` (python3), `--only TEXT` (rows whose name holds the text), `--no-compiled`.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

/// The twin.
const TWIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/twin/paris_torch.py");

/// A row of the table.
struct Case {
    kind: &'static str,
    width: usize,
    depth: usize,
    heads: usize,
    patch: usize,
    channels: usize,
    batch: usize,
    threads: usize,
}

/// Medians of one program's steps.
#[derive(Clone, Copy)]
struct Measured {
    wall_ms: f64,
    peak_mib: f64,
    peak_share: Option<f64>,
}

impl Case {
    fn name(&self) -> String {
        let Self { kind, width, depth, patch, batch, threads, .. } = self;
        format!("{kind} {width}x{depth}, patch {patch}, batch {batch}, threads {threads}")
    }

    /// The options that both programs read.
    fn options(&self, steps: usize) -> Vec<String> {
        let Self { width, depth, heads, patch, channels, batch, threads, .. } = *self;
        let numbers = [
            ("width", width),
            ("depth", depth),
            ("heads", heads),
            ("patch", patch),
            ("channels", channels),
            ("batch", batch),
            ("threads", threads),
            ("steps", steps),
        ];
        numbers.iter().flat_map(|(name, value)| [format!("--{name}"), value.to_string()]).collect()
    }

    fn ours(&self, steps: usize) -> anyhow::Result<Measured> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paris-node"));
        command.args(["bench", "train", "--json"]).args(self.options(steps));
        if self.kind == "forward" {
            command.arg("--forward-only");
        }
        let said: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
        let number = |name: &str| said[name].as_f64().with_context(|| format!("no {name} in {said}"));
        Ok(Measured {
            wall_ms: number("wall_ms")?,
            peak_mib: number("peak_rss_bytes")? / f64::from(1 << 20),
            peak_share: Some(number("peak_share")?),
        })
    }

    fn twin(&self, python: &str, steps: usize, compiled: bool) -> anyhow::Result<Measured> {
        let mut command = Command::new(python);
        command.args([TWIN, "bench", self.kind, "--fused-adamw"]).args(self.options(steps));
        if compiled {
            command.arg("--compile");
        }
        let said = output(&mut command)?;
        let after = |word: &str| -> anyhow::Result<f64> {
            let rest = said.split(word).nth(1).with_context(|| format!("no {word:?} in {said:?}"))?;
            let number = rest.trim_start().split(' ').next().unwrap_or_default();
            number.parse().with_context(|| format!("no number after {word:?} in {said:?}"))
        };
        Ok(Measured { wall_ms: after(": wall")?, peak_mib: after("peak")?, peak_share: None })
    }
}

/// What the program prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Training at both sizes and batches on one and two threads, small runs' patch, and sampling.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kind, (width, depth, heads), (patch, channels), batch, threads| {
        cases.push(Case { kind, width, depth, heads, patch, channels, batch, threads });
    };
    let (small, large, latent, pixels) = ((192, 6, 3), (384, 12, 6), (2, 4), (4, 3));
    for threads in [1, 2] {
        for batch in [8, 32] {
            add("train", small, latent, batch, threads);
            add("train", small, pixels, batch, threads);
        }
        for batch in [2, 32] {
            add("forward", small, latent, batch, threads);
        }
    }
    for threads in [1, 2] {
        for batch in [8, 32] {
            add("train", large, latent, batch, threads);
        }
        for batch in [2, 32] {
            add("forward", large, latent, batch, threads);
        }
    }
    cases
}

/// The middle of the rounds by wall time, and the largest memory of any.
fn median(mut rounds: Vec<Measured>) -> Option<Measured> {
    rounds.sort_by(|a, b| a.wall_ms.total_cmp(&b.wall_ms));
    let peak_mib = rounds.iter().map(|it| it.peak_mib).fold(0.0, f64::max);
    rounds.get(rounds.len() / 2).map(|it| Measured { peak_mib, ..*it })
}

struct Options {
    rounds: usize,
    steps: usize,
    python: String,
    only: String,
    compiled: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options { rounds: 3, steps: 6, python: "python3".into(), only: String::new(), compiled: true };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--rounds" => options.rounds = value()?.parse()?,
            "--steps" => options.steps = value()?.parse()?,
            "--python" => options.python = value()?,
            "--only" => options.only = value()?,
            "--no-compiled" => options.compiled = false,
            other => bail!("{other} is no option: --rounds, --steps, --python, --only, --no-compiled"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<ExitCode> {
    let options = options()?;
    let torch =
        output(Command::new(&options.python).args(["-c", "import torch, safetensors; print(torch.__version__)"]));
    match &torch {
        Ok(version) => println!("PyTorch {}", version.trim()),
        Err(_) => println!("{} has no PyTorch: only our own figures (pip install torch safetensors)", options.python),
    }
    println!(
        "{} rounds of {} steps, median wall milliseconds; ratio: the twin's best / ours\n",
        options.rounds, options.steps
    );
    println!("| | ours | share of peak | eager | compiled | ratio | MiB: ours | twin | share |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for case in cases().into_iter().filter(|case| case.name().contains(&options.only)) {
        let (mut ours, mut eager, mut compiled) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            ours.push(case.ours(options.steps)?);
            if torch.is_ok() {
                eager.push(case.twin(&options.python, options.steps, false)?);
                if options.compiled {
                    compiled.push(case.twin(&options.python, options.steps, true)?);
                }
            }
        }
        let Some(ours) = median(ours) else { bail!("--rounds must be 1 or more") };
        let (eager, compiled) = (median(eager), median(compiled));
        let twins = || [eager, compiled].into_iter().flatten();
        let wall = |it: Option<Measured>| it.map_or("-".into(), |it| format!("{:.1}", it.wall_ms));
        let best = twins().map(|it| it.wall_ms).fold(f64::INFINITY, f64::min);
        let leanest = twins().map(|it| it.peak_mib).fold(f64::INFINITY, f64::min);
        println!(
            "| {} | {:.1} | {:.2} | {} | {} | {:.2} | {:.0} | {:.0} | {:.2} |",
            case.name(),
            ours.wall_ms,
            ours.peak_share.unwrap_or(f64::NAN),
            wall(eager),
            wall(compiled),
            best / ours.wall_ms,
            ours.peak_mib,
            leanest,
            ours.peak_mib / leanest
        );
    }
    Ok(ExitCode::SUCCESS)
}
