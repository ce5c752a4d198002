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
    pretrained::Network,
    router::Router,
    sampler::Calibration,
    tensor_file::TensorFile,
    text::HashedText,
};
use paris_protocol::{
    codec::Wire,
    manifest::{Additions, ImageCodec, Manifest, TextEncoder},
    mixture::Mixture as Record,
    part::Part,
};

use super::{Drawing, Ingredients, Place};
use crate::{
    encoders, hex,
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

    /// Makes it ready to draw. Files are opened now and read when their part is first used, whatever becomes of their names meanwhile. The run's encoders
    /// are read from the folder `encoders`.
    pub fn drawing(&self, place: Place, encoders: &Path) -> anyhow::Result<Drawing> {
        // First: what is missing is said before anything else is read.
        let Manifest { additions: Additions { encoders: named, .. }, text, image, .. } = &self.manifest;
        let text = encoders::text_encoder(named.text, *text, encoders, &place.device)?;
        let codec = encoders::image_codec(named.image, *image, encoders, &place.device)?;
        let (channels, size) = (usize::from(self.manifest.image.channels), usize::from(self.manifest.image.size));
        let mut configs: Vec<_> = self.manifest.clusters.iter().map(|_| None).collect();
        let mut experts: Vec<Option<(ExpertConfig, Objective, Weights)>> =
            self.manifest.clusters.iter().map(|_| None).collect();
        let mut router = None;
        for (part, assembled) in &self.parts {
            let weights = Weights::open(*part, assembled)?;
            match (part, recipe::part_config(&self.manifest, *part)) {
                (Part::Expert(cluster), PartConfig::Expert(config)) => {
                    configs[usize::from(*cluster)] = Some(PartConfig::Expert(config.clone()));
                    experts[usize::from(*cluster)] = Some((config, recipe::objective(&self.manifest, *part), weights));
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
            let (config, objective, weights) = experts[cluster].as_ref().context("it is missing")?;
            let parameters = weights.read(&PartConfig::Expert(config.clone()), &device)?;
            Ok(objective.field(Expert::new(config, &parameters)?))
        };
        let ingredients = Ingredients {
            shape: (channels, size, size),
            experts: configs,
            load: Box::new(load),
            router,
            calibration: None,
            text,
            codec,
        };
        Drawing::new(ingredients, place)
    }

    /// Writes it in the published layout, which has no word for a part that is missing. The run's encoders are copied from the folder `encoders`.
    pub fn export(&self, folder: &Path, calibration: Option<Calibration>, encoders: &Path) -> anyhow::Result<()> {
        ensure!(
            self.missing.is_empty(),
            "a published mixture is whole, and of this one are missing: {}. With more --wait a peer may have them",
            self.names_of_missing()
        );
        let mut experts: Vec<ExportedPart<ExpertConfig>> = Vec::new();
        let mut router: Option<ExportedPart<RouterConfig>> = None;
        for (part, assembled) in &self.parts {
            let (weights, hash) = (path(assembled)?, assembled.weights.parse()?);
            let objective = recipe::objective(&self.manifest, *part);
            match recipe::part_config(&self.manifest, *part) {
                PartConfig::Expert(config) => experts.push(ExportedPart { config, objective, weights, hash }),
                PartConfig::Router(config) => router = Some(ExportedPart { config, objective, weights, hash }),
            }
        }
        let router = router.context("the run has no router")?;
        let (text, codec) = (self.text_source(encoders)?, self.codec_source(encoders)?);
        Ok(export(folder, &Exported { experts, router, calibration, text, codec })?)
    }

    /// Where an export takes the text encoder from; files only if they are the run's.
    fn text_source(&self, encoders: &Path) -> anyhow::Result<TextSource> {
        let Manifest { additions: Additions { encoders: named, .. }, text, .. } = &self.manifest;
        match named.text {
            TextEncoder::Hashed => {
                Ok(TextSource::Hashed(HashedText { tokens: text.tokens.into(), width: text.width.into() }))
            }
            TextEncoder::Clip(_) => {
                encoders::text_encoder(named.text, *text, encoders, &Device::Cpu)?;
                let folder = encoders.join(Network::Clip.name());
                Ok(TextSource::Files { encoder: folder.clone(), tokenizer: folder })
            }
            TextEncoder::MiniLm(_) => bail!(
                "this run reads captions with all-MiniLM-L6-v2, for which the published layout has no word: only CLIP and the built-in encoder can be exported"
            ),
        }
    }

    /// Where an export takes the image codec from, likewise.
    fn codec_source(&self, encoders: &Path) -> anyhow::Result<CodecSource> {
        let Manifest { additions: Additions { encoders: named, .. }, image, .. } = &self.manifest;
        match named.image {
            ImageCodec::Pixels => Ok(CodecSource::Pixels),
            ImageCodec::Vae { .. } => {
                encoders::image_codec(named.image, *image, encoders, &Device::Cpu)?;
                Ok(CodecSource::Files(encoders.join(Network::Vae.name())))
            }
        }
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
