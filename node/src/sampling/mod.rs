//! Drawing pictures: with a run's checkpoints ([`Assembled`]), or with a mixture in the published layout.

mod assembled;

use std::{fmt, rc::Rc, sync::Arc};

use anyhow::{Context, ensure};
use paris_model::{
    Device, Tensor,
    config::PartConfig,
    device::compute_precision,
    expert::Expert,
    hub::{CodecSource, Published, TextSource},
    image_codec::{ImageCodec, Pixels, Vae},
    pretrained::{Files, Network},
    router::Router,
    sampler::{Calibration, Field, Mixture, Posterior, SampleSettings, Shelf, Step, sample},
    text::{ClipText, TextEncoder},
};

pub use self::assembled::{Assembled, is_here, manifest_from_hex};

/// A mixture that is ready to draw: its experts are read when they are first used.
pub struct Drawing {
    mixture: Mixture,
    shelf: Rc<Shelf>,
    text: Arc<dyn TextEncoder>,
    codec: Box<dyn ImageCodec>,
    device: Device,
}

/// What a drawing is made of.
struct Ingredients {
    /// Channels, height and width of what is drawn.
    shape: (usize, usize, usize),
    /// The configs of the experts by cluster; none of one that is missing.
    experts: Vec<Option<PartConfig>>,
    /// Reads the expert of a cluster.
    load: Box<dyn Fn(usize) -> anyhow::Result<Box<dyn Field>>>,
    router: Option<Router>,
    calibration: Option<Calibration>,
    text: Arc<dyn TextEncoder>,
    codec: Box<dyn ImageCodec>,
}

/// Where to draw.
#[derive(Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// Bytes that weights may take there.
    pub memory_bytes: u64,
}

impl Drawing {
    /// Draws with a mixture in the published layout.
    pub fn of_published(published: Published, place: Place) -> anyhow::Result<Self> {
        let Published { experts, router, calibration, text, codec, .. } = published;
        let first = &experts.first().context("the mixture has no expert")?.config;
        let device = place.device.clone();
        // First: what is missing is said before experts are read.
        let (text, codec) = (text_encoder(&text, &device)?, image_codec(&codec, &device)?);
        Self::new(
            Ingredients {
                shape: (first.channels, first.size, first.size),
                experts: experts.iter().map(|it| Some(PartConfig::Expert(it.config.clone()))).collect(),
                router: Some(Router::new(&router.config, &router.parameters(&device)?)?),
                load: Box::new(move |cluster| {
                    let part = &experts[cluster];
                    Ok(part.objective.field(Expert::new(&part.config, &part.parameters(&device)?)?))
                }),
                calibration,
                text,
                codec,
            },
            place,
        )
    }

    fn new(ingredients: Ingredients, place: Place) -> anyhow::Result<Self> {
        let Ingredients { shape, experts, load, router, calibration, text, codec } = ingredients;
        let Place { device, memory_bytes } = place;
        let number_bytes = compute_precision(&device).size_in_bytes() as u64;
        let bytes = |config: &PartConfig| config.parameter_count() as u64 * number_bytes;
        let router_bytes = router.as_ref().map_or(0, |it| bytes(&PartConfig::Router(it.config().clone())));
        let sizes = experts.iter().map(|config| config.as_ref().map(bytes)).collect();
        let shelf = Shelf::new(sizes, memory_bytes.saturating_sub(router_bytes), move |cluster| {
            let expert = load(cluster).with_context(|| format!("expert {cluster}"));
            expert.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))
        });
        let mixture = Mixture {
            shape,
            experts: shelf.experts(),
            router: router.map(|it| Box::new(it) as Box<dyn Posterior>),
            calibration,
        };
        let (drawn, decoded) = (shape.0, codec.channels());
        ensure!(drawn == decoded, "the mixture draws {drawn} channels, and its image codec takes {decoded}");
        Ok(Self { mixture, shelf, text, codec, device })
    }

    /// Believes the router as far as these temperatures say, instead of what was published with it.
    pub fn calibrate(&mut self, calibration: Calibration) {
        self.mixture.calibration = Some(calibration);
    }

    /// The models.
    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// What reads captions.
    pub fn text(&self) -> &Arc<dyn TextEncoder> {
        &self.text
    }

    /// What makes pictures of what is drawn.
    pub fn codec(&self) -> &dyn ImageCodec {
        self.codec.as_ref()
    }

    /// Width and height of the pictures, pixels.
    pub fn size(&self) -> usize {
        self.mixture.shape.1 * self.codec.reduction()
    }

    /// Draws a picture a caption, `[captions, 3, size, size]` in -1..1. `watch` hears of each step.
    pub fn draw(
        &self,
        captions: &[&str],
        settings: &SampleSettings,
        watch: &mut dyn FnMut(&Step),
    ) -> anyhow::Result<Tensor> {
        let (text, null) = (self.text.encode(captions, &self.device)?, self.text.encode(&[""], &self.device)?);
        let latents = sample(&self.mixture, &text, &null, settings, watch)?;
        Ok(self.codec.decode(&latents)?.to_device(&Device::Cpu)?)
    }

    /// How experts came and went so far, in words.
    pub fn memory_use(&self) -> impl fmt::Display {
        let used = self.shelf.used();
        format!(
            "experts were loaded {} times, {} made room for others; at most {} MiB of their weights in memory",
            used.loads,
            used.evictions,
            used.most_bytes.div_ceil(1 << 20)
        )
    }
}

/// The text encoder of a published mixture: CLIP, or the built-in one of those that this program published.
fn text_encoder(source: &TextSource, device: &Device) -> anyhow::Result<Arc<dyn TextEncoder>> {
    Ok(match source {
        TextSource::Hashed(encoder) => Arc::new(*encoder),
        TextSource::Files { encoder, tokenizer } => {
            Arc::new(ClipText::load(&Files::read_from(Network::Clip, encoder, tokenizer, None)?, device)?)
        }
    })
}

/// Its image codec.
fn image_codec(source: &CodecSource, device: &Device) -> anyhow::Result<Box<dyn ImageCodec>> {
    Ok(match source {
        CodecSource::Pixels => Box::new(Pixels),
        CodecSource::Files(codec) => Box::new(Vae::load(&Files::read_from(Network::Vae, codec, codec, None)?, device)?),
    })
}
