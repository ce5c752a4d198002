//! Small pictures, learnt as they are.

use candle_core::{Result, Tensor};

use super::ImageCodec;
use crate::pretrained::Identity;

/// The codec that changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pixels;

impl ImageCodec for Pixels {
    fn identity(&self) -> Identity {
        Identity::built_in("pixels")
    }

    fn channels(&self) -> usize {
        3
    }

    fn reduction(&self) -> usize {
        1
    }

    fn moments(&self, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
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
        assert!(Pixels.moments(&pictures).unwrap().is_none());
        let back = Pixels.decode(&pictures).unwrap();
        assert_eq!(back.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
        assert!(Pixels.decode(&pictures.flatten_all().unwrap()).is_err());
    }
}
