//! A model's parameters by name: initialised, read from bytes that a stranger may have sent, written as bytes that hash alike.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    checkpoint::{self, CheckpointError},
    config::{PartConfig, Shapes},
    random::Stream,
};

/// Parameters by the names of the published weights.
#[derive(Clone, Debug)]
pub struct Parameters(BTreeMap<String, Tensor>);

/// The parameter that is stored but never trained: a fixed position table.
pub const FROZEN: &str = "pos_embed";

impl Parameters {
    /// Fresh parameters: DiT's rules (xavier linears, zero biases, gates and final layer), the cross-attention's output zero, the time block
    /// N(0, 0.02). Everything random follows from `key`.
    pub fn initial(config: &PartConfig, key: &[u8; 32], device: &Device) -> candle_core::Result<Self> {
        let mut parameters = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let tensor = initial_tensor(&name, &shape, key, device)?;
            parameters.insert(name, tensor);
        }
        Ok(Self(parameters))
    }

    /// Reads weights: exactly the config's names and shapes, finite f32 numbers, nothing else.
    pub fn load(config: &PartConfig, bytes: &[u8], device: &Device) -> Result<Self, CheckpointError> {
        Ok(Self(checkpoint::read(bytes, &config.shapes(), device)?))
    }

    /// Parameters from tensors that are known to fit.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>) -> Self {
        Self(tensors)
    }

    /// Turns every tensor into a variable, and returns those that are trained.
    pub fn into_variables(self) -> candle_core::Result<(Self, BTreeMap<String, Var>)> {
        let mut variables = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in self.0 {
            if name == FROZEN {
                tensors.insert(name, tensor);
                continue;
            }
            let variable = Var::from_tensor(&tensor)?;
            tensors.insert(name.clone(), variable.as_tensor().clone());
            variables.insert(name, variable);
        }
        Ok((Self(tensors), variables))
    }

    /// A parameter by name.
    pub fn get(&self, name: &str) -> candle_core::Result<Tensor> {
        match self.0.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("the weights have no parameter {name}"),
        }
    }

    /// All parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// Names and shapes.
    pub fn shapes(&self) -> Shapes {
        self.0.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
    }
}

fn initial_tensor(name: &str, shape: &[usize], key: &[u8; 32], device: &Device) -> candle_core::Result<Tensor> {
    let zero = || Tensor::zeros(shape, DType::F32, device);
    let normal = |deviation: f64| Stream::new(key, name, 0).normal_tensor(shape.to_vec(), device)? * deviation;
    if name == FROZEN {
        let (tokens, width) = (shape[1], shape[2]);
        return position_table(tokens.isqrt(), width, device);
    }
    let starts_silent =
        name.starts_with("final_layer") || name.contains("adaLN_modulation") || name.contains("cross_attn.out_proj");
    match name {
        "head.2.weight" => Tensor::ones(shape, DType::F32, device),
        "cls_token" => normal(0.02),
        _ if name.ends_with("bias") || starts_silent => zero(),
        _ if name.ends_with("scale_shift_table") => normal(1.0 / (shape[1] as f64).sqrt()),
        _ if name.starts_with("t_block") || name.starts_with("time_embed") => normal(0.02),
        _ => {
            // Xavier's rule; a convolution counts as the linear layer over its patch.
            let (output, input) = (shape[0], shape[1..].iter().product::<usize>());
            normal((2.0 / (input + output) as f64).sqrt())
        }
    }
}

/// The fixed 2-D sine-cosine table `[1, side * side, width]`: the first half of the width encodes the column, the second half the row.
pub fn position_table(side: usize, width: usize, device: &Device) -> candle_core::Result<Tensor> {
    let quarter = width / 4;
    let angle = |position: usize, index: usize| position as f64 / 10_000f64.powf(index as f64 / quarter as f64);
    let mut table = Vec::with_capacity(side * side * width);
    for row in 0..side {
        for column in 0..side {
            for position in [column, row] {
                table.extend((0..quarter).map(|index| angle(position, index).sin() as f32));
                table.extend((0..quarter).map(|index| angle(position, index).cos() as f32));
            }
        }
    }
    Tensor::from_vec(table, (1, side * side, 4 * quarter), device)
}
