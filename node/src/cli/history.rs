//! `paris-node history`

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use crate::{
    api::Client,
    history::{self, History, Line, PartHistory, plot},
    store::{DataDir, Database},
};

/// Lines that are shown.
const SHOWN: usize = 20;

/// Show how a part's training went on this machine: losses, gradient norm, speed and where the time went, a line every few seconds.
///
/// Works whether the node runs or not. What is old is kept in coarser steps, so that weeks fit. "norm" is the gradients' norm before clipping.
///
/// Examples: paris-node history expert-0; paris-node history router --plot router.svg
#[derive(Args)]
pub(super) struct HistoryCommand {
    /// The part: expert-0, expert-1, ..., or router.
    part: String,

    /// Print all of it as JSON, the same structure as the local API's.
    #[arg(long)]
    json: bool,

    /// Draw losses and the time's split to this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl HistoryCommand {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let run = match Client::of(dir) {
            Some(client) => client.status().await?.run,
            None => {
                let _lock = dir.lock()?;
                let run = Database::open(dir)?.current_run()?;
                run.context("this node belongs to no run yet: paris-node join TICKET")?.0.to_string()
            }
        };
        let known = History::new(dir.history_path(&run));
        let lines = known.lines(&self.part).with_context(|| format!("reading {}", known.path(&self.part).display()))?;
        if lines.is_empty() {
            let parts = known.parts();
            match parts.is_empty() {
                true => bail!("no part was trained on this machine yet in this run"),
                false => bail!("{:?} was not trained on this machine; these were: {}", self.part, parts.join(", ")),
            }
        }
        if let Some(path) = &self.plot {
            let svg = plot::svg(&self.part, &history::thinned(lines.clone(), plot::POINTS_MAX));
            std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
            eprintln!("{}", path.display());
        }
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&PartHistory::new(self.part, lines))?),
            false if self.plot.is_none() => print!("{}", table(history::thinned(lines, SHOWN))),
            false => {}
        }
        Ok(())
    }
}

/// Intervals as rows, events between them.
fn table(lines: Vec<Line>) -> String {
    let mut table = format!("{:>9} {:>9} {:>9} {:>8} {:>10}  time\n", "step", "loss", "held out", "norm", "samples/s");
    for line in lines {
        match line {
            Line::Steps(it) => {
                let shares = it.split.named().map(|(name, seconds)| (name, 100.0 * seconds / it.seconds.max(1e-9)));
                let shares = shares.into_iter().filter(|(_, share)| *share >= 0.5);
                let shares: Vec<_> = shares.map(|(name, share)| format!("{name} {share:.0} %")).collect();
                let held_out = it.held_out_loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"));
                table += &format!(
                    "{:>9} {:>9.4} {held_out:>9} {:>8.3} {:>10.1}  {}\n",
                    it.step,
                    it.loss,
                    it.gradient_norm,
                    it.samples_per_s,
                    shares.join(", ")
                );
            }
            Line::Event(it) => table += &format!("{:>9} {}: {}\n", it.step, it.event, it.message),
        }
    }
    table
}
