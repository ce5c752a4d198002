//! `paris-node import`

use clap::Args;

use crate::{models, models::ModelSource, store::DataDir};

/// Take in a published mixture, to draw with it by name, without any run or network.
///
/// SOURCE is a folder in the layout in which Paris's weights are published, or hub:OWNER/NAME, which is downloaded first into the hub's usual cache
/// (HF_HOME) and goes on where it broke off. Every name and shape is compared with the folder's own configs, and all that is wrong is said at once; then
/// every number is read. The files become links to the same bytes where the disk can, copies elsewhere.
///
/// Nothing has to be imported: `paris-node sample --model` takes a folder or hub:OWNER/NAME as well.
///
/// Example: paris-node import hub:bageldotcom/paris --name paris, then paris-node sample "a red heart" --model paris
#[derive(Args)]
pub(super) struct Import {
    /// A folder, or hub:OWNER/NAME.
    source: ModelSource,

    /// What to call it here; the folder's or repository's name if not given.
    #[arg(long)]
    name: Option<String>,
}

impl Import {
    pub(super) fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let published = self.source.open(dir)?;
        let name = match self.name {
            Some(name) => name,
            None => self.source.name()?,
        };
        let folder = models::import(dir, &published, &name, &mut |file| eprintln!("reading {}", file.display()))?;
        let experts = published.experts.len();
        println!("{name}: {experts} experts and a router, in {}", folder.display());
        println!("next: paris-node sample \"a red heart\" --model {name}");
        Ok(())
    }
}
