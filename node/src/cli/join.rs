//! `paris-node join`

use clap::Args;
use paris_protocol::ticket::Ticket;

use crate::store::{DataDir, Database};

/// Join a run with a ticket.
///
/// The ticket names the run and some of its peers; whoever runs a node gets one from `paris-node status` or `paris-node run`. Nothing is
/// dialled yet: `paris-node run` or `paris-node sample` will, and will go on trying if no peer answers.
///
/// Example: paris-node join paris1onz6qlep...
#[derive(Args)]
pub(super) struct Join {
    /// The ticket, beginning with "paris1".
    ticket: Ticket,
}

impl Join {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let ticket = self.ticket;
        Database::init(dir)?;
        let _lock = dir.lock()?;
        let database = Database::open(dir)?;
        let before = database.current_run()?.filter(|run| *run != ticket.run());
        database.join(&ticket)?;
        let seeds = ticket.seeds().len();
        println!("joined run {} ({seeds} peer{} to begin with)", ticket.run(), if seeds == 1 { "" } else { "s" });
        if let Some(before) = before {
            println!("this node was in run {before}: what it has of it stays, and a ticket of that run leads back");
        }
        println!("next: paris-node run to train, paris-node sample \"PROMPT\" to draw");
        Ok(())
    }
}
