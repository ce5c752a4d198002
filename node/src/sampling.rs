//! From an assembly's files to pictures.

use std::fs;

use anyhow::{Context, bail};
use paris_model::{
    Device, Tensor,
    config::PartConfig,
    expert::Expert,
    image_codec::{ImageCodec, Pixels},
    parameters::Parameters,
    router::Router,
    sampler::{Mixture, SampleSettings, Step, sample},
    text::TextEncoder,
};
use paris_protocol::{codec::Wire, hash::Hash, manifest::Manifest, mixture::Mixture as Record, part::Part};

use crate::{
    hex,
    runtime::{AssembledPart, Assembly, recipe},
};

/// A mixture that is ready to draw.
pub struct Drawing {
    manifest: Manifest,
    mixture: Mixture,
    device: Device,
    used: Vec<AssembledPart>,
    missing: Vec<Part>,
    record: Record,
}

/// A manifest from hexadecimal, as the local API gives it.
pub fn manifest_from_hex(text: &str) -> anyhow::Result<Manifest> {
    Ok(Manifest::read(&hex::decode(text).context("the node sent a manifest that is no hexadecimal")?)?)
}

impl Drawing {
    /// Loads every part that is here to `device`. Without a single expert there is nothing to draw with; without the router all experts count alike.
    pub fn open(assembly: &Assembly, device: Device) -> anyhow::Result<Self> {
        let manifest = manifest_from_hex(&assembly.manifest)?;
        let (channels, size) = (usize::from(manifest.image.channels), usize::from(manifest.image.size));
        let experts = manifest.clusters.iter().map(|_| None).collect();
        let mut mixture = Mixture { shape: (channels, size, size), experts, router: None, calibration: None };
        let (mut used, mut missing) = (Vec::new(), Vec::new());
        for part in manifest.parts() {
            let Some(assembled) = assembly.parts.iter().find(|it| it.part == part.name() && it.path.is_some()) else {
                missing.push(part);
                continue;
            };
            let parameters = load(&manifest, part, assembled, &device)?;
            match (part, recipe::part_config(&manifest, part)) {
                (Part::Expert(cluster), PartConfig::Expert(config)) => {
                    mixture.experts[usize::from(cluster)] = Some(Box::new(Expert::new(&config, &parameters)?));
                }
                (_, PartConfig::Router(config)) => mixture.router = Some(Box::new(Router::new(&config, &parameters)?)),
                _ => bail!("the manifest gives {part} the shape of another part"),
            }
            used.push(assembled.clone());
        }
        if mixture.experts.iter().all(Option::is_none) {
            bail!(
                "no expert's checkpoint is to be had yet: is anyone training this run? `paris-node status` shows what is known"
            );
        }
        let record = hex::decode(&assembly.mixture).context("the node sent a mixture that is no hexadecimal")?;
        let record = Record::from_bytes(&record)?.only(|part| !missing.contains(&part));
        Ok(Self { manifest, mixture, device, used, missing, record })
    }

    /// Width and height of the pictures.
    pub fn size(&self) -> usize {
        self.manifest.image.size.into()
    }

    /// The record of the checkpoints that are drawn with.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Which experts are used, and which are missing.
    pub fn describe(&self) -> String {
        let used: Vec<_> =
            self.used.iter().map(|it| format!("{} (step {}, by {})", it.part, it.step, it.author)).collect();
        let mut text = format!("drawing with {}", used.join(", "));
        if !self.missing.is_empty() {
            let missing: Vec<_> = self.missing.iter().map(Part::name).collect();
            text += &format!("\nmissing: {}", missing.join(", "));
        }
        text
    }

    /// Draws a picture a caption, `[captions, 3, size, size]` in -1..1.
    pub fn draw(
        &self,
        captions: &[&str],
        settings: &SampleSettings,
        watch: &mut dyn FnMut(&Step),
    ) -> anyhow::Result<Tensor> {
        let encoder = recipe::text_encoder(&self.manifest);
        let (text, null) = (encoder.encode(captions, &self.device)?, encoder.encode(&[""], &self.device)?);
        let latents = sample(&self.mixture, &text, &null, settings, watch)?;
        Ok(Pixels.decode(&latents.to_device(&Device::Cpu)?)?)
    }
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

/// A part's parameters from its file, believed only if they hash to what the record said.
fn load(manifest: &Manifest, part: Part, assembled: &AssembledPart, device: &Device) -> anyhow::Result<Parameters> {
    let path = assembled.path.as_deref().context("the part was not fetched")?;
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if Hash::of(&bytes).to_string() != assembled.weights {
        bail!("{} was damaged on disk while it was read: try again", path.display());
    }
    let config = recipe::part_config(manifest, part);
    let parameters = Parameters::load(&config, &bytes, device).with_context(|| format!("the checkpoint of {part}"))?;
    Ok(parameters.to_compute()?)
}
