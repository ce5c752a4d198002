//! `paris-node sample`

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::{Args, builder::RangedU64ValueParser};
use paris_model::{
    device::DeviceChoice,
    grid::Grid,
    sampler::{Guidance, Reroute, Routing, SampleSettings, Solver},
};
use paris_protocol::hash::Hash;

use super::asked::{Asked, bar};
use crate::{sampling::Drawing, store::DataDir};

/// Draw pictures with the mixture, on any peer, whether it trains or not.
///
/// Fetches what is missing from the other peers, says which experts it uses and which are missing, and writes a PNG grid: a row for each prompt. If a
/// node runs on the data directory it does the fetching; otherwise this command joins the network for as long as it takes.
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

    /// Euler steps from noise to picture.
    #[arg(long, default_value_t = 30, value_parser = count(1000))]
    steps: usize,

    /// Strength of classifier-free guidance; 1 is none.
    #[arg(long, default_value_t = 3.0)]
    cfg: f64,

    /// Experts mixed for each picture; 0 for all of them.
    #[arg(long, default_value_t = 2)]
    top_k: usize,

    /// Ask the router once, at the first step, instead of at every step.
    #[arg(long)]
    route_once: bool,

    /// Seed of the noise: the same seed, prompts and checkpoints draw the same pictures.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Draw with this mixture instead of the best checkpoints of now. It is fetched if it is not here, and kept.
    #[arg(long, value_name = "HASH", conflicts_with = "keep")]
    mixture: Option<Hash>,

    /// Keep the mixture that is drawn with, so that its hash draws the same again.
    #[arg(long)]
    keep: bool,

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
        // A device that is not to be had is said before anything is fetched.
        self.device.open()?;
        let drawing = self.open(&dir).await?;
        let settings = SampleSettings {
            steps: self.steps,
            solver: Solver::Euler,
            guidance: Guidance::of(self.cfg),
            routing: if self.top_k == 0 { Routing::Full } else { Routing::Top(self.top_k) },
            reroute: if self.route_once { Reroute::Once } else { Reroute::EveryStep },
            seed: self.seed,
        };
        let bar = bar("drawing {wide_bar} {pos}/{len} steps, {eta} left", self.steps as u64)?;
        let captions: Vec<&str> = self.prompts.iter().flat_map(|prompt| vec![prompt.as_str(); self.n]).collect();
        // Drawing keeps the processor busy for seconds: the runtime's threads go on meanwhile.
        let pictures = tokio::task::block_in_place(|| {
            drawing.draw(&captions, &settings, &mut |step| bar.set_position(step.number as u64))
        })?;
        bar.finish_and_clear();
        Grid { columns: self.n, ..Grid::fitting(captions.len(), drawing.size()) }.write_png(&out, &pictures)?;
        println!("{}", out.display());
        Ok(())
    }

    /// The mixture to draw with, and a word about it.
    async fn open(&self, dir: &DataDir) -> anyhow::Result<Drawing> {
        let wait = Duration::from_secs(self.wait);
        let asked = Asked::of(dir, wait).await?;
        let opened = async {
            let assembly = match self.mixture {
                Some(hash) => asked.mixture(hash, wait).await?,
                None => asked.assemble(wait).await?,
            };
            // On this thread, which draws as well.
            let drawing = Drawing::open(&assembly, self.device.open()?)?;
            if self.keep {
                asked.keep(drawing.record()).await?;
            }
            anyhow::Ok(drawing)
        };
        let drawing = opened.await;
        asked.leave().await?;
        let drawing = drawing?;
        eprintln!("{}\nmixture {}{}", drawing.describe(), drawing.record().hash()?, self.what_becomes_of_it());
        Ok(drawing)
    }

    fn what_becomes_of_it(&self) -> &'static str {
        match self.keep || self.mixture.is_some() {
            true => ", kept: --mixture with this hash draws with it again",
            false => ", of this moment: --keep would keep it",
        }
    }
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
