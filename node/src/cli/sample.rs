//! `paris-node sample`

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, builder::RangedU64ValueParser};
use paris_model::{
    device::DeviceChoice,
    grid::Grid,
    sampler::{Calibration, Guidance, Reroute, Routing, SampleSettings, Solver, Trace},
};
use paris_protocol::hash::Hash;

use super::asked::{Asked, bar};
use crate::{
    memory::Memory,
    models::ModelSource,
    sampling::{Assembled, Drawing, Place},
    store::DataDir,
};

/// Draw pictures with the mixture, on any peer, whether it trains or not.
///
/// Fetches what is missing from the other peers, says which experts it uses and which are missing, and writes a PNG grid: a row for each prompt. If a
/// node runs on the data directory it does the fetching; otherwise this command joins the network for as long as it takes.
///
/// --model draws with a published mixture instead, without any run: a folder in the layout in which Paris's weights are published, hub:OWNER/NAME, or the
/// name of one that was imported. Experts are read when a picture first needs them; where they do not fit into memory together, the one that was not
/// needed for longest makes room. The pictures are the same.
///
/// With --keep the checkpoints that were drawn with stay on this node as a mixture; with --mixture and its hash, and the same prompts, seed and
/// settings, anybody draws the same pictures again.
///
/// Example: paris-node sample "a green apple" "a red heart" -n 8 --seed 7 --out grid.png
#[derive(Args)]
pub(super) struct Sample {
    /// What to draw; several make several rows.
    #[arg(required = true, value_name = "PROMPT", value_parser = prompt)]
    prompts: Vec<String>,

    /// Pictures of each prompt.
    #[arg(short, long, default_value_t = 4, value_parser = count(64))]
    n: usize,

    /// Steps from noise to picture.
    #[arg(long, default_value_t = 30, value_parser = count(1000))]
    steps: usize,

    /// How a step is taken: euler, as published, or heun, which asks the experts twice a step and needs fewer steps.
    #[arg(long, default_value_t)]
    solver: Solver,

    /// Strength of classifier-free guidance; 1 is none.
    #[arg(long, default_value_t = 3.0)]
    cfg: f64,

    /// How much of the contrast that guidance adds is taken away again, 0 to 1; with a strong --cfg 0.7 is usual.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    cfg_rescale: f64,

    /// Experts mixed for each picture; 0 for all of them.
    #[arg(long, default_value_t = 2)]
    top_k: usize,

    /// Ask the router once, at the first step, instead of at every step.
    #[arg(long)]
    route_once: bool,

    /// Seed of the noise: the same seed, prompts and checkpoints draw the same pictures.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Draw with a published mixture, and no run: a folder, hub:OWNER/NAME, or the name of an imported one.
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["mixture", "keep"])]
    model: Option<ModelSource>,

    /// Draw with this mixture instead of the best checkpoints of now. It is fetched if it is not here, and kept.
    #[arg(long, value_name = "HASH", conflicts_with = "keep")]
    mixture: Option<Hash>,

    /// Keep the mixture that is drawn with, so that its hash draws the same again.
    #[arg(long)]
    keep: bool,

    /// Divide the router's logits by these temperatures: JSON as in {"temperatures": [1.3, 0.9]}, a number for each equal part of the time from
    /// picture to noise.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// MiB of memory that weights may take; most of what is available if not given (on a GPU: all they need).
    #[arg(long, env = "PARIS_MEMORY", value_name = "MIB")]
    memory: Option<u64>,

    /// Write which expert was used when, with what weight: FILE.json, and FILE.svg as a picture of it.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// The picture file.
    #[arg(long, default_value = "sample.png", value_name = "FILE")]
    out: PathBuf,

    /// Where to draw: auto, cpu, cuda:N or metal. auto takes a GPU if this program was built for one, else the CPU. Equal seeds draw equal
    /// pictures on equal devices, and nearly equal ones on others.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,

    /// Seconds to wait for checkpoints before drawing with those that are here; for all of them with --mixture.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

impl Sample {
    pub(super) async fn run(self, dir: DataDir) -> anyhow::Result<()> {
        let out = std::path::absolute(&self.out)?;
        if let Some(folder) = out.parent().filter(|folder| !folder.is_dir()) {
            bail!("there is no folder {} for the picture: make it, or choose another --out", folder.display());
        }
        let calibration = self.calibration.as_deref().map(calibration).transpose()?;
        // On this thread, which draws as well. A device that is not to be had is said before anything is fetched.
        let place = self.place()?;
        let mut drawing = match &self.model {
            Some(source) => tokio::task::block_in_place(|| Drawing::of_published(source.open(&dir)?, place))?,
            None => self.assemble(&dir).await?.drawing(place)?,
        };
        if let Some(calibration) = calibration {
            drawing.calibrate(calibration);
        }
        let bar = bar("drawing {wide_bar} {pos}/{len} steps, {eta} left", self.steps as u64)?;
        let captions: Vec<&str> = self.prompts.iter().flat_map(|prompt| vec![prompt.as_str(); self.n]).collect();
        let mut trace = Trace::default();
        // Drawing keeps the processor busy for seconds: the runtime's threads go on meanwhile.
        let pictures = tokio::task::block_in_place(|| {
            drawing.draw(&captions, &self.settings(), &mut |step| {
                bar.set_position(step.number as u64);
                trace.add(step);
            })
        })?;
        bar.finish_and_clear();
        eprintln!("{}", drawing.memory_use());
        Grid { columns: self.n, ..Grid::fitting(captions.len(), drawing.size()) }.write_png(&out, &pictures)?;
        println!("{}", out.display());
        if let Some(path) = &self.trace {
            write_trace(path, &trace, &captions)?;
        }
        Ok(())
    }

    fn settings(&self) -> SampleSettings {
        SampleSettings {
            steps: self.steps,
            solver: self.solver,
            guidance: Guidance { scale: self.cfg, rescale: self.cfg_rescale },
            routing: if self.top_k == 0 { Routing::Full } else { Routing::Top(self.top_k) },
            reroute: if self.route_once { Reroute::Once } else { Reroute::EveryStep },
            seed: self.seed,
        }
    }

    /// The device, and what weights may take of its memory.
    fn place(&self) -> anyhow::Result<Place> {
        let device = self.device.open()?;
        let limit = self.memory.map(|mib| mib.saturating_mul(1 << 20));
        // How much a GPU has left is not known here.
        let limit = if device.is_cpu() { limit } else { limit.or(Some(u64::MAX)) };
        Ok(Place { device, memory_bytes: Memory::new(limit).alone().left_bytes() })
    }

    /// The run's mixture to draw with, and a word about it.
    async fn assemble(&self, dir: &DataDir) -> anyhow::Result<Assembled> {
        let wait = Duration::from_secs(self.wait);
        let asked = Asked::of(dir, wait).await?;
        let assembled = async {
            let assembly = match self.mixture {
                Some(hash) => asked.mixture(hash, wait).await?,
                None => asked.assemble(wait).await?,
            };
            let assembled = Assembled::of(&assembly)?;
            if self.keep {
                asked.keep(assembled.record()).await?;
            }
            anyhow::Ok(assembled)
        };
        let assembled = assembled.await;
        asked.leave().await?;
        let assembled = assembled?;
        eprintln!("{}\nmixture {}{}", assembled.describe(), assembled.record().hash()?, self.what_becomes_of_it());
        Ok(assembled)
    }

    fn what_becomes_of_it(&self) -> &'static str {
        match self.keep || self.mixture.is_some() {
            true => ", kept: --mixture with this hash draws with it again",
            false => ", of this moment: --keep would keep it",
        }
    }
}

/// The router's temperatures from a file.
pub(super) fn calibration(path: &Path) -> anyhow::Result<Calibration> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Writes a trace as JSON, and beside it as a picture.
fn write_trace(path: &Path, trace: &Trace, captions: &[&str]) -> anyhow::Result<()> {
    for (ending, text) in [("json", serde_json::to_string(trace)?), ("svg", trace.svg(captions))] {
        let path = path.with_extension(ending);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
    }
    Ok(())
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("it must lie between 0 and 1".to_owned()) }
}

/// A prompt that says something.
fn prompt(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a prompt must say what to draw, as in `paris-node sample \"a green apple\"`".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// One or more, within reason: a typing mistake should not ask for all of the machine's memory.
fn count(most: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most as u64)
}
