//! From the manifest's plain numbers to what the model crate takes.

use paris_model::{
    config::{ExpertConfig, PartConfig, RouterConfig},
    objective::Objective,
    trainer::TrainSettings,
};
use paris_protocol::{
    hash::Hash,
    manifest::{Manifest, RunId, Shard},
    part::Part,
};

/// The model of a part.
pub fn part_config(manifest: &Manifest, part: Part) -> PartConfig {
    let (channels, size) = (usize::from(manifest.image.channels), usize::from(manifest.image.size));
    let (text_tokens, text_width) = (usize::from(manifest.text.tokens), usize::from(manifest.text.width));
    match part {
        Part::Expert(_) => {
            let shape = manifest.expert;
            PartConfig::Expert(ExpertConfig {
                channels,
                size,
                patch: shape.patch.into(),
                width: shape.width.into(),
                depth: shape.depth.into(),
                heads: shape.heads.into(),
                text_tokens,
                text_width,
            })
        }
        Part::Router => {
            let shape = manifest.router;
            PartConfig::Router(RouterConfig {
                channels,
                size,
                patch: shape.patch.into(),
                width: shape.width.into(),
                depth: shape.depth.into(),
                heads: shape.heads.into(),
                clusters: manifest.clusters.len(),
                caption_width: manifest.router_reads_caption.then_some(text_width),
            })
        }
    }
}

/// What a part predicts; of the router it says nothing.
pub fn objective(manifest: &Manifest, part: Part) -> Objective {
    if manifest.predicts_noise(part) { Objective::Epsilon } else { Objective::Velocity }
}

/// How a part is trained.
pub fn train_settings(manifest: &Manifest, part: Part) -> TrainSettings {
    let training = manifest.training(part);
    TrainSettings {
        batch: training.batch as usize,
        learning_rate: training.learning_rate.into(),
        warmup_steps: training.warmup_steps.into(),
        clip: training.clip.into(),
        ema_decay: training.ema_decay.into(),
        caption_drop: training.caption_drop,
        objective: objective(manifest, part),
    }
}

/// What keys all randomness of a part's training.
pub fn training_key(run: RunId, part: Part) -> [u8; 32] {
    Hash::of_fields("paris-node 1 training", &[&run.0.0, part.name().as_bytes()]).0
}

/// The shards of a part, each with its cluster.
pub struct PartShards {
    /// To train on.
    pub train: Vec<(Shard, u32)>,
    /// To measure on.
    pub held_out: Vec<(Shard, u32)>,
}

/// The shards that a part needs: its own cluster's, or all for the router.
pub fn shards(manifest: &Manifest, part: Part) -> PartShards {
    let mine = |cluster: &usize| match part {
        Part::Expert(own) => usize::from(own) == *cluster,
        Part::Router => true,
    };
    let of = |select: fn(&paris_protocol::manifest::Cluster) -> &Vec<Shard>| {
        let clusters = manifest.clusters.iter().enumerate().filter(|(cluster, _)| mine(cluster));
        clusters.flat_map(|(label, cluster)| select(cluster).iter().map(move |shard| (*shard, label as u32))).collect()
    };
    PartShards { train: of(|cluster| &cluster.train), held_out: of(|cluster| &cluster.held_out) }
}
