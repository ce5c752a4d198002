//! `paris-node sample`

use std::{
    collections::{HashMap, HashSet},
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{Args, builder::RangedU64ValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use paris_model::{
    device::DeviceChoice,
    grid::Grid,
    sampler::{Reroute, Routing, SampleSettings},
};

use crate::{
    api::Client,
    runtime::{AssembledPart, Assembly, Node, NodeConfig, SNAPSHOT_EVERY},
    sampling::{Drawing, is_here, manifest_from_hex},
    store::DataDir,
};

/// Between two looks at what has arrived.
const POLL: Duration = Duration::from_millis(250);

/// Draw pictures with the mixture, on any peer, whether it trains or not.
///
/// Fetches what is missing from the other peers, says which experts it uses and which are missing, and writes a PNG grid: a row for each prompt. If a
/// node runs on the data directory it does the fetching; otherwise this command joins the network for as long as it takes.
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

    /// The picture file.
    #[arg(long, default_value = "sample.png", value_name = "FILE")]
    out: PathBuf,

    /// Where to draw: auto, cpu, cuda:N or metal. auto takes a GPU if this program was built for one, else the CPU. Equal seeds draw equal
    /// pictures on equal devices, and nearly equal ones on others.
    #[arg(long, default_value_t, env = "PARIS_DEVICE")]
    device: DeviceChoice,

    /// Seconds to wait for checkpoints before drawing with those that are here.
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
        let assembly = self.assemble(&dir).await?;
        // On this thread, which draws as well.
        let drawing = Drawing::open(&assembly, self.device.open()?)?;
        eprintln!("{}", drawing.describe());
        let settings = SampleSettings {
            steps: self.steps,
            guidance: self.cfg,
            routing: if self.top_k == 0 { Routing::Full } else { Routing::Top(self.top_k) },
            reroute: if self.route_once { Reroute::Once } else { Reroute::EveryStep },
            seed: self.seed,
        };
        let bar = bar("drawing {wide_bar} {pos}/{len} steps, {eta} left", self.steps as u64)?;
        let captions: Vec<&str> = self.prompts.iter().flat_map(|prompt| vec![prompt.as_str(); self.n]).collect();
        // Drawing keeps the processor busy for seconds: the runtime's threads go on meanwhile.
        let pictures = tokio::task::block_in_place(|| {
            drawing.draw(&captions, &settings, &mut |step, _| bar.set_position(step as u64))
        })?;
        bar.finish_and_clear();
        Grid { columns: self.n, ..Grid::fitting(captions.len(), drawing.size()) }.write_png(&out, &pictures)?;
        println!("{}", out.display());
        Ok(())
    }

    /// The mixture's weights on this machine, as far as they can be had within the wait.
    async fn assemble(&self, dir: &DataDir) -> anyhow::Result<Assembly> {
        match Client::of(dir) {
            Some(client) => self.wait_for(async || Ok(client.assembly().await?)).await,
            None => {
                let config = NodeConfig {
                    dir: dir.clone(),
                    host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    port: 0,
                    capacity: Some(0),
                    mirror_everything: true,
                    mdns: false,
                    memory_limit: None,
                    disk_reserve: 0,
                    device: DeviceChoice::Cpu,
                    snapshot_every: SNAPSHOT_EVERY,
                };
                let give_up = tokio::time::sleep(Duration::from_secs(self.wait));
                let mut node = Node::start(config, give_up).await?;
                let handle = node.handle().clone();
                let assembly = self.wait_for(async || Ok(handle.assembly().await?)).await;
                handle.stop().await;
                node.stopped().await?;
                assembly
            }
        }
    }

    async fn wait_for(&self, ask: impl AsyncFn() -> anyhow::Result<Assembly>) -> anyhow::Result<Assembly> {
        let until = Instant::now() + Duration::from_secs(self.wait);
        let mut assembly = ask().await?;
        let parts = manifest_from_hex(&assembly.manifest)?.parts().count();
        let bar = bar("fetching checkpoints {wide_bar} {pos}/{len} parts", parts as u64)?;
        // What was best at the beginning, or better, will do: owners publish faster than a slow line fetches.
        let mut wanted: HashMap<String, u64> = HashMap::new();
        let mut checked = HashSet::new();
        loop {
            for part in &mut assembly.parts {
                if !checked.contains(&part.weights) {
                    match is_here(part) {
                        true => drop(checked.insert(part.weights.clone())),
                        false => part.path = None,
                    }
                }
            }
            let is_enough = |part: &&AssembledPart| {
                let step = *wanted.entry(part.part.clone()).or_insert(part.best_step);
                part.path.is_some() && part.step >= step
            };
            let here = assembly.parts.iter().filter(is_enough).count();
            bar.set_position(here as u64);
            if here == parts || Instant::now() >= until {
                bar.finish_and_clear();
                return Ok(assembly);
            }
            tokio::time::sleep(POLL).await;
            assembly = ask().await?;
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

/// A bar on stderr, if a person can see it.
fn bar(template: &str, len: u64) -> anyhow::Result<ProgressBar> {
    match std::io::stderr().is_terminal() {
        true => Ok(ProgressBar::new(len).with_style(ProgressStyle::with_template(template)?)),
        false => Ok(ProgressBar::hidden()),
    }
}
