//! A model's parameters by name: initialised, read from bytes that a stranger may have sent, written as bytes that hash alike.
//!
//! What the trunk's sublayers read lies in one flat tensor, a *group*: on the CPU one operation reads it, one gradient comes back, one variable is updated.
//! Every other parameter is a group of its own.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::{
    checkpoint::{self, CheckpointError},
    config::{PartConfig, Shapes},
    device::compute_precision,
    gradients::TrunkGradients,
    random::Stream,
    tensor_file::TensorFile,
};

/// The parameter that is stored but never trained: a fixed position table.
pub const FROZEN: &str = "pos_embed";

/// Parameters by the names of the published weights.
#[derive(Clone, Debug)]
pub struct Parameters {
    places: Arc<BTreeMap<String, Place>>,
    groups: BTreeMap<String, Tensor>,
    /// Where the trunk's gradients are found that come apart from the others.
    trunk_gradients: Option<TrunkGradients>,
}

/// Where a parameter lies.
#[derive(Debug)]
struct Place {
    group: String,
    start: usize,
    shape: Vec<usize>,
}

impl Place {
    /// Puts a parameter's numbers where they belong among those of all groups.
    fn fill(&self, groups: &mut BTreeMap<String, Vec<f32>>, numbers: &[f32]) {
        if let Some(group) = groups.get_mut(&self.group) {
            group[self.start..][..numbers.len()].copy_from_slice(numbers);
        }
    }
}

/// The group of all parameters of the trunk's sublayers.
pub(crate) const TRUNK: &str = "trunk";

/// The group of a parameter: the trunk's, or its own.
fn group_of(name: &str) -> &str {
    let of_block =
        name.starts_with("layers.") && [".attn.", ".cross_attn.", ".mlp."].iter().any(|it| name.contains(it));
    if of_block || name.starts_with("final_layer.linear") { TRUNK } else { name }
}

/// The places of a model's parameters: within a group in the order of their names, so that biases come before weights.
fn places(config: &PartConfig) -> BTreeMap<String, Place> {
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut places = BTreeMap::new();
    for (name, shape) in config.shapes() {
        let group = group_of(&name).to_owned();
        let end = ends.entry(group.clone()).or_default();
        let start = *end;
        *end += shape.iter().product::<usize>();
        places.insert(name, Place { group, start, shape });
    }
    places
}

impl Parameters {
    /// Fresh parameters: DiT's rules (xavier linears, zero biases, gates and final layer), the cross-attention's output zero, the time block
    /// N(0, 0.02). Everything random follows from `key`.
    pub fn initial(config: &PartConfig, key: &[u8; 32], device: &Device) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let tensor = initial_tensor(&name, &shape, key, device)?;
            tensors.insert(name, tensor);
        }
        Self::from_tensors(config, &tensors)
    }

    /// Reads weights: exactly the config's names and shapes, finite f32 numbers, nothing else.
    ///
    /// # Errors
    /// Where the bytes are anything else.
    pub fn load(config: &PartConfig, bytes: &[u8], device: &Device) -> std::result::Result<Self, CheckpointError> {
        Ok(Self::from_tensors(config, &checkpoint::read(bytes, &config.shapes(), device)?)?)
    }

    /// Reads weights from a file, without ever holding them twice. Returns the BLAKE3 of the file with them.
    ///
    /// # Errors
    /// Where the file holds other names, shapes or types than the config's, all of which are named, or numbers that are not finite.
    pub fn read(
        config: &PartConfig,
        file: &TensorFile,
        device: &Device,
    ) -> std::result::Result<(Self, blake3::Hash), CheckpointError> {
        let differences = file.differences(&config.shapes());
        if !differences.is_empty() {
            return Err(CheckpointError::Different(differences.join("; ")));
        }
        let places = places(config);
        let mut groups = empty_groups(config);
        let hash = file.read(&mut |name, numbers| {
            if let Some(place) = places.get(name) {
                place.fill(&mut groups, &numbers);
            }
        })?;
        let tensor = |(group, numbers): (String, Vec<f32>)| {
            let length = numbers.len();
            Ok((group, Tensor::from_vec(numbers, length, device)?))
        };
        let groups = groups.into_iter().map(tensor).collect::<Result<_>>()?;
        Ok((Self { places: Arc::new(places), groups, trunk_gradients: None }, hash))
    }

    /// Parameters over a model's groups, each flat ([`group_shapes`]).
    pub(crate) fn from_groups(config: &PartConfig, groups: BTreeMap<String, Tensor>) -> Self {
        Self { places: Arc::new(places(config)), groups, trunk_gradients: None }
    }

    /// Parameters from named tensors of the config's shapes.
    ///
    /// # Errors
    /// If a name is missing.
    pub fn from_tensors(config: &PartConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let places = places(config);
        let mut pieces: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (name, place) in &places {
            let Some(tensor) = tensors.get(name) else { candle_core::bail!("the parameter {name} is missing") };
            pieces.entry(place.group.clone()).or_default().push(tensor.flatten_all()?);
        }
        let mut groups = BTreeMap::new();
        for (group, pieces) in pieces {
            groups.insert(group, Tensor::cat(&pieces, 0)?);
        }
        Ok(Self { places: Arc::new(places), groups, trunk_gradients: None })
    }

    /// Parameters of the same model over other groups, each flat.
    pub fn with_groups(&self, groups: BTreeMap<String, Tensor>) -> Self {
        Self { places: self.places.clone(), groups, trunk_gradients: None }
    }

    /// The same parameters, each a group of its own in the given precision. Where products run by themselves, as on a GPU, this spares the gradients'
    /// way back into flat groups.
    ///
    /// # Errors
    /// Where candle refuses.
    pub fn scattered(&self, precision: DType) -> Result<Self> {
        let mut places = BTreeMap::new();
        let mut groups = BTreeMap::new();
        for (name, place) in &*self.places {
            groups.insert(name.clone(), self.get(name)?.flatten_all()?.to_dtype(precision)?);
            places.insert(name.clone(), Place { group: name.clone(), start: 0, shape: place.shape.clone() });
        }
        Ok(Self { places: Arc::new(places), groups, trunk_gradients: None })
    }

    /// The parameters as their device computes with them fastest: bf16 and scattered on CUDA, as they are elsewhere.
    ///
    /// # Errors
    /// Where candle refuses.
    pub fn to_compute(self) -> Result<Self> {
        match self.groups.values().next().map(|tensor| compute_precision(tensor.device())) {
            Some(DType::F32) | None => Ok(self),
            Some(precision) => self.scattered(precision),
        }
    }

    /// Turns every group that is trained into a variable, and returns those.
    pub fn into_variables(self) -> Result<(Self, BTreeMap<String, Var>)> {
        let mut variables = BTreeMap::new();
        let mut groups = BTreeMap::new();
        for (name, tensor) in self.groups.clone() {
            if name == FROZEN {
                groups.insert(name, tensor);
                continue;
            }
            let variable = Var::from_tensor(&tensor)?;
            groups.insert(name.clone(), variable.as_tensor().clone());
            variables.insert(name, variable);
        }
        Ok((Self { groups, ..self }, variables))
    }

    /// The same parameters, whose trunk may give its gradients apart from candle's, for [`Gradients`](crate::gradients::Gradients) to collect.
    pub(crate) fn with_trunk_gradients(self) -> Self {
        Self { trunk_gradients: Some(TrunkGradients::default()), ..self }
    }

    /// Where the trunk's gradients are found that come apart; none where all come with candle's.
    pub(crate) fn trunk_gradients(&self) -> Option<&TrunkGradients> {
        self.trunk_gradients.as_ref()
    }

    /// A parameter by name, in its shape: a view into its group.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Some(place) = self.places.get(name) else { candle_core::bail!("the model has no parameter {name}") };
        let length = place.shape.iter().product();
        let Some(group) = self.groups.get(&place.group) else { candle_core::bail!("{} is missing", place.group) };
        group.narrow(0, place.start, length)?.reshape(place.shape.as_slice())
    }

    /// A group by name, flat; none where the parameters do not lie in groups ([`Parameters::scattered`]).
    pub fn group(&self, name: &str) -> Option<Tensor> {
        self.groups.get(name).cloned()
    }

    /// Where in its group the parameters of a sublayer lie, by the name that theirs begin with.
    pub(crate) fn range(&self, sublayer: &str) -> Result<Range<usize>> {
        let of_sublayer = |name: &str| name.strip_prefix(sublayer).is_some_and(|rest| rest.starts_with('.'));
        let mut range: Option<Range<usize>> = None;
        for (_, place) in self.places.iter().filter(|(name, _)| of_sublayer(name)) {
            let end = place.start + place.shape.iter().product::<usize>();
            range = Some(range.map_or(place.start, |it| it.start)..end);
        }
        match range {
            Some(range) => Ok(range),
            None => candle_core::bail!("the model has no sublayer {sublayer}"),
        }
    }

    /// All groups in the order of their names.
    pub fn groups(&self) -> &BTreeMap<String, Tensor> {
        &self.groups
    }

    /// Name, group and first number in the group of every parameter.
    #[cfg(feature = "cuda")]
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place.group.as_str(), place.start))
    }

    /// All parameters by name.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.places.keys().map(|name| Ok((name.clone(), self.get(name)?))).collect()
    }
}

/// A model's groups as zeros.
fn empty_groups(config: &PartConfig) -> BTreeMap<String, Vec<f32>> {
    group_shapes(config).into_iter().map(|(group, shape)| (group, vec![0.0; shape[0]])).collect()
}

/// Reads weights as [`Parameters::load`] does, into plain numbers by group.
pub(crate) fn read_groups(
    config: &PartConfig,
    weights: &[u8],
) -> std::result::Result<BTreeMap<String, Vec<f32>>, CheckpointError> {
    let (places, mut groups) = (places(config), empty_groups(config));
    for (name, numbers) in checkpoint::read_numbers(weights, &config.shapes())? {
        places[&name].fill(&mut groups, &numbers);
    }
    Ok(groups)
}

/// Names and shapes of a model's groups.
pub fn group_shapes(config: &PartConfig) -> Shapes {
    let mut shapes = Shapes::new();
    for place in places(config).values() {
        let length = place.shape.iter().product::<usize>();
        shapes.entry(place.group.clone()).or_insert_with(|| vec![0])[0] += length;
    }
    shapes
}

fn initial_tensor(name: &str, shape: &[usize], key: &[u8; 32], device: &Device) -> Result<Tensor> {
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
pub fn position_table(side: usize, width: usize, device: &Device) -> Result<Tensor> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ExpertConfig, expert::Expert};

    /// On the CPU the one runs the fused sublayers, the other the composed ones, as a GPU does.
    #[test]
    fn a_model_of_scattered_parameters_is_the_same_model() {
        let (text_tokens, text_width) = (3, 8);
        let shape =
            ExpertConfig { channels: 3, size: 4, patch: 2, width: 24, depth: 2, heads: 3, text_tokens, text_width };
        let config = PartConfig::Expert(shape.clone());
        let mut stream = Stream::seeded(5, "scattered");
        let mut random = |shape: &[usize]| stream.normal_tensor(shape.to_vec(), &Device::Cpu).unwrap();
        let tensors =
            config.shapes().iter().map(|(name, shape)| (name.clone(), (random(shape) * 0.3).unwrap())).collect();
        let (x, text) = (random(&[2, 3, 4, 4]), random(&[2, text_tokens, text_width]));
        let t = Tensor::new(&[100f32, 700.0], &Device::Cpu).unwrap();
        let grouped = Parameters::from_tensors(&config, &tensors).unwrap();
        let (scattered, variables) = grouped.scattered(DType::F32).unwrap().into_variables().unwrap();
        assert!(variables.keys().eq(config.shapes().keys().filter(|name| *name != FROZEN)));
        let velocity =
            |parameters: &Parameters| Expert::new(&shape, parameters).unwrap().forward(&x, &t, &text).unwrap();
        let (found, expected) = (velocity(&scattered), velocity(&grouped));
        let difference = (&found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{difference}");
        let gradients = found.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} received no gradient"));
            assert_eq!(gradient.dims(), [config.shapes()[name].iter().product::<usize>()], "{name}");
        }
    }
}
