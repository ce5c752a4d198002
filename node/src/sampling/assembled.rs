//! The checkpoints of a run, as files, to draw with or to publish.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use paris_model::{
    Device,
    config::{ExpertConfig, PartConfig, RouterConfig},
    expert::Expert,
    hub::{CodecSource, Exported, ExportedPart, TextSource, export},
    objective::Objective,
    parameters::Parameters,
    router::Router,
    sampler::Calibration,
    tensor_file::TensorFile,
};
use paris_protocol::{codec::Wire, manifest::Manifest, mixture::Mixture as Record, part::Part};

use super::{Drawing, Ingredients, Place};
use crate::{
    hex,
    runtime::{AssembledPart, Assembly, recipe},
};

/// A run's mixture, as far as its parts are here.
pub struct Assembled {
    manifest: Manifest,
    parts: Vec<(Part, AssembledPart)>,
    missing: Vec<Part>,
    record: Record,
}

/// A manifest from hexadecimal, as the local API gives it.
pub fn manifest_from_hex(text: &str) -> anyhow::Result<Manifest> {
    Ok(Manifest::read(&hex::decode(text).context("the node sent a manifest that is no hexadecimal")?)?)
}

impl Assembled {
    /// Takes every part that is here. Without a single expert there is nothing to draw with; without the router all experts count alike.
    pub fn of(assembly: &Assembly) -> anyhow::Result<Self> {
        let manifest = manifest_from_hex(&assembly.manifest)?;
        let (mut parts, mut missing) = (Vec::new(), Vec::new());
        for part in manifest.parts() {
            match assembly.parts.iter().find(|it| it.part == part.name() && it.path.is_some()) {
                Some(assembled) => parts.push((part, assembled.clone())),
                None => missing.push(part),
            }
        }
        if !parts.iter().any(|(part, _)| matches!(part, Part::Expert(_))) {
            bail!(
                "no expert's checkpoint is to be had yet: is anyone training this run? `paris-node status` shows what is known"
            );
        }
        let record = hex::decode(&assembly.mixture).context("the node sent a mixture that is no hexadecimal")?;
        let record = Record::from_bytes(&record)?.only(|part| !missing.contains(&part));
        Ok(Self { manifest, parts, missing, record })
    }

    /// The record of the checkpoints.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Which experts are used, and which are missing.
    pub fn describe(&self) -> String {
        let used: Vec<_> =
            self.parts.iter().map(|(_, it)| format!("{} (step {}, by {})", it.part, it.step, it.author)).collect();
        let mut text = format!("drawing with {}", used.join(", "));
        if !self.missing.is_empty() {
            text += &format!("\nmissing: {}", self.names_of_missing());
        }
        text
    }

    fn names_of_missing(&self) -> String {
        self.missing.iter().map(Part::name).collect::<Vec<_>>().join(", ")
    }

    /// Makes it ready to draw. Files are opened now and read when their part is first used, whatever becomes of their names meanwhile.
    pub fn drawing(&self, place: Place) -> anyhow::Result<Drawing> {
        let (channels, size) = (usize::from(self.manifest.image.channels), usize::from(self.manifest.image.size));
        let mut configs: Vec<_> = self.manifest.clusters.iter().map(|_| None).collect();
        let mut experts: Vec<Option<(ExpertConfig, Weights)>> = self.manifest.clusters.iter().map(|_| None).collect();
        let mut router = None;
        for (part, assembled) in &self.parts {
            let weights = Weights::open(*part, assembled)?;
            match (part, recipe::part_config(&self.manifest, *part)) {
                (Part::Expert(cluster), PartConfig::Expert(config)) => {
                    configs[usize::from(*cluster)] = Some(PartConfig::Expert(config.clone()));
                    experts[usize::from(*cluster)] = Some((config, weights));
                }
                (_, PartConfig::Router(config)) => {
                    let parameters = weights.read(&PartConfig::Router(config.clone()), &place.device)?;
                    router = Some(Router::new(&config, &parameters)?);
                }
                _ => bail!("the manifest gives {part} the shape of another part"),
            }
        }
        let device = place.device.clone();
        let load = move |cluster: usize| {
            let (config, weights) = experts[cluster].as_ref().context("it is missing")?;
            let parameters = weights.read(&PartConfig::Expert(config.clone()), &device)?;
            Ok(Objective::Velocity.field(Expert::new(config, &parameters)?))
        };
        let ingredients = Ingredients {
            shape: (channels, size, size),
            experts: configs,
            load: Box::new(load),
            router,
            calibration: None,
            text: self.text_source(),
            codec: CodecSource::Pixels,
        };
        Drawing::new(ingredients, place)
    }

    /// Writes it in the published layout, which has no word for a part that is missing.
    pub fn export(&self, folder: &Path, calibration: Option<Calibration>) -> anyhow::Result<()> {
        ensure!(
            self.missing.is_empty(),
            "a published mixture is whole, and of this one are missing: {}. With more --wait a peer may have them",
            self.names_of_missing()
        );
        let mut experts: Vec<ExportedPart<ExpertConfig>> = Vec::new();
        let mut router: Option<ExportedPart<RouterConfig>> = None;
        for (part, assembled) in &self.parts {
            let (weights, hash, objective) = (path(assembled)?, assembled.weights.parse()?, Objective::Velocity);
            match recipe::part_config(&self.manifest, *part) {
                PartConfig::Expert(config) => experts.push(ExportedPart { config, objective, weights, hash }),
                PartConfig::Router(config) => router = Some(ExportedPart { config, objective, weights, hash }),
            }
        }
        let router = router.context("the run has no router")?;
        let (text, codec) = (self.text_source(), CodecSource::Pixels);
        Ok(export(folder, &Exported { experts, router, calibration, text, codec })?)
    }

    fn text_source(&self) -> TextSource {
        TextSource::Hashed(recipe::text_encoder(&self.manifest))
    }
}

/// A part's weights on disk, believed only if they hash to what the record says.
struct Weights {
    part: Part,
    file: TensorFile,
    hash: blake3::Hash,
}

impl Weights {
    fn open(part: Part, assembled: &AssembledPart) -> anyhow::Result<Self> {
        let path = path(assembled)?;
        let file = TensorFile::open(&path).with_context(|| format!("the checkpoint of {part}, {}", path.display()))?;
        Ok(Self { part, file, hash: assembled.weights.parse()? })
    }

    fn read(&self, config: &PartConfig, device: &Device) -> anyhow::Result<Parameters> {
        let read = Parameters::read(config, &self.file, device);
        let (parameters, hash) = read.with_context(|| format!("the checkpoint of {}", self.part))?;
        if hash != self.hash {
            bail!("{} was damaged on disk while it was read: try again", self.file.path().display());
        }
        Ok(parameters.to_compute()?)
    }
}

fn path(assembled: &AssembledPart) -> anyhow::Result<PathBuf> {
    assembled.path.clone().context("the part was not fetched")
}

/// True if the part's file is here and what the record says. One that is not is removed, so that the node exports it anew.
pub fn is_here(part: &AssembledPart) -> bool {
    let Some(path) = &part.path else { return false };
    let whole = fs::File::open(path)
        .and_then(|file| Ok(blake3::Hasher::new().update_reader(file)?.finalize().to_hex().as_str() == part.weights));
    let whole = whole.unwrap_or(false);
    if !whole {
        tracing::warn!("{} is damaged; it is taken from the blob store anew", path.display());
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
    whole
}
