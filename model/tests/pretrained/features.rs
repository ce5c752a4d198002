//! Image features.

use candle_core::Device;
use paris_model::{
    features::{Dino, ImageFeatures},
    pretrained::Network,
};

use crate::fixture::{Fixture, equal, numbers};

#[test]
fn dino_equals_transformers() {
    let fixture = Fixture::read("dino");
    let dino = Dino::load(&fixture.files(Network::Dino, Vec::new()), &Device::Cpu).unwrap();
    let pictures = (numbers("pictures", &[2, 3, 224, 224]) * 4.0).unwrap();
    // The table of 37 x 37 positions is interpolated to 16 x 16.
    equal("DINOv2", &dino.forward(&pictures).unwrap(), &fixture.outputs["features"], 1e-5);
    let small = dino.extract(&numbers("small", &[2, 3, 32, 32])).unwrap();
    assert_eq!(small.dims(), [2, dino.width()]);
}
