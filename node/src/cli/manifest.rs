//! `paris-node manifest`

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum, builder::ArgPredicate};
use paris_model::data::{Prepared, ShardInfo, prepared::FILE_NAME};
use paris_protocol::{
    codec::Wire,
    identity::NodeId,
    manifest::{
        Admission, Cluster, Image, MANIFEST_VERSION, Manifest, Ownership, Shard, TextShape, Training, Transformer,
    },
    part::Part,
    ticket::Ticket,
};

use crate::{
    api::Client,
    blobs::{Blobs, BlobsConfig},
    runtime::{MANIFEST_TAG, recipe, shard_tag},
    sampling::manifest_from_hex,
    store::{DataDir, Database},
};

/// Make or show a run's manifest.
#[derive(Subcommand)]
pub(super) enum ManifestCommand {
    New(Box<New>),
    Inspect(Inspect),
}

/// Start a run of your own: fix its data, models and rules in a manifest, and join it.
///
/// The run's id is the hash of the manifest, so nothing in it can change later. The shards go into this node's blob store, from where other
/// nodes fetch what they train on.
///
/// Example: paris-node manifest new --data prepared --name "my run" --width 96 --depth 3 --heads 4
#[derive(Args)]
pub(super) struct New {
    /// The folder that `paris-node data prepare` wrote.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// What people call the run.
    #[arg(long, default_value = "a Paris run")]
    name: String,

    /// Width of the experts.
    #[arg(long, default_value_t = 192, help_heading = "Models")]
    width: u16,
    /// Transformer blocks of an expert.
    #[arg(long, default_value_t = 6, help_heading = "Models")]
    depth: u16,
    /// Attention heads of an expert.
    #[arg(long, default_value_t = 6, help_heading = "Models")]
    heads: u16,
    /// Side of a patch, in pixels, for experts and router.
    #[arg(long, default_value_t = 2, help_heading = "Models")]
    patch: u16,
    /// Width of the router.
    #[arg(long, default_value_t = 96, help_heading = "Models")]
    router_width: u16,
    /// Transformer blocks of the router.
    #[arg(long, default_value_t = 4, help_heading = "Models")]
    router_depth: u16,
    /// Attention heads of the router.
    #[arg(long, default_value_t = 4, help_heading = "Models")]
    router_heads: u16,
    /// A router that does not read the caption, as published. It cannot follow a prompt from pure noise.
    #[arg(long, help_heading = "Models")]
    router_without_caption: bool,
    /// Tokens of an encoded caption.
    #[arg(long, default_value_t = 8, help_heading = "Models")]
    text_tokens: u16,
    /// Numbers of a token.
    #[arg(long, default_value_t = 64, help_heading = "Models")]
    text_width: u16,

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

    /// Between two heartbeats of an owner, milliseconds.
    #[arg(long, default_value_t = 2_000, help_heading = "Ownership")]
    heartbeat_ms: u32,
    /// Silence after which an owner is suspected, milliseconds.
    #[arg(long, default_value_t = 20_000, help_heading = "Ownership")]
    ttl_ms: u32,
    /// Between two checkpoints of a part, milliseconds.
    #[arg(long, default_value_t = 60_000, help_heading = "Ownership")]
    checkpoint_ms: u32,
    /// Distinct nodes that must suspect a silent owner before its part may be claimed.
    #[arg(long, default_value_t = 1, help_heading = "Ownership")]
    quorum: u16,
    /// Nodes besides the owner that keep a part's latest checkpoint.
    #[arg(long, default_value_t = 2, help_heading = "Ownership")]
    replicas: u16,
    /// Who may own parts and publish. By invitation, this node's key and those of --allow are the organisers' (`paris-node invite`).
    #[arg(
        long,
        default_value = "open",
        default_value_if("allowed", ArgPredicate::IsPresent, "allow-list"),
        help_heading = "Ownership"
    )]
    admission: Policy,
    /// With an allow-list, the key of a node that may own parts besides this one; by invitation, of one that invites. May be repeated. `paris-node init`
    /// prints a key.
    #[arg(long = "allow", value_name = "KEY", help_heading = "Ownership")]
    allowed: Vec<NodeId>,
}

/// Who may own parts and publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Everyone.
    Open,
    /// The organisers, and whom they invite.
    Invite,
    /// The keys that the manifest names.
    AllowList,
}

/// Show the current run's manifest, and the ticket with which others join it.
///
/// The ticket carries addresses while the node runs; otherwise it names the run and the seeds that this node joined with.
///
/// Example: paris-node manifest inspect --json
#[derive(Args)]
pub(super) struct Inspect {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ManifestCommand {
    pub(super) async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        match self {
            ManifestCommand::New(command) => command.run(dir).await,
            ManifestCommand::Inspect(command) => command.run(dir).await,
        }
    }
}

impl New {
    async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        Database::init(dir)?;
        let _lock = dir.lock()?;
        if !self.data.join(FILE_NAME).exists() {
            bail!(
                "{} holds no prepared data (no {FILE_NAME}): run `paris-node data prepare PICTURES --out {0}` first",
                self.data.display()
            );
        }
        let prepared = Prepared::read(&self.data)?;
        let manifest = self.manifest(&prepared, dir.keypair()?.id())?;
        manifest.check()?;
        for part in manifest.parts() {
            recipe::part_config(&manifest, part).validate().with_context(|| format!("the {part} cannot be built"))?;
        }
        let (run, bytes) = (manifest.id()?, manifest.to_bytes()?);
        let size = usize::from(manifest.image.size);
        for info in shards(&prepared) {
            let shard = paris_model::data::Shard::read(&info.load(&self.data)?)?;
            if (shard.len(), shard.height(), shard.width()) != (info.samples, size, size) {
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
        let stored = self.store(&blobs, &prepared, bytes.clone()).await;
        blobs.shutdown().await;
        stored?;
        let database = Database::open(dir)?;
        database.put_manifest(run, &bytes)?;
        database.join(&Ticket { run, seeds: Vec::new() })?;
        println!("run {} {:?}: {}", run.0, manifest.name, summary(&manifest));
        println!("next: paris-node run, which prints the ticket for everyone else");
        Ok(())
    }

    /// Puts the manifest and every shard into the node's blob store.
    async fn store(&self, blobs: &Blobs, prepared: &Prepared, manifest: Vec<u8>) -> anyhow::Result<()> {
        blobs.add_bytes(MANIFEST_TAG, manifest).await?;
        for info in shards(prepared) {
            blobs.add_file(&shard_tag(&info.hash.parse()?), &info.path(&self.data)).await?;
        }
        Ok(())
    }

    fn manifest(&self, prepared: &Prepared, organiser: NodeId) -> anyhow::Result<Manifest> {
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
            version: MANIFEST_VERSION,
            name: self.name.clone(),
            image: Image { channels: 3, size: u16::try_from(prepared.settings.size)? },
            text: TextShape { tokens: self.text_tokens, width: self.text_width },
            expert: Transformer { width: self.width, depth: self.depth, heads: self.heads, patch: self.patch },
            router: Transformer {
                width: self.router_width,
                depth: self.router_depth,
                heads: self.router_heads,
                patch: self.patch,
            },
            router_reads_caption: !self.router_without_caption,
            clusters: clusters.collect::<anyhow::Result<_>>()?,
            expert_training: training,
            router_training: training,
            ownership: Ownership {
                heartbeat_ms: self.heartbeat_ms,
                ttl_ms: self.ttl_ms,
                intent_ms: self.heartbeat_ms / 2,
                listen_ms: 2 * self.heartbeat_ms,
                rank_delay_ms: self.heartbeat_ms / 2,
                checkpoint_ms: self.checkpoint_ms,
                quorum: self.quorum,
                replicas: self.replicas,
            },
            admission: self.admit(organiser)?,
        })
    }

    fn admit(&self, organiser: NodeId) -> anyhow::Result<Admission> {
        if self.admission == Policy::Open && !self.allowed.is_empty() {
            bail!("--allow names keys, and with --admission open everyone may own parts: leave one of the two out");
        }
        let mut keys = self.allowed.clone();
        keys.push(organiser);
        keys.sort_unstable();
        keys.dedup();
        Ok(match self.admission {
            Policy::Open => Admission::Open,
            Policy::Invite => Admission::Invite(keys),
            Policy::AllowList => Admission::AllowList(keys),
        })
    }
}

fn shards(prepared: &Prepared) -> impl Iterator<Item = &ShardInfo> {
    prepared.clusters.iter().flat_map(|cluster| cluster.train.iter().chain(&cluster.held_out))
}

fn shard(info: &ShardInfo) -> anyhow::Result<Shard> {
    Ok(Shard { hash: info.hash.parse()?, bytes: info.bytes, samples: u32::try_from(info.samples)? })
}

fn summary(manifest: &Manifest) -> String {
    let samples: u64 = manifest.clusters.iter().flat_map(|it| &it.train).map(|shard| u64::from(shard.samples)).sum();
    let parameters = |part| recipe::part_config(manifest, part).parameter_count();
    format!(
        "{} experts of {} parameters, a router of {}, {samples} training pictures of {size}x{size}",
        manifest.clusters.len(),
        parameters(Part::Expert(0)),
        parameters(Part::Router),
        size = manifest.image.size,
    )
}

impl Inspect {
    async fn run(self, dir: &DataDir) -> anyhow::Result<()> {
        let (manifest, ticket) = match Client::of(dir) {
            Some(client) => {
                let (manifest, status) = (client.manifest_hex().await?, client.status().await?);
                (manifest_from_hex(&manifest)?, status.ticket.unwrap_or_default())
            }
            None => stored(dir)?,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&manifest)?);
            return Ok(());
        }
        println!("run    {} {:?}", manifest.id()?.0, manifest.name);
        println!("models {}", summary(&manifest));
        for (number, cluster) in manifest.clusters.iter().enumerate() {
            let count = |shards: &[Shard]| shards.iter().map(|shard| shard.samples).sum::<u32>();
            let (train, held_out) = (count(&cluster.train), count(&cluster.held_out));
            println!("data   cluster {number}: {train} pictures to train on, {held_out} held out");
        }
        println!("ticket {ticket}");
        if ticket.parse::<Ticket>().is_ok_and(|ticket| ticket.seeds.is_empty()) {
            println!("       (it names no peer to dial: `paris-node run` prints one with which others can join)");
        }
        Ok(())
    }
}

/// Manifest and ticket of a node that does not run.
fn stored(dir: &DataDir) -> anyhow::Result<(Manifest, String)> {
    let _lock = dir.lock()?;
    let database = Database::open(dir)?;
    let run = database.current_run()?.context("this node belongs to no run yet: paris-node join TICKET")?;
    let bytes = database.manifest(run)?.context("the manifest is not here yet: `paris-node run` fetches it")?;
    let ticket = database.ticket(run)?.unwrap_or(Ticket { run, seeds: Vec::new() });
    Ok((Manifest::read(&bytes)?, ticket.to_string()))
}
