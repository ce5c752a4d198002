//! Between pictures and what the experts draw: latents of an autoencoder, or the pixels themselves.

mod pixels;
mod vae;

use candle_core::{Result, Tensor};

pub use pixels::Pixels;
pub use vae::{LATENT_SCALE, Vae};

use crate::pretrained::Identity;

/// A frozen pair of encoder and decoder.
pub trait ImageCodec: Send + Sync {
    /// Which codec this is.
    fn identity(&self) -> Identity;

    /// Channels of a latent.
    fn channels(&self) -> usize;

    /// How many pixels, along each side, one latent position stands for.
    fn reduction(&self) -> usize;

    /// The distribution of the latents of pictures `[batch, 3, height, width]` in -1..1: means and then log-variances, `[batch, 2 * channels,
    /// height / reduction, width / reduction]`, at the scale that experts learn (about unit variance). Nothing where latents are the pixels
    /// themselves, so that there is nothing to encode.
    fn moments(&self, pictures: &Tensor) -> Result<Option<Tensor>>;

    /// Latents `[batch, channels, height, width]` back to pictures; values may leave -1..1 a little, as the expert left them.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}
