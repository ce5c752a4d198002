//! `paris-node export`

use std::{path::PathBuf, time::Duration};

use clap::Args;
use paris_protocol::hash::Hash;

use super::{asked::Asked, sample::calibration};
use crate::{sampling::Assembled, store::DataDir};

/// Write a run's mixture as a folder in the layout in which Paris's weights are published.
///
/// The weights are those to sample with (averaged, f32), byte for byte as they were checkpointed. The folder says as well which text encoder and image codec
/// they learnt with. It appears whole or not at all; `paris-node sample --model DIR` draws with it, anywhere, without the run.
///
/// Example: paris-node export my-mixture
#[derive(Args)]
pub(super) struct Export {
    /// The folder to write; it must not exist, or be empty.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Write this mixture instead of the best checkpoints of now.
    #[arg(long, value_name = "HASH")]
    mixture: Option<Hash>,

    /// Temperatures of the router to publish with it, as JSON.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// Seconds to wait for checkpoints that are not here.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

impl Export {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let calibration = self.calibration.as_deref().map(calibration).transpose()?;
        let wait = Duration::from_secs(self.wait);
        let asked = Asked::of(dir, wait).await?;
        let exported = async {
            let assembly = match self.mixture {
                Some(hash) => asked.mixture(hash, wait).await?,
                None => asked.assemble(wait).await?,
            };
            let assembled = Assembled::of(&assembly)?;
            tokio::task::block_in_place(|| assembled.export(&self.folder, calibration))?;
            anyhow::Ok(assembled.record().hash()?)
        };
        let exported = exported.await;
        asked.leave().await?;
        println!("mixture {} is in {}", exported?, self.folder.display());
        Ok(())
    }
}
