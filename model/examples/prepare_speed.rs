//! How fast and in how much memory a source is prepared, beside what decoding and describing its pictures alone takes on the same threads.
//!
//! `cargo run --release -p paris-model --example prepare_speed -- SOURCE OUT [--size PIXELS] [--clusters K] [--limit N]`. Both are measured in CPU time too,
//! which other work on the machine disturbs less. OUT is written as `paris-node data prepare` would.

use std::{fs, ops::ControlFlow, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use paris_model::{
    data::{Entry, PrepareSettings, Progress, Source, prepare},
    features::{ColourAndEdges, ImageFeatures},
    image_codec::Pixels,
};
use rayon::prelude::*;

/// Wall and CPU seconds since some moment.
fn clocks(began: Instant) -> (f64, f64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (began.elapsed().as_secs_f64(), (ticks(11) + ticks(12)) / 100.0)
}

fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib / 1024.0)
}

/// Decodes and describes everything, and keeps nothing.
fn alone(source: &Source, settings: &PrepareSettings) -> Result<usize> {
    let (mut waiting, mut pictures): (Vec<Entry>, usize) = (Vec::new(), 0);
    let side = settings.size as usize;
    let work = |entries: &mut Vec<Entry>| -> Result<usize> {
        let counts = std::mem::take(entries).into_par_iter().map(|entry| -> Result<usize> {
            let Ok(sample) = entry.decode(settings.size, settings.min_side) else { return Ok(0) };
            let values: Vec<f32> = sample.picture.iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
            ColourAndEdges.extract(&Tensor::from_vec(values, (1, 3, side, side), &Device::Cpu)?)?;
            Ok(1)
        });
        counts.sum()
    };
    let mut failure = None;
    source.read(0, |entry| {
        waiting.push(entry);
        if waiting.len() == 4096 {
            match work(&mut waiting) {
                Ok(count) => pictures += count,
                Err(error) => failure = Some(error),
            }
        }
        let enough = settings.limit.is_some_and(|limit| pictures + waiting.len() >= limit);
        if enough || failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failure.map_or(Ok(()), Err)?;
    Ok(pictures + work(&mut waiting)?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut path = || {
        arguments
            .next()
            .map(PathBuf::from)
            .context("usage: prepare_speed SOURCE OUT [--size N] [--clusters N] [--limit N]")
    };
    let (source, out) = (Source::open(&path()?)?, path()?);
    let mut settings = PrepareSettings::default();
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--size" => settings.size = value.parse()?,
            "--clusters" => settings.clusters = value.parse()?,
            "--limit" => settings.limit = Some(value.parse()?),
            _ => anyhow::bail!("{name} is no option"),
        }
    }
    let began = Instant::now();
    let before = clocks(began);
    let (mut stage, mut since) = ("start", before);
    let mut enter = |next: &'static str| {
        if next != stage {
            let now = clocks(began);
            println!(
                "{stage:>10}: {:.2} s, {:.2} CPU s; peak memory so far {:.0} MiB",
                now.0 - since.0,
                now.1 - since.1,
                peak_mib()
            );
            (stage, since) = (next, now);
        }
    };
    let prepared = prepare(&source, &out, &settings, &ColourAndEdges, &Pixels, &mut |progress| {
        enter(match progress {
            Progress::Resuming { .. } | Progress::Reading { .. } => "reading",
            Progress::Clustering { .. } => "clustering",
            Progress::Writing { .. } => "writing",
            Progress::Reporting => "reporting",
        });
    })?;
    enter("end");
    let whole = clocks(began);
    let samples: usize = prepared.clusters.iter().map(|cluster| cluster.samples()).sum();
    println!(
        "prepared {samples} pictures in {:.2} s, {:.2} CPU s ({:.0} pictures a second, {:.0} a CPU second); peak memory {:.0} MiB",
        whole.0 - before.0,
        whole.1 - before.1,
        samples as f64 / (whole.0 - before.0),
        samples as f64 / (whole.1 - before.1),
        peak_mib()
    );
    let before = clocks(began);
    let pictures = alone(&source, &settings)?;
    let bare = clocks(began);
    println!(
        "decoding and describing {pictures} alone: {:.2} s, {:.2} CPU s; preparing goes at {:.0} % of that by wall time, {:.0} % by CPU time",
        bare.0 - before.0,
        bare.1 - before.1,
        100.0 * (bare.0 - before.0) / (whole.0),
        100.0 * (bare.1 - before.1) / (whole.1)
    );
    Ok(())
}
