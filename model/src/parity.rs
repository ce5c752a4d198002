//! Comparison with an independent twin: a file of weights, inputs, outputs and gradients of one step that another implementation wrote.
//!
//! The file is safetensors with `w.<name>` weights, `in.x|t|text|target|label`, `out.velocity|logits`, `out.loss` and `grad.<name>`. Shapes are
//! read off the tensors; the number of heads stands in none of them, so every divisor of the width is tried and the nearest taken.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::loss::{cross_entropy, mse};

use crate::{
    config::{ExpertConfig, PartConfig, RouterConfig},
    expert::Expert,
    parameters::{FROZEN, Parameters},
    router::Router,
};

/// How far a model is from its twin; every error is the largest difference, relative to the largest number of the twin's tensor.
pub struct Parity {
    /// The model's shapes, as read from the file.
    pub config: PartConfig,
    /// Error of the output.
    pub output: f64,
    /// Error of the gradient of each trained parameter.
    pub gradients: BTreeMap<String, f64>,
}

impl Parity {
    /// The largest error of all.
    pub fn worst(&self) -> f64 {
        self.gradients.values().copied().fold(self.output, f64::max)
    }
}

type Tensors = BTreeMap<String, Tensor>;

/// Runs one step on the twin's weights and inputs, on the CPU, and compares.
///
/// # Errors
/// If the file is not a reference, or the step fails.
pub fn compare(reference: &[u8]) -> Result<Parity> {
    let file: Tensors = candle_core::safetensors::load_buffer(reference, &Device::Cpu)?.into_iter().collect();
    let width = *tensor(&file, "w.pos_embed")?.dims().last().unwrap_or(&0);
    let mut nearest = None;
    for heads in (1..=width).filter(|heads| width.is_multiple_of(*heads)) {
        let twin = Twin::new(&file, heads)?;
        let (error, _) = twin.step(&twin.parameters)?;
        if nearest.as_ref().is_none_or(|(smallest, _)| error < *smallest) {
            nearest = Some((error, twin));
        }
    }
    match nearest {
        Some((_, twin)) => twin.compare(),
        None => bail!("the reference's position table is empty"),
    }
}

/// A model on the twin's weights, with some number of heads.
struct Twin<'a> {
    file: &'a Tensors,
    config: PartConfig,
    parameters: Parameters,
}

impl<'a> Twin<'a> {
    fn new(file: &'a Tensors, heads: usize) -> Result<Self> {
        let config = config(file, heads)?;
        let mut weights = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let weight = tensor(file, &format!("w.{name}"))?;
            if weight.dims() != shape {
                bail!("the reference's {name} is {:?}, expected {shape:?}", weight.dims());
            }
            weights.insert(name, weight.clone());
        }
        let parameters = Parameters::from_tensors(&config, &weights)?;
        Ok(Self { file, config, parameters })
    }

    /// The output's error, and the loss.
    fn step(&self, parameters: &Parameters) -> Result<(f64, Tensor)> {
        let input = |name: &str| tensor(self.file, name);
        let (x, t) = (input("in.x")?, input("in.t")?);
        match &self.config {
            PartConfig::Expert(config) => {
                let velocity = Expert::new(config, parameters)?.forward(x, t, input("in.text")?)?;
                let loss = mse(&velocity, input("in.target")?)?;
                Ok((relative_error(&velocity, input("out.velocity")?)?, loss))
            }
            PartConfig::Router(config) => {
                let logits = Router::new(config, parameters)?.forward(x, t, None)?;
                let loss = cross_entropy(&logits, &input("in.label")?.to_dtype(DType::U32)?)?;
                Ok((relative_error(&logits, input("out.logits")?)?, loss))
            }
        }
    }

    fn compare(self) -> Result<Parity> {
        let (parameters, variables) = self.parameters.clone().into_variables()?;
        let (output, loss) = self.step(&parameters)?;
        let store = loss.backward()?;
        let mut groups = BTreeMap::new();
        for (name, variable) in &variables {
            let Some(gradient) = store.get(variable) else { bail!("{name} received no gradient") };
            groups.insert(name.clone(), gradient.clone());
        }
        let found = parameters.with_groups(groups);
        let mut gradients = BTreeMap::new();
        for name in self.config.shapes().into_keys().filter(|name| name != FROZEN) {
            let expected = tensor(self.file, &format!("grad.{name}"))?;
            gradients.insert(name.clone(), relative_error(&found.get(&name)?, expected)?);
        }
        Ok(Parity { config: self.config, output, gradients })
    }
}

fn tensor<'a>(file: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    match file.get(name) {
        Some(tensor) => Ok(tensor),
        None => bail!("not a reference: it has no tensor {name}"),
    }
}

/// The shapes of the file's model.
fn config(file: &Tensors, heads: usize) -> Result<PartConfig> {
    let (width, channels, patch, _) = tensor(file, "w.patch_embed.weight")?.dims4()?;
    let size = tensor(file, "in.x")?.dim(2)?;
    let depth = (0..).take_while(|layer| file.contains_key(&format!("w.layers.{layer}.mlp.0.bias"))).count();
    Ok(match file.get("w.head.4.bias") {
        None => {
            let (_, text_tokens, text_width) = tensor(file, "in.text")?.dims3()?;
            PartConfig::Expert(ExpertConfig { channels, size, patch, width, depth, heads, text_tokens, text_width })
        }
        Some(bias) => {
            let (clusters, caption_width) = (bias.dim(0)?, None);
            PartConfig::Router(RouterConfig { channels, size, patch, width, depth, heads, clusters, caption_width })
        }
    })
}

/// The largest difference, relative to the largest expected number.
fn relative_error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let largest = |tensor: Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let (difference, scale) = (largest((found - expected)?)?, largest(expected.clone())?);
    // Not a number counts as infinitely far, or it would be lost in comparisons.
    let error = f64::from(difference) / f64::from(scale.max(f32::MIN_POSITIVE));
    Ok(if error.is_nan() { f64::INFINITY } else { error })
}
