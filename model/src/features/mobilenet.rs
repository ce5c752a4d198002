//! MobileNetV2's features (Sandler et al., 1801.04381): small, quick, and they follow what a picture shows.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    ImageFeatures,
    convolution::{Convolution, Norm, Window},
    imagenet_colours,
    resize::Filter,
};
use crate::pretrained::{Files, Identity, Network, PretrainedError, Weights};

/// Side to which pictures are scaled, in pixels.
const SIDE: usize = 128;
/// Values a picture gives.
const WIDTH: usize = 1280;
/// Expansion, channels, repeats and first stride of each stage (table 2 of the paper).
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
/// What classifies, and counters that torch keeps.
const UNUSED: [&str; 2] = ["classifier.", ".num_batches_tracked"];

/// The 1280 values before MobileNetV2's classifier, averaged over the picture, which is scaled to 128 x 128 before.
pub struct MobileNet {
    identity: Identity,
    first: Convolution,
    blocks: Vec<Block>,
    last: Convolution,
}

impl MobileNet {
    /// Loads torchvision's `mobilenet_v2` weights.
    pub fn load(files: &Files, device: &Device) -> std::result::Result<Self, PretrainedError> {
        let weights = Weights::new(Network::MobileNet, &files.weights)?;
        let (first, blocks, last) = weights.build(device, &UNUSED, |vs| {
            let vs = vs.pp("features");
            let first = Window { stride: 2, ..Window::of((3, 3)) };
            let first = convolution(&vs.pp("0"), ("0", "1"), (3, 32), first)?;
            let (mut blocks, mut channels) = (Vec::new(), 32);
            for (expansion, outputs, repeats, stride) in STAGES {
                for repeat in 0..repeats {
                    let stride = if repeat == 0 { stride } else { 1 };
                    blocks.push(Block::new(&vs.pp(blocks.len() + 1), expansion, channels, outputs, stride)?);
                    channels = outputs;
                }
            }
            let last = convolution(&vs.pp(blocks.len() + 1), ("0", "1"), (channels, WIDTH), Window::POINT)?;
            Ok((first, blocks, last))
        })?;
        Ok(Self { identity: files.identity(), first, blocks, last })
    }

    /// Features of pictures that are scaled and in ImageNet's colours.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let x = relu6(&self.first.forward(pictures)?)?;
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        relu6(&self.last.forward(&x)?)?.mean((2, 3))
    }
}

impl ImageFeatures for MobileNet {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn extract(&self, pictures: &Tensor) -> Result<Tensor> {
        let pictures = Filter::Linear.resize(&pictures.to_dtype(DType::F32)?, SIDE, SIDE)?;
        self.forward(&imagenet_colours(&pictures)?)
    }
}

fn relu6(x: &Tensor) -> Result<Tensor> {
    x.clamp(0f32, 6f32)
}

/// Widens, filters each channel, and narrows; what comes in is added where it fits (the paper's inverted residual).
struct Block {
    wide: Vec<Convolution>,
    narrow: Convolution,
    residual: bool,
}

impl Block {
    fn new(vs: &VarBuilder, expansion: usize, inputs: usize, outputs: usize, stride: usize) -> Result<Self> {
        let (vs, hidden, mut wide) = (vs.pp("conv"), inputs * expansion, Vec::new());
        if expansion > 1 {
            wide.push(convolution(&vs.pp("0"), ("0", "1"), (inputs, hidden), Window::POINT)?);
        }
        let each = Window { stride, depthwise: true, ..Window::of((3, 3)) };
        wide.push(convolution(&vs.pp(wide.len()), ("0", "1"), (hidden, hidden), each)?);
        let names = (wide.len().to_string(), (wide.len() + 1).to_string());
        let narrow = convolution(&vs, (&names.0, &names.1), (hidden, outputs), Window::POINT)?;
        Ok(Self { wide, narrow, residual: stride == 1 && inputs == outputs })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = self.wide.iter().try_fold(x.clone(), |x, convolution| relu6(&convolution.forward(&x)?))?;
        let narrow = self.narrow.forward(&wide)?;
        if self.residual { narrow + x } else { Ok(narrow) }
    }
}

/// The convolution and the norm of these names.
fn convolution(
    vs: &VarBuilder,
    (convolution, norm): (&str, &str),
    channels: (usize, usize),
    window: Window,
) -> Result<Convolution> {
    let get = |name| vs.pp(norm).get(channels.1, name);
    let norm = Norm {
        mean: get("running_mean")?,
        variance: get("running_var")?,
        scale: Some(get("weight")?),
        shift: get("bias")?,
        epsilon: 1e-5,
    };
    Convolution::new(vs.pp(convolution), norm, channels, window)
}
