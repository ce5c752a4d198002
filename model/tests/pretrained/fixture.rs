//! What `fixtures.py` wrote: outputs of a library on weights that follow from their names.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::{Device, Tensor};
use paris_model::pretrained::{Files, Network};
use safetensors::{SafeTensors, tensor::serialize};

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/pretrained/fixtures"))
}

/// Numbers that follow from a name, as `numbers` in `fixtures.py`.
pub(crate) fn numbers(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let count: usize = shape.iter().product();
    let uniform = (0..count as u32).map(|place| {
        let x = place.wrapping_add(seed).wrapping_mul(0x9E37_79B1);
        let x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        let x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        ((x ^ (x >> 16)) >> 8) as f32 / (1 << 24) as f32 - 0.5
    });
    let numbers: Vec<f32> = match shape.len() {
        0 | 1 if name.ends_with("weight") || name.ends_with("lambda1") => uniform.map(|it| it * 0.5 + 1.0).collect(),
        0 | 1 => uniform.collect(),
        _ => {
            let fan_in: usize = shape[1..].iter().product();
            let scale = (3.5 / (fan_in as f64).sqrt()) as f32;
            uniform.map(|it| it * scale).collect()
        }
    };
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

pub(crate) struct Fixture {
    pub(crate) outputs: BTreeMap<String, Tensor>,
    /// The weights as their library's file has them.
    pub(crate) weights: BTreeMap<String, Tensor>,
}

impl Fixture {
    pub(crate) fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let shapes = &header.metadata().as_ref().unwrap()["shapes"];
        let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(shapes).unwrap();
        let weights = shapes.into_iter().map(|(name, shape)| (name.clone(), numbers(&name, &shape)));
        let outputs = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Self { outputs: outputs.into_iter().collect(), weights: weights.collect() }
    }

    /// The weights as a file, with a tokenizer.
    pub(crate) fn files(&self, network: Network, tokenizer: Vec<u8>) -> Files {
        Files { network, weights: serialize(&self.weights, None).unwrap(), tokenizer }
    }
}

/// The largest difference, as a share of the largest expected number.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let largest =
        |tensor: &Tensor| tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let error = largest(&(found - expected).unwrap()) / largest(expected);
    assert!(!error.is_nan());
    error
}

/// Fails if it is more than `allowed`, and prints it: figures are reported from these lines.
pub(crate) fn equal(what: &str, found: &Tensor, expected: &Tensor, allowed: f32) {
    let error = relative_error(found, expected);
    println!("{what}: largest error {error:.2e} of the largest number");
    assert!(error <= allowed, "{what}: {error:e} > {allowed:e}");
}
