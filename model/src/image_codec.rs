//! Between pictures and what the experts draw: latents of an autoencoder, or the pixels themselves.

use candle_core::{Result, Tensor};

/// A frozen pair of encoder and decoder.
pub trait ImageCodec: Send + Sync {
    /// Channels of a latent.
    fn channels(&self) -> usize;

    /// How many pixels, along each side, one latent position stands for.
    fn reduction(&self) -> usize;

    /// Pictures `[batch, 3, height, width]` in -1..1 to latents `[batch, channels, height / reduction, width / reduction]`
    /// at the scale that experts learn (about unit variance).
    fn encode(&self, pictures: &Tensor) -> Result<Tensor>;

    /// Latents back to pictures; values may leave -1..1 a little, as the expert left them.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// The codec that changes nothing: small pictures are learnt as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pixels;

impl ImageCodec for Pixels {
    fn channels(&self) -> usize {
        3
    }

    fn reduction(&self) -> usize {
        1
    }

    fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        pictures.dims4().map(|_| pictures.clone())
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        latents.dims4().map(|_| latents.clone())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn pixels_come_back_as_they_went() {
        let values: Vec<f32> = (0..48).map(|i| i as f32 / 24.0 - 1.0).collect();
        let pictures = Tensor::from_vec(values.clone(), (1, 3, 4, 4), &Device::Cpu).unwrap();
        let back = Pixels.decode(&Pixels.encode(&pictures).unwrap()).unwrap();
        assert_eq!(back.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
        assert!(Pixels.encode(&pictures.flatten_all().unwrap()).is_err());
    }
}
