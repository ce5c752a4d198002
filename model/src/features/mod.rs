//! Pictures to vectors whose distance says how alike they look: what clustering and the quality measures stand on.

mod colour_and_edges;
mod convolution;
mod dino;
mod inception;
mod mobilenet;
mod resize;

use candle_core::{Result, Tensor};

pub use colour_and_edges::ColourAndEdges;
pub use dino::Dino;
pub use inception::Inception;
pub use mobilenet::MobileNet;

use crate::pretrained::Identity;

/// A frozen extractor of features.
pub trait ImageFeatures: Send + Sync {
    /// Which extractor this is.
    fn identity(&self) -> Identity;

    /// Values a picture gives.
    fn width(&self) -> usize;

    /// Features of pictures `[batch, 3, height, width]` in -1..1, as `[batch, features]`, f32.
    fn extract(&self, pictures: &Tensor) -> Result<Tensor>;
}

/// Mean and deviation of ImageNet's colours in 0..1, by which its networks take pictures.
const IMAGENET_COLOURS: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Pictures in -1..1 as networks trained on ImageNet take them.
fn imagenet_colours(pictures: &Tensor) -> Result<Tensor> {
    let (mean, deviation) = IMAGENET_COLOURS;
    let colours = |of: fn(f32, f32) -> f32| -> Result<Tensor> {
        let colours: Vec<f32> = mean.iter().zip(deviation).map(|(mean, deviation)| of(*mean, deviation)).collect();
        Tensor::from_vec(colours, (1, 3, 1, 1), pictures.device())
    };
    // ((x + 1) / 2 - mean) / deviation
    let (scale, shift) =
        (colours(|_, deviation| 0.5 / deviation)?, colours(|mean, deviation| (0.5 - mean) / deviation)?);
    pictures.broadcast_mul(&scale)?.broadcast_add(&shift)
}
