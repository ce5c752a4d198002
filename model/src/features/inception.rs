//! The features of the Fréchet Inception Distance (Heusel et al., 1706.08500): pool3 of the Inception network that was published on 2015-12-05.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    ImageFeatures,
    convolution::{Convolution, Norm, Window},
    resize::Filter,
};
use crate::pretrained::{Files, Identity, Network, PretrainedError, Weights};

/// Side to which pictures are scaled, in pixels.
const SIDE: usize = 299;
/// Values a picture gives.
const WIDTH: usize = 2048;

/// The 2048 values before Inception's classifier.
///
/// Pictures are rounded to bytes and scaled to 299 x 299, linear between the nearest two, as `pytorch-fid` does. Distances are comparable only with
/// others of the same scaling.
pub struct Inception {
    identity: Identity,
    stem: [Convolution; 5],
    mixed: Vec<Vec<Branch>>,
}

impl Inception {
    /// Loads the network under the names of its graph.
    pub fn load(files: &Files, device: &Device) -> std::result::Result<Self, PretrainedError> {
        let weights = Weights::new(Network::Inception, &files.weights)?;
        let (stem, mixed) = weights.build(device, &[], |vs| {
            let unpadded = Window { padded: false, ..Window::of((3, 3)) };
            let stem = [
                convolution(&vs.pp("conv"), (3, 32), Window { stride: 2, ..unpadded })?,
                convolution(&vs.pp("conv_1"), (32, 32), unpadded)?,
                convolution(&vs.pp("conv_2"), (32, 64), Window::of((3, 3)))?,
                convolution(&vs.pp("conv_3"), (64, 80), Window::POINT)?,
                convolution(&vs.pp("conv_4"), (80, 192), unpadded)?,
            ];
            let mixed = vec![
                square(&vs.pp("mixed"), 192, 32)?,
                square(&vs.pp("mixed_1"), 256, 64)?,
                square(&vs.pp("mixed_2"), 288, 64)?,
                first_reduction(&vs.pp("mixed_3"))?,
                factored(&vs.pp("mixed_4"), 128)?,
                factored(&vs.pp("mixed_5"), 160)?,
                factored(&vs.pp("mixed_6"), 160)?,
                factored(&vs.pp("mixed_7"), 192)?,
                second_reduction(&vs.pp("mixed_8"))?,
                forked(&vs.pp("mixed_9"), 1280, Pool::Average)?,
                // The graph takes the maximum here, for no known reason.
                forked(&vs.pp("mixed_10"), 2048, Pool::Maximum)?,
            ];
            Ok((stem, mixed))
        })?;
        Ok(Self { identity: files.identity(), stem, mixed })
    }

    /// Features of pictures that are scaled and stand as (byte - 128) / 128.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut x = pictures.clone();
        for (index, convolution) in self.stem.iter().enumerate() {
            x = convolution.forward(&x)?.relu()?;
            if index == 2 || index == 4 {
                x = x.max_pool2d_with_stride(3, 2)?;
            }
        }
        for branches in &self.mixed {
            let parts = branches.iter().map(|branch| branch.forward(&x)).collect::<Result<Vec<_>>>()?;
            x = Tensor::cat(&parts, 1)?;
        }
        x.mean((2, 3))
    }
}

impl ImageFeatures for Inception {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn extract(&self, pictures: &Tensor) -> Result<Tensor> {
        let bytes = pictures.to_dtype(DType::F32)?.affine(127.5, 127.5)?.clamp(0f32, 255f32)?.round()?;
        let scaled = Filter::LinearOfTwo.resize(&bytes, SIDE, SIDE)?;
        self.forward(&scaled.affine(1.0 / 128.0, -1.0)?)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// Of 3 x 3, what lies outside not counted.
    Average,
    /// Of 3 x 3.
    Maximum,
    /// Of 3 x 3, by steps of two.
    HalvingMaximum,
}

impl Pool {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        let padded = |x: &Tensor| x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1);
        match self {
            Self::Average => {
                let (_, _, height, width) = x.dims4()?;
                let inside = Tensor::ones((1, 1, height, width), x.dtype(), x.device())?;
                let pooled = |x: &Tensor| padded(x)?.avg_pool2d_with_stride(3, 1);
                pooled(x)?.broadcast_div(&pooled(&inside)?)
            }
            // What comes in is a ReLU's, so a zero outside is never the larger.
            Self::Maximum => padded(x)?.max_pool2d_with_stride(3, 1),
            Self::HalvingMaximum => x.max_pool2d_with_stride(3, 2),
        }
    }
}

/// One way through a block: perhaps a pool, then convolutions one after the other, then perhaps two side by side.
struct Branch {
    pool: Option<Pool>,
    chain: Vec<Convolution>,
    fork: Vec<Convolution>,
}

impl Branch {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.pool.map_or(Ok(x.clone()), |pool| pool.forward(x))?;
        let x = self.chain.iter().try_fold(x, |x, convolution| convolution.forward(&x)?.relu())?;
        match self.fork.as_slice() {
            [] => Ok(x),
            fork => {
                let parts = fork.iter().map(|convolution| convolution.forward(&x)?.relu());
                Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
            }
        }
    }
}

fn convolution(vs: &VarBuilder, channels: (usize, usize), window: Window) -> Result<Convolution> {
    let get = |name| vs.get(channels.1, name);
    let norm = Norm { mean: get("mean")?, variance: get("var")?, scale: None, shift: get("beta")?, epsilon: 1e-3 };
    Convolution::new(vs.clone(), norm, channels, window)
}

/// A chain below `vs`, named conv, conv_1, ...; each link gives so many channels through such a window.
fn chain(vs: &VarBuilder, mut inputs: usize, links: &[(usize, Window)]) -> Result<Branch> {
    let mut chain = Vec::new();
    for (index, (outputs, window)) in links.iter().enumerate() {
        let name = if index == 0 { "conv".to_owned() } else { format!("conv_{index}") };
        chain.push(convolution(&vs.pp(name), (inputs, *outputs), *window)?);
        inputs = *outputs;
    }
    Ok(Branch { pool: None, chain, fork: Vec::new() })
}

const HALVING: Window = Window { stride: 2, padded: false, ..Window::of((3, 3)) };
const THREE: Window = Window::of((3, 3));
const LYING: Window = Window::of((1, 7));
const STANDING: Window = Window::of((7, 1));

fn square(vs: &VarBuilder, inputs: usize, pooled: usize) -> Result<Vec<Branch>> {
    Ok(vec![
        chain(vs, inputs, &[(64, Window::POINT)])?,
        chain(&vs.pp("tower"), inputs, &[(48, Window::POINT), (64, Window::of((5, 5)))])?,
        chain(&vs.pp("tower_1"), inputs, &[(64, Window::POINT), (96, THREE), (96, THREE)])?,
        Branch { pool: Some(Pool::Average), ..chain(&vs.pp("tower_2"), inputs, &[(pooled, Window::POINT)])? },
    ])
}

fn first_reduction(vs: &VarBuilder) -> Result<Vec<Branch>> {
    Ok(vec![
        chain(vs, 288, &[(384, HALVING)])?,
        chain(&vs.pp("tower"), 288, &[(64, Window::POINT), (96, THREE), (96, HALVING)])?,
        Branch { pool: Some(Pool::HalvingMaximum), chain: Vec::new(), fork: Vec::new() },
    ])
}

fn factored(vs: &VarBuilder, inner: usize) -> Result<Vec<Branch>> {
    let (point, lying, standing) = ((inner, Window::POINT), (inner, LYING), (inner, STANDING));
    Ok(vec![
        chain(vs, 768, &[(192, Window::POINT)])?,
        chain(&vs.pp("tower"), 768, &[point, lying, (192, STANDING)])?,
        chain(&vs.pp("tower_1"), 768, &[point, standing, lying, standing, (192, LYING)])?,
        Branch { pool: Some(Pool::Average), ..chain(&vs.pp("tower_2"), 768, &[(192, Window::POINT)])? },
    ])
}

fn second_reduction(vs: &VarBuilder) -> Result<Vec<Branch>> {
    let point = (192, Window::POINT);
    Ok(vec![
        chain(&vs.pp("tower"), 768, &[point, (320, HALVING)])?,
        chain(&vs.pp("tower_1"), 768, &[point, (192, LYING), (192, STANDING), (192, HALVING)])?,
        Branch { pool: Some(Pool::HalvingMaximum), chain: Vec::new(), fork: Vec::new() },
    ])
}

fn forked(vs: &VarBuilder, inputs: usize, pool: Pool) -> Result<Vec<Branch>> {
    let one = |name: &str, channels, window| convolution(&vs.pp(name), channels, window);
    let fork = |tower: &str| -> Result<Vec<Convolution>> {
        Ok(vec![
            one(&format!("{tower}_mixed_conv"), (384, 384), Window::of((1, 3)))?,
            one(&format!("{tower}_mixed_conv_1"), (384, 384), Window::of((3, 1)))?,
        ])
    };
    let point = |name: &str, outputs| one(name, (inputs, outputs), Window::POINT);
    let deep = vec![point("tower_1_conv", 448)?, one("tower_1_conv_1", (448, 384), THREE)?];
    Ok(vec![
        Branch { pool: None, chain: vec![point("conv", 320)?], fork: Vec::new() },
        Branch { pool: None, chain: vec![point("tower_conv", 384)?], fork: fork("tower")? },
        Branch { pool: None, chain: deep, fork: fork("tower_1")? },
        Branch { pool: Some(pool), chain: vec![point("tower_2_conv", 192)?], fork: Vec::new() },
    ])
}
