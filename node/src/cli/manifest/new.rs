//! `paris-node manifest new`

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use paris_model::{
    Device,
    data::{Prepared, Shard, ShardInfo, prepared::FILE_NAME},
    parameters::Parameters,
    preset::{self, Preset},
    text::TextEncoder,
};
use paris_protocol::{
    checkpoint::{BLOB_BYTES_MAX, Blob},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    manifest::{self, Additions, Cluster, Image, Manifest, RunId, TextShape, Training, Transformer},
    part::Part,
    ticket::Ticket,
};

use super::{super::encoders::TextChoice, ownership::OwnershipOptions, summary};
use crate::{
    blobs::{Blobs, BlobsConfig},
    encoders,
    runtime::{recipe, tags},
    store::{DataDir, Database},
};

/// Width, depth and heads of an expert without a preset.
const EXPERT: [u16; 3] = [192, 6, 6];
/// Those of the router.
const ROUTER: [u16; 3] = [96, 4, 4];

/// Start a run of your own: fix its data, models and rules in a manifest, and join it.
///
/// The run's id is the hash of the manifest, so nothing in it can change later. The shards go into this node's blob store, from where other
/// nodes fetch what they train on.
///
/// Examples: paris-node manifest new --data prepared --name "my run" --width 96 --depth 3 --heads 4; or with --preset dit-s/2 instead of the sizes
#[derive(Args)]
pub(in crate::cli) struct New {
    /// The folder that `paris-node data prepare` wrote.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// What people call the run.
    #[arg(long, default_value = "a Paris run")]
    name: String,

    /// Experts of a published size, dit-s/2, dit-b/2 or dit-xl/2, with the published router and captions of 77 tokens of 768; what else is given here
    /// counts more. They learn with smaller rates than the default one: 1e-4 is published.
    #[arg(long, help_heading = "Models")]
    preset: Option<Preset>,
    /// Width of the experts; 192 without a preset.
    #[arg(long, help_heading = "Models")]
    width: Option<u16>,
    /// Transformer blocks of an expert; 6 without a preset.
    #[arg(long, help_heading = "Models")]
    depth: Option<u16>,
    /// Attention heads of an expert; 6 without a preset.
    #[arg(long, help_heading = "Models")]
    heads: Option<u16>,
    /// Side of a patch, in pixels, for experts and router.
    #[arg(long, default_value_t = 2, help_heading = "Models")]
    patch: u16,
    /// Width of the router; 96 without a preset.
    #[arg(long, help_heading = "Models")]
    router_width: Option<u16>,
    /// Transformer blocks of the router; 4 without a preset.
    #[arg(long, help_heading = "Models")]
    router_depth: Option<u16>,
    /// Attention heads of the router; 4 without a preset.
    #[arg(long, help_heading = "Models")]
    router_heads: Option<u16>,
    /// Weights that every expert starts from, as `paris-node train base` writes them with the same shape; random ones if not given.
    #[arg(long, value_name = "FILE", help_heading = "Models")]
    base: Option<PathBuf>,
    /// Clusters whose experts predict the noise, as DDPM's do, instead of the velocity, for instance 1,3. They draw beside the others, and well only after longer
    /// training; none can start from a base.
    #[arg(long, value_name = "CLUSTERS", value_delimiter = ',', conflicts_with = "base", help_heading = "Models")]
    epsilon: Vec<u16>,
    /// A router that does not read the caption, as published. It cannot follow a prompt from pure noise.
    #[arg(long, help_heading = "Models")]
    router_without_caption: bool,
    /// What encodes captions. Every node of the run needs its files; the manifest names them by hash.
    #[arg(long, value_enum, default_value_t = TextChoice::Hashed, help_heading = "Models")]
    text: TextChoice,
    /// Tokens of an encoded caption: 8 if not given, 32 for minilm, 77 with a preset; those of clip are fixed.
    #[arg(long, help_heading = "Models")]
    text_tokens: Option<u16>,
    /// Numbers of a token: 64 if not given, 768 with a preset; those of clip and minilm are fixed.
    #[arg(long, help_heading = "Models")]
    text_width: Option<u16>,

    /// Samples a step.
    #[arg(long, default_value_t = 32, help_heading = "Training")]
    batch: u32,
    /// AdamW's learning rate.
    #[arg(long, default_value_t = 1e-3, help_heading = "Training")]
    learning_rate: f32,
    /// Steps of linear warm-up.
    #[arg(long, default_value_t = 50, help_heading = "Training")]
    warmup: u32,
    /// Decay of the averaged weights.
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    ema: f32,
    /// Share of captions dropped, for classifier-free guidance.
    #[arg(long, default_value_t = 0.1, help_heading = "Training")]
    caption_drop: f32,
    /// Steps after which a part is finished; 0 for never.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    steps: u64,

    #[command(flatten)]
    ownership: OwnershipOptions,
}

impl New {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        Database::init(dir)?;
        let _lock = dir.lock()?;
        if !self.data.join(FILE_NAME).exists() {
            bail!(
                "{} holds no prepared data (no {FILE_NAME}): run `paris-node data prepare PICTURES --out {0}` first",
                self.data.display()
            );
        }
        let prepared = Prepared::read(&self.data)?;
        let text = self.text_encoder(&dir.encoders_path())?;
        let image = self.image(&prepared)?;
        let base = self.base.as_deref().map(read_base).transpose()?;
        let additions = Additions {
            encoders: encoders::named(&text.identity(), &prepared.codec)?,
            base: base.as_deref().map(|base| Blob { hash: Hash::of(base), bytes: base.len() as u64 }),
            epsilon_experts: self.epsilon.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        };
        let mut manifest = self.manifest(&prepared, image, &*text, additions, dir.keypair()?.id())?;
        manifest.check()?;
        self.ownership.fit(&mut manifest);
        for part in manifest.parts() {
            recipe::part_config(&manifest, part).validate().with_context(|| format!("the {part} cannot be built"))?;
        }
        if let (Some(base), Some(path)) = (&base, &self.base) {
            Parameters::load(&recipe::part_config(&manifest, Part::Expert(0)), base, &Device::Cpu)
                .with_context(|| format!("{} is not the base of these experts", path.display()))?;
        }
        let (run, bytes) = (manifest.id()?, manifest.to_bytes()?);
        for info in shards(&prepared) {
            let shard = Shard::read(&info.load(&self.data)?)?;
            if shard.len() != info.samples || image_of(&shard)? != image {
                bail!(
                    "{} says of shard {} what is not in it: it was changed by hand. Run `paris-node data prepare` again",
                    self.data.join(FILE_NAME).display(),
                    info.hash
                );
            }
        }
        // Nothing is served yet: loopback will do.
        let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let blobs = Blobs::start(BlobsConfig { bind, ..BlobsConfig::new(dir.secret()?, dir.blobs_path()) }).await?;
        let stored = self.store(&blobs, &prepared, run, bytes.clone(), base).await;
        blobs.shutdown().await;
        stored?;
        let database = Database::open(dir)?;
        database.put_manifest(run, &bytes)?;
        database.join(&Ticket::new(run, []))?;
        println!("run {} {:?}: {}", run.0, manifest.name, summary(&manifest));
        println!("next: paris-node run, which prints the ticket for everyone else");
        Ok(())
    }

    /// Puts the manifest, every shard and the base into the node's blob store.
    async fn store(
        &self,
        blobs: &Blobs,
        prepared: &Prepared,
        run: RunId,
        manifest: Vec<u8>,
        base: Option<Vec<u8>>,
    ) -> anyhow::Result<()> {
        blobs.add_bytes(&tags::manifest(run), manifest).await?;
        if let Some(base) = base {
            blobs.add_bytes(&tags::base(&Hash::of(&base)), base).await?;
        }
        for info in shards(prepared) {
            blobs.add_file(&tags::shard(&info.hash.parse()?), &info.path(&self.data)).await?;
        }
        Ok(())
    }

    /// The shape of what experts learn, as the first shard has it.
    fn image(&self, prepared: &Prepared) -> anyhow::Result<Image> {
        let first = shards(prepared).next().context("the prepared data hold no shard")?;
        image_of(&Shard::read(&first.load(&self.data)?)?)
    }

    fn manifest(
        &self,
        prepared: &Prepared,
        image: Image,
        text: &dyn TextEncoder,
        additions: Additions,
        organiser: NodeId,
    ) -> anyhow::Result<Manifest> {
        let shards = |shards: &[ShardInfo]| shards.iter().map(shard).collect::<anyhow::Result<Vec<_>>>();
        let clusters = prepared
            .clusters
            .iter()
            .map(|cluster| Ok(Cluster { train: shards(&cluster.train)?, held_out: shards(&cluster.held_out)? }));
        let training = Training {
            batch: self.batch,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup,
            clip: 1.0,
            ema_decay: self.ema,
            caption_drop: self.caption_drop,
            steps: self.steps,
        };
        Ok(Manifest {
            version: additions.version(),
            name: self.name.clone(),
            image,
            text: TextShape { tokens: u16::try_from(text.tokens())?, width: u16::try_from(text.width())? },
            expert: self.transformer(self.preset, EXPERT, [self.width, self.depth, self.heads])?,
            router: self.transformer(
                self.preset.map(|_| preset::ROUTER),
                ROUTER,
                [self.router_width, self.router_depth, self.router_heads],
            )?,
            router_reads_caption: !self.router_without_caption,
            clusters: clusters.collect::<anyhow::Result<_>>()?,
            expert_training: training,
            router_training: training,
            ownership: self.ownership.ownership(),
            admission: self.ownership.admission(organiser)?,
            additions,
        })
    }

    /// The text encoder. A preset's shape is that of CLIP, which the built-in encoder takes on too.
    fn text_encoder(&self, encoders: &Path) -> anyhow::Result<Arc<dyn TextEncoder>> {
        let preset = self.preset.filter(|_| self.text == TextChoice::Hashed);
        let tokens = self.text_tokens.or(preset.map(|_| preset::TEXT_TOKENS as u16));
        let width = self.text_width.or(preset.map(|_| preset::TEXT_WIDTH as u16));
        self.text.open(encoders, tokens, width)
    }

    /// A transformer of the given width, depth and heads; what is not given is the preset's, or the usual.
    fn transformer(
        &self,
        preset: Option<Preset>,
        usual: [u16; 3],
        given: [Option<u16>; 3],
    ) -> anyhow::Result<Transformer> {
        let rest = match preset {
            Some(Preset { width, depth, heads, .. }) => [width, depth, heads],
            None => usual.map(usize::from),
        };
        let [width, depth, heads] = std::array::from_fn(|index| given[index].map_or(rest[index], usize::from));
        Ok(Transformer {
            width: width.try_into()?,
            depth: depth.try_into()?,
            heads: heads.try_into()?,
            patch: self.patch,
        })
    }
}

/// A base checkpoint's bytes.
fn read_base(path: &Path) -> anyhow::Result<Vec<u8>> {
    let reading = || format!("reading the base checkpoint {}", path.display());
    let bytes = path.metadata().with_context(reading)?.len();
    if bytes > BLOB_BYTES_MAX {
        bail!("{} has {bytes} bytes: no checkpoint has more than {BLOB_BYTES_MAX}", path.display());
    }
    fs::read(path).with_context(reading)
}

fn shards(prepared: &Prepared) -> impl Iterator<Item = &ShardInfo> {
    prepared.clusters.iter().flat_map(|cluster| cluster.train.iter().chain(&cluster.held_out))
}

/// The shape of what a shard holds.
fn image_of(shard: &Shard) -> anyhow::Result<Image> {
    let (height, width) = (shard.height(), shard.width());
    if height != width {
        bail!("a shard holds pictures of {height} x {width}, and experts learn squares");
    }
    Ok(Image { channels: u16::try_from(shard.encoding().channels())?, size: u16::try_from(height)? })
}

fn shard(info: &ShardInfo) -> anyhow::Result<manifest::Shard> {
    Ok(manifest::Shard { hash: info.hash.parse()?, bytes: info.bytes, samples: u32::try_from(info.samples)? })
}
