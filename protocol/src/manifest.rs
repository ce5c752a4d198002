//! The run manifest: everything the peers of one run must agree on before they meet.

mod additions;
mod encoders;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use additions::Additions;
pub use encoders::{Encoders, ImageCodec, TextEncoder, TextFiles};

use crate::{
    checkpoint::BLOB_BYTES_MAX,
    codec::{CodecError, Wire},
    hash::Hash,
    identity::NodeId,
    part::Part,
};

/// The most clusters a run may have.
pub const CLUSTERS_MAX: usize = 1024;
/// The most organisers a run by invitation may have: each may fill a share of every register.
pub const ORGANISERS_MAX: usize = 8;
/// The version of a manifest without [`Additions`].
pub const MANIFEST_VERSION: u16 = 1;
/// The version of one with [`Additions`], and the latest that this code reads.
pub const ADDITIONS_VERSION: u16 = 2;

/// A run's name on the network: the BLAKE3 hash of its manifest's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub Hash);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.short())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One training effort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version, [`Additions::version`].
    pub version: u16,
    /// What people call the run; at most 100 bytes.
    pub name: String,
    /// The pictures' shape.
    pub image: Image,
    /// The shape of an encoded caption.
    pub text: TextShape,
    /// The experts' transformer.
    pub expert: Transformer,
    /// The router's transformer.
    pub router: Transformer,
    /// Whether the router also reads the pooled caption.
    pub router_reads_caption: bool,
    /// The prepared data, a cluster each; their number is K.
    pub clusters: Vec<Cluster>,
    /// How experts are trained.
    pub expert_training: Training,
    /// How the router is trained.
    pub router_training: Training,
    /// How parts change hands.
    pub ownership: Ownership,
    /// Who may own parts.
    pub admission: Admission,
    /// What version 2 adds. Last, and nothing at all on the wire where there is nothing, so that a run of version 1 keeps its bytes and its id.
    #[serde(with = "additions::default_or_end")]
    pub additions: Additions,
}

/// The shape of a picture, or of a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Channels: 3 for pixels, 4 for Stable Diffusion latents.
    pub channels: u16,
    /// Width and height.
    pub size: u16,
}

/// The shape of an encoded caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextShape {
    /// Tokens a caption.
    pub tokens: u16,
    /// Numbers a token.
    pub width: u16,
}

/// A diffusion transformer's size (paper, table of architectures).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transformer {
    /// Width of the residual stream.
    pub width: u16,
    /// Blocks.
    pub depth: u16,
    /// Attention heads; divides the width.
    pub heads: u16,
    /// Side of the square patch that makes a token.
    pub patch: u16,
}

/// A cluster's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Shards to train on.
    pub train: Vec<Shard>,
    /// Shards never trained on.
    pub held_out: Vec<Shard>,
}

/// A content-addressed file of prepared samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// BLAKE3 of the file.
    pub hash: Hash,
    /// Its length, bytes.
    pub bytes: u64,
    /// Samples in it.
    pub samples: u32,
}

/// How a part is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Samples a step.
    pub batch: u32,
    /// AdamW's learning rate after warm-up.
    pub learning_rate: f32,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// The gradient norm above which gradients are scaled down.
    pub clip: f32,
    /// Decay of the averaged weights that are published and sampled with.
    pub ema_decay: f32,
    /// Share of captions replaced by the empty one, for classifier-free guidance.
    pub caption_drop: f32,
    /// Steps after which the part is finished; 0 means never.
    pub steps: u64,
}

/// The times and counts by which parts change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Between two heartbeats of an owner, milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which an owner is suspected, milliseconds.
    pub ttl_ms: u32,
    /// Between claiming a part and touching its data, milliseconds.
    pub intent_ms: u32,
    /// Listening before the first claim, milliseconds.
    pub listen_ms: u32,
    /// What each rank waits longer than the one before, milliseconds.
    pub rank_delay_ms: u32,
    /// Between two published checkpoints of a part, milliseconds.
    pub checkpoint_ms: u32,
    /// Distinct keys that must suspect an owner before its part may be claimed.
    pub quorum: u16,
    /// Peers besides the owner that keep a part's head.
    pub replicas: u16,
}

/// Who may own parts and publish checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// Every key.
    Open,
    /// These keys.
    AllowList(Vec<NodeId>),
    /// These keys, the organisers, and whom they invite while the run goes on.
    Invite(Vec<NodeId>),
}

/// A manifest that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are no manifest.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A value is out of its range.
    #[error("the manifest's {field} is {value}: {needed}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// Written for another version of the software.
    #[error(
        "the manifest has version {0}, this program reads up to version {ADDITIONS_VERSION}: use the release that the run was made with"
    )]
    Version(u16),
}

impl Wire for Manifest {
    const NAME: &'static str = "run manifest";
    const LIMIT: usize = 1 << 20;
}

impl Manifest {
    /// The run's name: the hash of the manifest's bytes.
    pub fn id(&self) -> Result<RunId, ManifestError> {
        Ok(RunId(Hash::of(&self.to_bytes()?)))
    }

    /// Reads and checks a manifest. Whoever fetched the bytes compares their hash with the run's id.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        // The version stands first, so that a newer manifest is called newer, not garbage.
        match bytes.first() {
            Some(&version) if !(MANIFEST_VERSION..=ADDITIONS_VERSION).contains(&version.into()) => {
                Err(ManifestError::Version(version.into()))
            }
            _ => {
                let manifest = Self::from_bytes(bytes)?;
                manifest.check()?;
                Ok(manifest)
            }
        }
    }

    /// All parts of the run, experts first.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        (0..self.clusters.len() as u16).map(Part::Expert).chain([Part::Router])
    }

    /// True if the run has the part.
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::Expert(cluster) => usize::from(cluster) < self.clusters.len(),
            Part::Router => true,
        }
    }

    /// How `part` is trained.
    pub fn training(&self, part: Part) -> &Training {
        match part {
            Part::Expert(_) => &self.expert_training,
            Part::Router => &self.router_training,
        }
    }

    /// True for an expert that predicts the noise of the cosine schedule instead of the velocity.
    pub fn predicts_noise(&self, part: Part) -> bool {
        matches!(part, Part::Expert(cluster) if self.additions.epsilon_experts.binary_search(&cluster).is_ok())
    }

    /// True if `node` may own parts by the manifest's word alone; in a run by invitation these are the organisers, and the
    /// [`register`](crate::register::Register::admits) knows the others.
    pub fn admits(&self, node: NodeId) -> bool {
        match &self.admission {
            Admission::Open => true,
            Admission::AllowList(keys) | Admission::Invite(keys) => keys.contains(&node),
        }
    }

    /// True if organisers let others in while the run goes on.
    pub fn is_by_invitation(&self) -> bool {
        matches!(self.admission, Admission::Invite(_))
    }

    /// Checks every range on which a node's memory or time depends.
    pub fn check(&self) -> Result<(), ManifestError> {
        fn range(
            field: &'static str,
            value: impl fmt::Display,
            fits: bool,
            needed: &'static str,
        ) -> Result<(), ManifestError> {
            match fits {
                true => Ok(()),
                false => Err(ManifestError::Field { field, value: value.to_string(), needed }),
            }
        }
        if !(MANIFEST_VERSION..=ADDITIONS_VERSION).contains(&self.version) {
            return Err(ManifestError::Version(self.version));
        }
        let fits = self.version == self.additions.version();
        range(
            "version",
            self.version,
            fits,
            "2 where pretrained networks or experts that predict noise are named, 1 elsewhere",
        )?;
        range("name", format!("{} bytes", self.name.len()), self.name.len() <= 100, "at most 100 bytes")?;
        let clusters = self.clusters.len();
        range("number of clusters", clusters, (1..=CLUSTERS_MAX).contains(&clusters), "1 to 1024")?;
        let Image { channels, size } = self.image;
        range("image channels", channels, (1..=64).contains(&channels), "1 to 64")?;
        let pixels = self.additions.encoders.image == ImageCodec::Pixels;
        range("image channels", channels, !pixels || channels == 3, "3 where experts learn pixels")?;
        range("image size", size, (1..=1024).contains(&size), "1 to 1024")?;
        let TextShape { tokens, width } = self.text;
        range("text tokens", tokens, (1..=1024).contains(&tokens), "1 to 1024")?;
        range("text width", width, (1..=8192).contains(&width), "1 to 8192")?;
        for transformer in [&self.expert, &self.router] {
            let Transformer { width, depth, heads, patch } = *transformer;
            range("depth", depth, (1..=256).contains(&depth), "1 to 256")?;
            range("heads", heads, (1..=256).contains(&heads), "1 to 256")?;
            range("width", width, (4..=16384).contains(&width) && width % 4 == 0, "a multiple of 4 up to 16384")?;
            range("width", width, width % heads == 0, "a multiple of the number of heads")?;
            range("patch", patch, (1..=64).contains(&patch) && size % patch == 0, "a divisor of the image size")?;
        }
        for training in [&self.expert_training, &self.router_training] {
            range("batch", training.batch, (1..=65_536).contains(&training.batch), "1 to 65536")?;
            let rate = training.learning_rate;
            range("learning rate", rate, rate > 0.0 && rate < 1.0, "above 0 and below 1")?;
            range("clip", training.clip, training.clip > 0.0 && training.clip.is_finite(), "a number above 0")?;
            range("EMA decay", training.ema_decay, (0.0..1.0).contains(&training.ema_decay), "0 to below 1")?;
            let drop = training.caption_drop;
            range("caption drop", drop, (0.0..=1.0).contains(&drop), "0 to 1")?;
        }
        let times = &self.ownership;
        range("heartbeat", times.heartbeat_ms, (50..=600_000).contains(&times.heartbeat_ms), "50 ms to 10 minutes")?;
        let ttl = u64::from(times.ttl_ms);
        range("ttl", ttl, ttl >= 3 * u64::from(times.heartbeat_ms), "three heartbeats or more")?;
        range("checkpoint interval", times.checkpoint_ms, times.checkpoint_ms >= 100, "100 ms or more")?;
        range("quorum", times.quorum, (1..=64).contains(&times.quorum), "1 to 64")?;
        if let Some(base) = self.additions.base {
            let bytes = base.bytes;
            range("base checkpoint's length", bytes, (1..=BLOB_BYTES_MAX).contains(&bytes), "1 byte to 64 GiB")?;
        }
        let noise = &self.additions.epsilon_experts;
        let known = noise.is_sorted_by(|a, b| a < b) && noise.last().is_none_or(|last| usize::from(*last) < clusters);
        let list = || noise.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        range(
            "list of experts that predict noise",
            list(),
            known,
            "clusters of the run, each once and in ascending order",
        )?;
        let startable = noise.is_empty() || self.additions.base.is_none();
        range(
            "list of experts that predict noise",
            list(),
            startable,
            "empty where experts start from a base, which predicts velocities",
        )?;
        if let Admission::Invite(organisers) = &self.admission {
            let count = organisers.len();
            range("number of organisers", count, (1..=ORGANISERS_MAX).contains(&count), "1 to 8")?;
        }
        for cluster in &self.clusters {
            let samples: u64 = cluster.train.iter().map(|shard| u64::from(shard.samples)).sum();
            range("training samples of a cluster", samples, samples > 0, "1 or more")?;
            for shard in cluster.train.iter().chain(&cluster.held_out) {
                range("shard length", shard.bytes, shard.bytes <= 4 << 30, "at most 4 GiB")?;
            }
        }
        Ok(())
    }
}
