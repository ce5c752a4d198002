//! The demo: a network of real nodes trains, loses a node, and draws.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use paris_node::status::Status;

use crate::{
    process::{BUNDLED_PICTURES, NodeProcess},
    span::span,
    view::View,
};

/// What is drawn of them.
const BUNDLED_PROMPTS: [&str; 8] = [
    "orange heart emoji in the Noto style",
    "blue heart emoji in the Noto style",
    "purple circle emoji in the flat Fluent style",
    "green apple emoji in the Noto style",
    "brown circle emoji in the flat Fluent style",
    "grinning face emoji in the flat Fluent style",
    "flag: poland emoji as a glossy 3D render",
    "flag: netherlands emoji as a glossy 3D render",
];
/// How long the network may take for a change of owner.
const PATIENCE: Duration = Duration::from_secs(60);

/// Watch a network of real nodes train experts, lose a node, and draw with the mixture.
///
/// Prepares pictures into clusters, starts nodes as separate processes on loopback, kills one with SIGKILL half-way, and at the end lets a fresh peer join
/// by ticket, fetch every checkpoint from the others, and draw.
#[derive(Args)]
pub struct Demo {
    /// Minutes of training.
    #[arg(long, default_value_t = 2.5, value_parser = span)]
    minutes: f64,

    /// Nodes that train.
    #[arg(long, default_value_t = 4)]
    nodes: usize,

    /// Clusters, and so experts.
    #[arg(long, default_value_t = 4)]
    clusters: usize,

    /// Pictures with captions, as `paris-node data prepare` takes them; the bundled emoji if not given.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// What to draw, once for each prompt; captions of the data if not given.
    #[arg(long = "prompt", value_name = "PROMPT")]
    prompts: Vec<String>,

    /// Where the nodes' data directories and logs go; a new temporary folder if not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// The picture.
    #[arg(long, default_value = "paris-demo.png", value_name = "FILE")]
    out: PathBuf,
}

impl Demo {
    /// Runs the demo to its end.
    pub fn run(self) -> anyhow::Result<()> {
        if self.nodes < 2 || self.clusters < 1 {
            bail!("the demo takes 2 nodes or more (one is killed), and 1 cluster or more");
        }
        let root = match &self.dir {
            Some(dir) => {
                fs::create_dir_all(dir)?;
                dir.clone()
            }
            None => tempfile::Builder::new().prefix("paris-demo-").tempdir()?.keep(),
        };
        let program = env::current_exe()?;
        let total = Duration::from_secs_f64(self.minutes * 60.0);
        let mut view = View::new(total);
        let mut nodes = Vec::new();
        for number in 0..self.nodes {
            nodes.push(NodeProcess::new(&program, &root, &format!("node-{number}"))?);
        }

        self.start_run(&nodes[0], &root, &mut view)?;
        let started = Instant::now();
        let ticket = start_nodes(&mut nodes)?;
        view.say(&format!("{} nodes run; their logs are in {}", nodes.len(), root.display()));
        let mut network = Network { nodes, view };

        network.watch_until(started + total / 2, |_| false)?;
        network.lose_a_node()?;
        network.watch_until(started + total, |_| false)?;

        self.draw(&mut network, &program, &root, &ticket)
    }

    /// The organiser's part: prepare pictures, fix the manifest.
    fn start_run(&self, organiser: &NodeProcess, root: &Path, view: &mut View) -> anyhow::Result<()> {
        let pictures = self.data.clone().unwrap_or_else(|| BUNDLED_PICTURES.into());
        let prepared = root.join("prepared");
        let clusters = self.clusters.to_string();
        let source = [pictures.as_os_str(), "--out".as_ref(), prepared.as_os_str()];
        let prepare = ["data", "prepare", "--size", "16", "--clusters", &clusters].map(AsRef::as_ref);
        let said = organiser.answer(prepare.into_iter().chain(source))?;
        said.lines().for_each(|line| view.say(line));
        let mut new = vec!["manifest", "new", "--name", "demo", "--data"];
        let prepared = prepared.to_str().context("the demo's folder has a name that is not UTF-8")?;
        new.push(prepared);
        new.extend(["--width", "96", "--depth", "3", "--heads", "4", "--patch", "2"]);
        new.extend(["--router-width", "64", "--router-depth", "2", "--ema", "0.998"]);
        new.extend(["--learning-rate", "2e-3"]);
        new.extend(["--heartbeat-ms", "1000", "--ttl-ms", "6000", "--checkpoint-ms", "10000"]);
        let said = organiser.answer(new)?;
        view.say(said.lines().next().unwrap_or_default());
        Ok(())
    }

    /// A fresh peer joins by ticket, fetches every checkpoint from the others, and draws.
    fn draw(&self, network: &mut Network, program: &Path, root: &Path, ticket: &str) -> anyhow::Result<()> {
        let artist = NodeProcess::new(program, root, "artist")?;
        artist.answer(["join", ticket])?;
        network.view.say("a fresh peer joins by ticket, fetches the checkpoints from the others, and draws");
        let prompts = match (self.prompts.is_empty(), &self.data) {
            (false, _) => self.prompts.clone(),
            (true, None) => BUNDLED_PROMPTS.map(str::to_owned).to_vec(),
            (true, Some(_)) => captions(&root.join("prepared"))?,
        };
        let out = std::path::absolute(&self.out)?;
        let mut arguments = ["sample", "-n", "6", "--steps", "24", "--cfg", "2", "--out"].map(str::to_owned).to_vec();
        arguments.push(out.display().to_string());
        arguments.extend(prompts.iter().cloned());
        let output = artist.call(&arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        said.lines().for_each(|line| network.view.say(line));
        if !output.status.success() {
            bail!("the fresh peer could not draw");
        }
        for (row, prompt) in prompts.iter().enumerate() {
            network.view.say(&format!("row {}: {prompt}", row + 1));
        }
        network.view.say(&format!("the picture: {}", out.display()));
        Ok(())
    }
}

/// Starts every node, the organiser first, and returns its ticket.
fn start_nodes(nodes: &mut [NodeProcess]) -> anyhow::Result<String> {
    let (organiser, others) = nodes.split_first_mut().context("there is a node")?;
    organiser.run(&[])?;
    let status = organiser.wait_until("it listens", PATIENCE, |status| status.ticket.is_some())?;
    let ticket = status.ticket.context("a running node has a ticket")?;
    for node in others {
        node.answer(["join", &ticket])?;
        node.run(&[])?;
    }
    Ok(ticket)
}

/// Captions to draw: one of each cluster's first held-out pictures.
fn captions(prepared: &Path) -> anyhow::Result<Vec<String>> {
    let clusters = paris_model::data::Prepared::read(prepared)?.clusters;
    let mut captions = Vec::new();
    for shard in clusters.iter().filter_map(|cluster| cluster.held_out.first().or(cluster.train.first())) {
        let shard = paris_model::data::Shard::read(&shard.load(prepared)?)?;
        captions.extend(shard.captions().iter().take(2).cloned());
    }
    Ok(captions)
}

/// The running nodes and the screen.
struct Network {
    nodes: Vec<NodeProcess>,
    view: View,
}

impl Network {
    /// Shows the run until a moment, or until `done`.
    fn watch_until(&mut self, until: Instant, mut done: impl FnMut(&Status) -> bool) -> anyhow::Result<bool> {
        while Instant::now() < until {
            if let Some(status) = self.status() {
                let names = self.names();
                self.view
                    .show(&status, &|id| names.iter().find(|(it, _)| it == id).map_or(id.into(), |it| it.1.clone()));
                if done(&status) {
                    return Ok(true);
                }
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(false)
    }

    /// The organiser's view of the run.
    fn status(&self) -> Option<Status> {
        self.nodes.first()?.status()
    }

    /// Ids and names of the nodes.
    fn names(&self) -> Vec<(String, String)> {
        let id = |node: &NodeProcess| node.dir().keypair().map(|keypair| keypair.id().to_string());
        self.nodes.iter().filter_map(|node| Some((id(node).ok()?, node.name().to_owned()))).collect()
    }

    /// Kills a node that owns an expert, with SIGKILL, and waits until another goes on with it.
    fn lose_a_node(&mut self) -> anyhow::Result<()> {
        let status = self.status().context("the organiser answers")?;
        let names = self.names();
        let victim = status.parts.iter().find_map(|part| {
            let owner = part.owner.as_ref().filter(|_| part.checkpoint.as_ref().is_some_and(|it| it.holders > 1))?;
            let index = names.iter().position(|(id, _)| id == owner).filter(|index| *index > 0)?;
            Some((index, part.clone()))
        });
        let (index, part) =
            victim.context("no node but the organiser has published a checkpoint yet: give it more --minutes")?;
        let saved = part.checkpoint.map_or(0, |checkpoint| checkpoint.step);
        let (node, term) = (names[index].1.clone(), part.term);
        self.nodes[index].kill()?;
        self.view.say(&format!(
            "{node}, owner of {}, was killed with SIGKILL; its last checkpoint is of step {saved}",
            part.part
        ));
        let name = part.part.clone();
        let taken =
            |status: &Status| status.parts.iter().any(|it| it.part == name && it.term > term && it.step.is_some());
        if !self.watch_until(Instant::now() + PATIENCE, taken)? {
            bail!("nobody took over {name} within {PATIENCE:?}");
        }
        let now = self.status().and_then(|status| status.parts.into_iter().find(|it| it.part == name));
        if let Some((owner, step)) = now.and_then(|part| Some((part.owner?, part.step?))) {
            let owner = names.iter().find(|(id, _)| *id == owner).map_or(owner.clone(), |(_, name)| name.clone());
            self.view.say(&format!("{owner} took over {name} and goes on from there: step {step}"));
        }
        Ok(())
    }
}
