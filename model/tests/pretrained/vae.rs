//! Stable Diffusion's autoencoder.

use candle_core::{Device, Tensor};
use paris_model::{
    image_codec::{ImageCodec, LATENT_SCALE, Vae},
    pretrained::Network,
};

use crate::fixture::{Fixture, equal, numbers};

pub(crate) fn tiny() -> Vae {
    Vae::load(&Fixture::read("vae").files(Network::Vae, Vec::new()), &Device::Cpu).unwrap()
}

#[test]
fn both_ways_equal_diffusers() {
    let (fixture, vae) = (Fixture::read("vae"), tiny());
    assert_eq!((vae.channels(), vae.reduction()), (4, 4));
    let pictures = (numbers("pictures", &[2, 3, 24, 16]) * 4.0).unwrap();
    let latents = (numbers("latents", &[2, 4, 6, 4]) * 4.0).unwrap();

    let moments = vae.moments(&pictures).unwrap().unwrap();
    let (means, log_variances) = (moments.narrow(1, 0, 4).unwrap(), moments.narrow(1, 4, 4).unwrap());
    let (expected, shift) = (&fixture.outputs["moments"], 2.0 * LATENT_SCALE.ln());
    equal("means", &(means / LATENT_SCALE).unwrap(), &expected.narrow(1, 0, 4).unwrap(), 1e-5);
    equal("log-variances", &(log_variances - shift).unwrap(), &expected.narrow(1, 4, 4).unwrap(), 1e-5);

    let decoded = vae.decode(&(latents * LATENT_SCALE).unwrap()).unwrap();
    equal("pictures", &decoded, &fixture.outputs["pictures"], 1e-5);
}

/// Files that `diffusers` wrote in its first year, sd-vae-ft-mse among them, name the attention's matrices otherwise.
#[test]
fn the_names_of_older_files_are_read_too() {
    let mut fixture = Fixture::read("vae");
    let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let old = |name: String| {
        renamed.iter().fold(name, |name, (new, old)| name.replace(&format!(".{new}."), &format!(".{old}.")))
    };
    fixture.weights = fixture.weights.into_iter().map(|(name, weight)| (old(name), weight)).collect();
    assert!(fixture.weights.contains_key("encoder.mid_block.attentions.0.query.weight"));
    let vae = Vae::load(&fixture.files(Network::Vae, Vec::new()), &Device::Cpu).unwrap();
    let latents = (numbers("latents", &[2, 4, 6, 4]) * (4.0 * LATENT_SCALE)).unwrap();
    equal("pictures", &vae.decode(&latents).unwrap(), &fixture.outputs["pictures"], 1e-5);
}

#[test]
fn pictures_that_do_not_fit_are_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let vae = tiny();
    for shape in [&[1, 3, 6, 8][..], &[1, 3, 8, 6], &[1, 1, 8, 8], &[3, 8, 8]] {
        assert!(vae.moments(&zeros(shape)).is_err(), "{shape:?}");
    }
}
