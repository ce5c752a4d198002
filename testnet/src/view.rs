//! What the demo shows while it runs.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use paris_node::status::{PartStatus, Status, parts_table};

/// Between two lines where no terminal can be redrawn.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A table that is redrawn in place on a terminal, and a line now and then elsewhere.
pub(crate) struct View {
    started: Instant,
    total: Duration,
    lines_up: usize,
    last_line: Option<Instant>,
    is_terminal: bool,
}

impl View {
    pub(crate) fn new(total: Duration) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self { started: Instant::now(), total, lines_up: 0, last_line: None, is_terminal }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        self.clear();
        println!("[{:>4}] {text}", self.clock());
    }

    /// Shows the run as some node sees it. `names` turns node ids into the testnet's names.
    pub(crate) fn show(&mut self, status: &Status, names: &dyn Fn(&str) -> String) {
        let parts: Vec<PartStatus> = status.parts.iter().cloned().map(|part| named(part, names)).collect();
        if self.is_terminal {
            self.clear();
            let table = parts_table(&parts);
            let left = self.total.saturating_sub(self.started.elapsed()).as_secs();
            println!("{table}[{:>4}] {} peers, {left} s of training left", self.clock(), status.peers + 1);
            self.lines_up = table.lines().count() + 1;
        } else if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            println!("[{:>4}] {}", self.clock(), parts.iter().map(line).collect::<Vec<_>>().join("; "));
        }
        // A screen that cannot be written to is no reason to stop the network.
        let _ = io::stdout().flush();
    }

    fn clear(&mut self) {
        if self.lines_up > 0 {
            print!("\x1b[{}A\x1b[J", self.lines_up);
            self.lines_up = 0;
        }
    }

    fn clock(&self) -> String {
        format!("{}s", self.started.elapsed().as_secs())
    }
}

/// A part in a few words.
fn line(part: &PartStatus) -> String {
    let Some(owner) = part.owner.as_deref().filter(|_| part.owner_is_live) else {
        return format!("{}: nobody", part.part);
    };
    let training = match (part.step, part.loss) {
        (Some(step), Some(loss)) => format!("step {step}, loss {loss:.3}"),
        _ => "starting".to_owned(),
    };
    let checkpoint = match &part.checkpoint {
        Some(it) => format!(", step {} held by {}", it.step, it.holders),
        None => String::new(),
    };
    format!("{}: {owner}, {training}{checkpoint}", part.part)
}

fn named(mut part: PartStatus, names: &dyn Fn(&str) -> String) -> PartStatus {
    part.owner = part.owner.map(|owner| names(&owner));
    part.is_mine = false;
    part
}
