//! The pictures of an experiment: prepared once, opened cluster by cluster and all together.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, bail};
use paris_model::{
    Device, Tensor,
    batch::Text,
    data::{PrepareSettings, Prepared, ShardInfo, Source, Splits, prepare, prepared::FILE_NAME},
    evaluation::{contest::Prompts, distances::pictures},
    features::ImageFeatures,
    image_codec::Pixels,
    text::{HashedText, TextEncoder},
};

/// Real pictures that drawn ones are compared with, at most.
const REFERENCE_MAX: usize = 10_000;

/// Everything prepared.
pub(super) struct Data {
    pub(super) splits: Splits,
    /// The encoding of "".
    pub(super) null: Text,
}

/// Prepares `source` into `folder`, or takes what was prepared there with the same settings. Returns BLAKE3 of its record.
pub(super) fn prepared(
    source: &Path,
    folder: &Path,
    settings: &PrepareSettings,
    features: &dyn ImageFeatures,
) -> anyhow::Result<String> {
    let record = folder.join(FILE_NAME);
    match record.exists() {
        true => {
            let begun = Prepared::read(folder)?;
            if begun.settings != *settings || begun.features != features.identity() {
                bail!(
                    "{} was prepared with other settings: use another --out, or the settings it was begun with",
                    folder.display()
                );
            }
        }
        false => {
            println!("preparing {}", source.display());
            let prepared = prepare(&Source::open(source)?, folder, settings, features, &Pixels, &mut |_| {})?;
            for (number, cluster) in prepared.clusters.iter().enumerate() {
                let count = |shards: &[ShardInfo]| shards.iter().map(|shard| shard.samples).sum::<usize>();
                let (train, held_out) = (count(&cluster.train), count(&cluster.held_out));
                println!("cluster {number}: {train} pictures to train on, {held_out} held out");
            }
        }
    }
    let bytes = fs::read(&record).with_context(|| format!("reading {}", record.display()))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

impl Data {
    /// Opens what was prepared in `folder`.
    pub(super) fn open(folder: &Path, text: HashedText) -> anyhow::Result<Self> {
        let encoder: Arc<dyn TextEncoder> = Arc::new(text);
        Ok(Self { splits: Splits::open(folder, &encoder)?, null: encoder.encode(&[""], &Device::Cpu)? })
    }

    /// Training pictures to compare with, evenly over all, `[n, 3, size, size]`.
    pub(super) fn reference(&self) -> anyhow::Result<Tensor> {
        Ok(pictures(&*self.splits.all.train, &Pixels, REFERENCE_MAX)?)
    }

    /// As many held-out pictures as there are, up to `most`.
    pub(super) fn held_out(&self, most: usize) -> anyhow::Result<Tensor> {
        Ok(pictures(&*self.splits.all.held_out, &Pixels, most)?)
    }

    /// Held-out captions to draw.
    pub(super) fn prompts(&self, count: usize, seed: u64, device: &Device) -> anyhow::Result<Prompts> {
        Ok(Prompts::of(&*self.splits.all.held_out, &self.null, count, seed, device)?)
    }
}
