//! `paris-node invite`

use anyhow::Context;
use clap::Args;
use paris_protocol::identity::NodeId;

use crate::{api::Client, store::DataDir};

/// Let a machine own parts, in a run by invitation (`manifest new --admission invite`).
///
/// Works where an organiser's node runs. The key is what `paris-node init`, and `status` on the machine that waits, print. An invitation holds as long as the
/// run, and cannot be taken back.
///
/// Example: paris-node invite KEY
#[derive(Args)]
pub(super) struct Invite {
    /// The key of the machine's node.
    key: NodeId,
}

impl Invite {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let client = Client::of(dir).context("no node runs here: start it with `paris-node run`, then invite")?;
        match client.invite(self.key).await? {
            true => println!("invited {}: it may own parts from now on", self.key.key()),
            false => println!("{} may own parts already", self.key.key()),
        }
        Ok(())
    }
}
