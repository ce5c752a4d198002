//! `paris-node manifest`

mod inspect;
mod new;
mod ownership;

use clap::Subcommand;
use paris_protocol::{
    manifest::{Image, ImageCodec, Manifest},
    part::Part,
};

use self::{inspect::Inspect, new::New};
use crate::{runtime::recipe, store::DataDir};

/// Make or show a run's manifest.
#[derive(Subcommand)]
pub(super) enum ManifestCommand {
    New(Box<New>),
    Inspect(Inspect),
}

impl ManifestCommand {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        match self {
            ManifestCommand::New(command) => command.run(dir).await,
            ManifestCommand::Inspect(command) => command.run(dir).await,
        }
    }
}

/// A run's models and data in a line.
fn summary(manifest: &Manifest) -> String {
    let samples: u64 = manifest.clusters.iter().flat_map(|it| &it.train).map(|shard| u64::from(shard.samples)).sum();
    let parameters = |part| recipe::part_config(manifest, part).parameter_count();
    let Image { channels, size } = manifest.image;
    let pictures = match manifest.additions.encoders.image {
        ImageCodec::Pixels => format!("{samples} training pictures of {size}x{size}"),
        ImageCodec::Vae { .. } => format!("{samples} training pictures as latents of {channels}x{size}x{size}"),
    };
    format!(
        "{} experts of {} parameters, a router of {}, {pictures}",
        manifest.clusters.len(),
        parameters(Part::Expert(0)),
        parameters(Part::Router),
    )
}
