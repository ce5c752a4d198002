//! Drawn pictures against real ones, by named features.

use candle_core::{Device, Result, Tensor};

use super::{
    frechet::{COMPONENTS, Moments, PrincipalComponents},
    kernel::KernelSet,
};
use crate::{batch::BatchSource, features::ImageFeatures, image_codec::ImageCodec};

/// Pictures whose features are computed at once.
const BATCH: usize = 64;

/// Features with the name that stands beside every number that they give.
#[derive(Clone, Copy)]
pub struct NamedFeatures<'a> {
    /// Such as `ColourAndEdges`.
    pub name: &'a str,
    /// What computes them.
    pub features: &'a dyn ImageFeatures,
}

impl NamedFeatures<'_> {
    /// The features of pictures `[n, 3, height, width]` in -1..1, `[n, features]`.
    pub fn extract(&self, pictures: &Tensor) -> Result<Tensor> {
        let count = pictures.dim(0)?;
        let part = |from: usize| self.features.extract(&pictures.narrow(0, from, BATCH.min(count - from))?);
        Tensor::cat(&(0..count).step_by(BATCH).map(part).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Up to `most` pictures of a data set, evenly over all of it, `[n, 3, height, width]` in -1..1.
///
/// # Errors
/// If there are none, or they cannot be read.
pub fn pictures(data: &dyn BatchSource, codec: &dyn ImageCodec, most: usize) -> Result<Tensor> {
    let count = data.len().min(most);
    let indices: Vec<usize> = (0..count).map(|place| place * data.len() / count).collect();
    let read = |indices: &[usize]| codec.decode(&data.batch(indices, &Device::Cpu)?.images);
    Tensor::cat(&indices.chunks(BATCH).map(read).collect::<Result<Vec<_>>>()?, 0)
}

/// Real pictures, ready to be compared with.
pub struct Reference<'a> {
    features: NamedFeatures<'a>,
    components: Option<PrincipalComponents>,
    moments: Moments,
    kernel: KernelSet,
}

impl<'a> Reference<'a> {
    /// Real pictures `[n, 3, height, width]` in -1..1, to be compared with sets of `drawn` pictures. Where either are too few for a covariance of all
    /// features, Fréchet distances are taken in the reference's principal components.
    ///
    /// # Errors
    /// If there are fewer of either than for [`COMPONENTS`] principal components.
    pub fn of(features: NamedFeatures<'a>, pictures: &Tensor, drawn: usize) -> Result<Self> {
        let real = features.extract(&pictures.to_device(&Device::Cpu)?)?;
        let (rows, width) = real.dims2()?;
        let components = (rows.min(drawn) <= width).then(|| PrincipalComponents::of(&real)).transpose()?;
        if components.is_some() && drawn <= COMPONENTS {
            candle_core::bail!("distances take more than {COMPONENTS} drawn pictures, not {drawn}: draw more");
        }
        let kernel = KernelSet::of(&real)?;
        let moments = match &components {
            Some(components) => Moments::of(&components.project(&real)?)?,
            None => Moments::of(&real)?,
        };
        Ok(Self { features, components, moments, kernel })
    }

    /// Real pictures in it.
    pub fn pictures(&self) -> usize {
        self.moments.rows()
    }

    /// How far pictures `[n, 3, height, width]` in -1..1 lie from it, smaller being better, by name: the Fréchet distance as `FD-FEATURES`, or
    /// `FD64-FEATURES` where it is taken in 64 principal components, and the kernel distance as `KD-FEATURES`. What leaves the range is cut off, as in a
    /// file.
    ///
    /// # Errors
    /// If there are too few pictures, or candle refuses.
    pub fn distances(&self, pictures: &Tensor) -> Result<[(String, f64); 2]> {
        let drawn = self.features.extract(&pictures.to_device(&Device::Cpu)?.clamp(-1f32, 1f32)?)?;
        let (moments, components) = match &self.components {
            Some(components) => (Moments::of(&components.project(&drawn)?)?, COMPONENTS.to_string()),
            None => (Moments::of(&drawn)?, String::new()),
        };
        let kernel = self.kernel.distance(&KernelSet::of(&drawn)?)?;
        let name = self.features.name;
        Ok([(format!("FD{components}-{name}"), self.moments.distance(&moments)?), (format!("KD-{name}"), kernel)])
    }
}
