//! `paris-node join`

use clap::Args;
use paris_protocol::ticket::Ticket;

use crate::store::{DataDir, Database};

/// Join a run with a ticket.
///
/// The ticket names the run and some of its peers; whoever runs a node gets one from `paris-node status` or `paris-node run`. Nothing is
/// dialled yet: `paris-node run` or `paris-node sample` will, and will go on trying if no peer answers.
#[derive(Args)]
pub(super) struct Join {
    /// The ticket, beginning with "paris1".
    ticket: String,
}

impl Join {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let ticket: Ticket = self.ticket.parse()?;
        dir.init()?;
        let _lock = dir.lock()?;
        Database::open(dir)?.join(&ticket)?;
        println!(
            "joined run {} ({} seeds)\nnext: paris-node run to train, paris-node sample \"PROMPT\" to draw",
            ticket.run,
            ticket.seeds.len()
        );
        Ok(())
    }
}
