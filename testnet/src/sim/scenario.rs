//! Scenarios: which faults befall a simulated network, as TOML files.

use std::path::Path;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use paris_protocol::{
    hash::Hash,
    manifest::{
        Additions, Admission, Cluster, Image, MANIFEST_VERSION, Manifest, Ownership, Shard, TextShape, Training,
        Transformer,
    },
};
use serde::{Deserialize, Serialize};

use super::{liars::Lie, random::Random};

/// More nodes than these hear in cohorts, if nothing else is asked for.
const BROADCAST_NODES_MAX: u32 = 2000;

/// How gossip travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// To everyone at once, after a delay.
    #[default]
    Broadcast,
    /// From neighbour to neighbour.
    Hops,
    /// As a broadcast, to nodes that hear as one: for very many, on a network that loses nothing.
    Cohorts,
}

/// Faults and times of a simulated network. Everything has a default: an empty file is a calm network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What the report calls it.
    pub name: String,
    /// How gossip travels.
    pub gossip: Spread,
    /// Nodes start within this time, seconds.
    pub start_within_s: u64,
    /// Delay of a message, from and to, milliseconds.
    pub delay_ms: [u64; 2],
    /// Share of gossip that is late.
    pub late: f64,
    /// How late, from and to, milliseconds.
    pub late_ms: [u64; 2],
    /// Share of gossip that one receiver never hears.
    pub loss: f64,
    /// Share of gossip that arrives twice.
    pub duplicates: f64,
    /// Share of the nodes killed in an hour.
    pub kills_per_hour: f64,
    /// After how long a killed node starts again, from and to, seconds.
    pub down_s: [u64; 2],
    /// Share of the nodes suspended in an hour.
    pub suspensions_per_hour: f64,
    /// For how long, from and to, seconds.
    pub suspended_s: [u64; 2],
    /// Share of the nodes an hour that come back with an old copy of their disk, among those that own parts.
    pub restores_per_hour: f64,
    /// Partitions of the network.
    pub partitions: Vec<Partition>,
    /// Share of the nodes that leave in order.
    pub leave: f64,
    /// When they do, seconds.
    pub leave_at_s: u64,
    /// Share of the nodes that lie.
    pub liars: f64,
    /// What liars do.
    pub lies: Vec<Lie>,
    /// Liars are many keys of one, and second each other; otherwise each lies for itself.
    pub liars_collude: bool,
    /// Whether liars' keys may own parts.
    pub admits_liars: bool,
    /// Nobody owns parts but the first node and whom it invites: every node that does not lie.
    pub by_invitation: bool,
    /// Parts that a node may own.
    pub capacity: u16,
    /// The times of the run.
    pub times: Times,
}

/// A span in which the network is cut.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// When it begins, seconds.
    pub at_s: u64,
    /// How long it lasts, seconds.
    pub for_s: u64,
    /// Share of the nodes on the smaller side.
    pub share: f64,
    /// If true, the smaller side is heard and hears nothing.
    #[serde(default)]
    pub one_way: bool,
    /// If set, the network is cut and whole in turns, each for half of this time, seconds.
    #[serde(default)]
    pub flaps_s: Option<u64>,
}

/// What the manifest says of ownership.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Times {
    pub(super) heartbeat_ms: u32,
    pub(super) ttl_ms: u32,
    pub(super) intent_ms: u32,
    pub(super) listen_ms: u32,
    pub(super) rank_delay_ms: u32,
    pub(super) checkpoint_ms: u32,
    pub(super) quorum: u16,
    pub(super) replicas: u16,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            heartbeat_ms: 10_000,
            ttl_ms: 40_000,
            intent_ms: 2_000,
            listen_ms: 10_000,
            rank_delay_ms: 1_000,
            checkpoint_ms: 600_000,
            quorum: 2,
            replicas: 2,
        }
    }
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "calm".into(),
            gossip: Spread::Broadcast,
            start_within_s: 5,
            delay_ms: [5, 50],
            late: 0.0,
            late_ms: [1000, 5000],
            loss: 0.0,
            duplicates: 0.0,
            kills_per_hour: 0.0,
            down_s: [10, 600],
            suspensions_per_hour: 0.0,
            suspended_s: [10, 300],
            restores_per_hour: 0.0,
            partitions: Vec::new(),
            leave: 0.0,
            leave_at_s: 1800,
            liars: 0.0,
            lies: Lie::ALL.to_vec(),
            liars_collude: false,
            admits_liars: true,
            by_invitation: false,
            capacity: 4,
            times: Times::default(),
        }
    }
}

impl Scenario {
    /// Reads a scenario file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the scenario {}: check the path", path.display()))?;
        let scenario: Self = toml::from_str(&text)
            .with_context(|| format!("{} is no scenario: see testnet/scenarios for examples", path.display()))?;
        scenario.check().with_context(|| format!("the scenario {} makes no sense", path.display()))?;
        Ok(scenario)
    }

    /// The faults that a seed draws: of each kind some, much or none.
    pub fn drawn(seed: u64, seconds: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5ce0_a210);
        let mut share = |most: f64| match random.below(2) {
            0 => 0.0,
            _ => most * random.below(1000) as f64 / 1000.0,
        };
        let mut drawn = Self {
            name: format!("drawn by seed {seed}"),
            late: share(0.05),
            loss: share(0.3),
            duplicates: share(0.2),
            kills_per_hour: share(0.5),
            suspensions_per_hour: share(0.3),
            restores_per_hour: share(0.1),
            leave: share(0.3),
            liars: share(0.3),
            ..Self::default()
        };
        drawn.leave_at_s = seconds / 3;
        drawn.lies.retain(|_| random.below(2) == 0);
        if drawn.lies.is_empty() {
            drawn.lies = Lie::ALL.to_vec();
        }
        if drawn.lies.contains(&Lie::Squat) || drawn.lies.contains(&Lie::Fork) {
            // So that who trains nothing is found out in time.
            drawn.times.checkpoint_ms = 60_000;
        }
        for _ in 0..random.below(3) {
            let partition = Partition {
                at_s: random.below(seconds / 2),
                for_s: random.between([10, 600]),
                share: 0.5 * random.below(1000) as f64 / 1000.0,
                one_way: random.below(2) == 0,
                flaps_s: (random.below(4) == 0).then(|| random.between([20, 120])),
            };
            drawn.partitions.push(partition);
        }
        drawn
    }

    /// What was drawn, as so many nodes can be simulated: beyond some they hear in cohorts, and what those cannot show is left out.
    pub(super) fn for_nodes(self, nodes: u32) -> Self {
        match nodes > BROADCAST_NODES_MAX {
            true => Self { gossip: Spread::Cohorts, loss: 0.0, restores_per_hour: 0.0, ..self },
            false => self,
        }
    }

    /// Checks that every value is in its range, and that they go together.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let shares = [self.late, self.loss, self.duplicates, self.leave, self.liars];
        ensure!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "a share is from 0 to 1");
        let rates = [self.kills_per_hour, self.suspensions_per_hour, self.restores_per_hour];
        ensure!(rates.iter().all(|rate| (0.0..=100.0).contains(rate)), "a rate is from 0 to 100 an hour");
        let spans = [self.delay_ms, self.late_ms, self.down_s, self.suspended_s];
        ensure!(spans.iter().all(|[low, high]| low <= high), "a span goes from less to more");
        ensure!(self.partitions.iter().all(|cut| cut.flaps_s != Some(0)), "a cut that flaps needs some time for it");
        ensure!(!self.lies.is_empty(), "liars need lies");
        ensure!(
            self.gossip != Spread::Cohorts || (self.loss == 0.0 && self.restores_per_hour == 0.0),
            "nodes that hear as one lose no message alone, and do not meet their own past: take gossip = \"broadcast\""
        );
        self.manifest(1).check()?;
        Ok(())
    }

    /// True if every live node hears every other in time, so that nobody can take a live owner for gone.
    pub fn is_reliable(&self) -> bool {
        let disturbed = self.loss + self.late + self.suspensions_per_hour;
        disturbed == 0.0 && self.partitions.is_empty() && self.times.quorum > 1
    }

    /// The manifest of a run of so many parts, the router among them.
    pub fn manifest(&self, parts: u16) -> Manifest {
        let transformer = Transformer { width: 64, depth: 2, heads: 4, patch: 2 };
        let training = Training {
            batch: 16,
            learning_rate: 1e-4,
            warmup_steps: 10,
            clip: 1.0,
            ema_decay: 0.999,
            caption_drop: 0.1,
            steps: 0,
        };
        let shard = Shard { hash: Hash::of(b"a shard"), bytes: 1000, samples: 10 };
        let Times { heartbeat_ms, ttl_ms, intent_ms, listen_ms, rank_delay_ms, checkpoint_ms, quorum, replicas } =
            self.times;
        Manifest {
            version: MANIFEST_VERSION,
            name: "simulated".into(),
            image: Image { channels: 3, size: 16 },
            text: TextShape { tokens: 8, width: 32 },
            expert: transformer,
            router: transformer,
            router_reads_caption: false,
            clusters: vec![Cluster { train: vec![shard], held_out: vec![shard] }; usize::from(parts.max(2)) - 1],
            expert_training: training,
            router_training: training,
            ownership: Ownership {
                heartbeat_ms,
                ttl_ms,
                intent_ms,
                listen_ms,
                rank_delay_ms,
                checkpoint_ms,
                quorum,
                replicas,
            },
            admission: Admission::Open,
            additions: Additions::default(),
        }
    }
}
