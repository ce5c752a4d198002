//! How far the training pictures of one prepared set lie from those of another: the floor under every distance of drawn pictures, since real ones do no
//! better.
//!
//! `cargo run --release -p paris-node --example distance -- A B [--features mobilenet --encoders DIR]`

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use clap::Parser;
use paris_model::{
    Tensor,
    data::Splits,
    evaluation::distances::{NamedFeatures, Reference, pictures},
    image_codec::Pixels,
    text::{HashedText, TextEncoder},
};
use paris_node::cli::encoders::FeaturesChoice;

#[derive(Parser)]
#[command(about = "Distances between the training pictures of two sets that `paris-node data prepare` left, as pixels")]
struct Distance {
    /// The folder of the one.
    a: PathBuf,
    /// The folder of the other.
    b: PathBuf,
    /// What distances are taken in.
    #[arg(long, value_enum, default_value = "colour-and-edges")]
    features: FeaturesChoice,
    /// Where pretrained encoders lie, a folder each.
    #[arg(long, env = "PARIS_ENCODERS", value_name = "DIR", default_value = "encoders")]
    encoders: PathBuf,
    /// Pictures of each that are compared, at most.
    #[arg(long, default_value_t = 10_000)]
    most: usize,
}

fn main() -> anyhow::Result<()> {
    let command = Distance::parse();
    let features = command.features.open(&command.encoders)?;
    let named = NamedFeatures { name: command.features.name(), features: &*features };
    let [a, b] = [&command.a, &command.b].map(|folder| real(folder, command.most));
    let (a, b) = (a?, b?);
    let reference = Reference::of(named, &a, b.dim(0)?)?;
    println!("{} pictures against {}", b.dim(0)?, reference.pictures());
    for (name, distance) in reference.distances(&b)? {
        println!("{name} {distance:.4e}");
    }
    Ok(())
}

/// Training pictures of a prepared set, evenly over all of it.
fn real(folder: &Path, most: usize) -> anyhow::Result<Tensor> {
    // Nobody reads the captions.
    let text: Arc<dyn TextEncoder> = Arc::new(HashedText { tokens: 2, width: 1 });
    let said = || folder.display().to_string();
    let train = Splits::open(folder, &text).with_context(said)?.all.train;
    ensure!(train.encoding().channels() == 3, "{}: latents, which only their codec shows", said());
    pictures(&*train, &Pixels, most).with_context(said)
}
