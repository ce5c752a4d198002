//! Classifier-free guidance: away from what is drawn without the caption (Ho and Salimans, arXiv 2207.12598).

use candle_core::{Result, Tensor};

/// Far below any deviation of a velocity, far above the smallest f32.
const TINY: f64 = 1e-20;

/// How strongly the caption counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// v_null + scale (v_text - v_null); 1 is none.
    pub scale: f64,
    /// How much of the deviation that guidance adds is taken away again, 0..1 (Lin et al., arXiv 2305.08891, section 3.4, where it is called phi and 0.7
    /// proposed). It keeps strongly guided pictures from being overexposed.
    pub rescale: f64,
}

impl Guidance {
    /// The velocity as the models give it.
    pub const NONE: Self = Self { scale: 1.0, rescale: 0.0 };

    /// Guidance without rescaling.
    pub fn of(scale: f64) -> Self {
        Self { scale, rescale: 0.0 }
    }

    /// True if the velocity without the caption is needed at all.
    pub fn is_used(&self) -> bool {
        self.scale != 1.0
    }

    /// The guided velocity from those with and without the caption, all `[B,C,S,S]`.
    ///
    /// # Errors
    /// Where candle refuses.
    pub fn apply(&self, with: &Tensor, without: &Tensor) -> Result<Tensor> {
        let guided = (without + ((with - without)? * self.scale)?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        // Where both are the same everywhere there is no deviation to correct: their ratio is 1, not 0 / 0.
        let ratio = ((deviation(with)? + TINY)? / (deviation(&guided)? + TINY)?)?;
        guided.broadcast_mul(&ratio.affine(self.rescale, 1.0 - self.rescale)?)
    }
}

/// The standard deviation of each picture's numbers, `[B,1,1,1]`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let rows = x.flatten_from(1)?;
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    centred.sqr()?.mean_keepdim(1)?.sqrt()?.reshape((x.dim(0)?, 1, 1, 1))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::random::Stream;

    #[test]
    fn rescaling_brings_back_the_deviation_of_what_the_caption_says() {
        let mut stream = Stream::seeded(3, "guidance");
        let mut random = || stream.normal_tensor((2, 3, 4, 4), &Device::Cpu).unwrap();
        let (with, without) = (random(), random());
        let deviations = |x: &Tensor| deviation(x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let guided = |rescale| Guidance { scale: 7.5, rescale }.apply(&with, &without).unwrap();
        let (wanted, plain) = (deviations(&with), deviations(&guided(0.0)));
        let (half, whole) = (deviations(&guided(0.5)), deviations(&guided(1.0)));
        for picture in 0..2 {
            assert!(plain[picture] > 3.0 * wanted[picture]);
            assert!((whole[picture] / wanted[picture] - 1.0).abs() < 1e-4);
            assert!((half[picture] / (0.5 * (plain[picture] + wanted[picture])) - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn a_flat_velocity_stays_what_it_is() {
        let flat = Tensor::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let guided = Guidance { scale: 2.0, rescale: 0.7 }.apply(&flat, &flat).unwrap();
        assert_eq!(guided.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0; 4]);
    }
}
