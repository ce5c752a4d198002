//! `paris-node init`

use clap::Args;

use crate::store::{DataDir, Database};

/// Make the data directory and this node's key.
///
/// The key is the node's identity on the network; it lies in DATA_DIR/node.key, readable by you alone. Keep a copy. Running `init` again changes
/// nothing: a key is never replaced. What it prints as the key is the public half, which an organiser may ask for. `join` and `manifest new` do it too, where it was not done.
///
/// Example: paris-node init --data-dir /srv/paris
#[derive(Args)]
pub(super) struct Init {}

impl Init {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let is_new = Database::init(dir)?;
        let node = dir.keypair()?.id();
        let path = dir.root().display();
        match is_new {
            true => println!(
                "node {node} is ready in {path}\nkey  {}\nnext: paris-node join TICKET, or paris-node manifest new for a run of your own",
                node.key()
            ),
            false => println!("node {node} was ready in {path} already; nothing changed\nkey  {}", node.key()),
        }
        Ok(())
    }
}
