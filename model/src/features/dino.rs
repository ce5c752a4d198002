//! DINOv2's features (Oquab et al., 2304.07193), which Paris clusters by: ViT-L/14 as published, 1024 values.
//!
//! candle's own DINOv2 reads other names, takes the tanh form of GELU and the nearest position where the original interpolates; this one equals
//! `transformers`' `Dinov2Model`.

use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::{
    Conv2d, Conv2dConfig, LayerNorm, Linear, VarBuilder, conv2d, layer_norm, linear, ops::softmax_last_dim,
};

use super::{ImageFeatures, imagenet_colours, resize::Filter};
use crate::pretrained::{Files, Identity, Network, PretrainedError, Weights};

/// Side to which pictures are scaled, in pixels.
const SIDE: usize = 224;
/// Side of a patch, in pixels.
const PATCH: usize = 14;
/// Width of an attention head in every published DINOv2.
const HEAD_WIDTH: usize = 64;
const EPSILON: f64 = 1e-6;
/// What only training used.
const UNUSED: [&str; 1] = ["embeddings.mask_token"];

/// The normalised class token of the last layer, of pictures that are scaled to 224 x 224 before.
pub struct Dino {
    identity: Identity,
    width: usize,
    patches: Conv2d,
    class: Tensor,
    /// `[1, 1 + patches, width]`, for the side that is used.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Dino {
    /// Loads `model.safetensors` under `transformers`' names; depth and width are read from it.
    pub fn load(files: &Files, device: &Device) -> std::result::Result<Self, PretrainedError> {
        let weights = Weights::new(Network::Dino, &files.weights)?;
        let width = weights.extent("embeddings.cls_token", 2, 1024);
        let depth = weights.layers("encoder.layer.", 24);
        let hidden = weights.extent("encoder.layer.0.mlp.fc1.weight", 0, 4 * width);
        // Learnt for 518 pixels a side, which is 37 patches.
        let places = weights.extent("embeddings.position_embeddings", 1, 1 + 37 * 37);
        let side = places.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != places || !width.is_multiple_of(HEAD_WIDTH) || width == 0 {
            let faults =
                vec![format!("{places} positions of {width} values are no square grid and no heads of {HEAD_WIDTH}")];
            return Err(PretrainedError::Tensors { network: Network::Dino, faults });
        }
        let identity = files.identity();
        weights.build(device, &UNUSED, |vs| {
            let (embeddings, layers) = (vs.pp("embeddings"), vs.pp("encoder.layer"));
            let config = Conv2dConfig { stride: PATCH, ..Default::default() };
            let projection = embeddings.pp("patch_embeddings.projection");
            Ok(Self {
                identity,
                width,
                patches: conv2d(3, width, PATCH, config, projection)?,
                class: embeddings.get((1, 1, width), "cls_token")?,
                positions: interpolate(
                    &embeddings.get((1, places, width), "position_embeddings")?,
                    side,
                    SIDE / PATCH,
                )?,
                blocks: (0..depth).map(|layer| Block::new(&layers.pp(layer), width, hidden)).collect::<Result<_>>()?,
                norm: layer_norm(width, EPSILON, vs.pp("layernorm"))?,
            })
        })
    }

    /// Features of pictures that are scaled and in ImageNet's colours.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(pictures)?.flatten_from(2)?.transpose(1, 2)?;
        let class = self.class.broadcast_as((pictures.dim(0)?, 1, self.width))?;
        let x = Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.positions)?;
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        self.norm.forward(&x.i((.., 0))?.contiguous()?)
    }
}

impl ImageFeatures for Dino {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn extract(&self, pictures: &Tensor) -> Result<Tensor> {
        let pictures = Filter::Cubic.resize(&pictures.to_dtype(DType::F32)?, SIDE, SIDE)?;
        self.forward(&imagenet_colours(&pictures)?)
    }
}

/// The table of positions of `from` patches a side, for `to` a side; the class token's stays.
fn interpolate(table: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    let (class, grid) = (table.narrow(1, 0, 1)?, table.narrow(1, 1, from * from)?);
    let grid = grid.transpose(1, 2)?.reshape((1, (), from, from))?;
    let grid = Filter::CubicOfFour.resize(&grid, to, to)?.flatten_from(2)?.transpose(1, 2)?;
    Tensor::cat(&[class, grid], 1)
}

struct Block {
    norms: [LayerNorm; 2],
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    mlp: [Linear; 2],
    scales: [Tensor; 2],
}

impl Block {
    fn new(vs: &VarBuilder, width: usize, hidden: usize) -> Result<Self> {
        let attention = |name: &str| linear(width, width, vs.pp("attention.attention").pp(name));
        Ok(Self {
            norms: [layer_norm(width, EPSILON, vs.pp("norm1"))?, layer_norm(width, EPSILON, vs.pp("norm2"))?],
            query: attention("query")?,
            key: attention("key")?,
            value: attention("value")?,
            out: linear(width, width, vs.pp("attention.output.dense"))?,
            mlp: [linear(width, hidden, vs.pp("mlp.fc1"))?, linear(hidden, width, vs.pp("mlp.fc2"))?],
            scales: [vs.get(width, "layer_scale1.lambda1")?, vs.get(width, "layer_scale2.lambda1")?],
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let attended = self.attend(&self.norms[0].forward(x)?)?.broadcast_mul(&self.scales[0])?;
        let x = (x + attended)?;
        let inner = self.mlp[0].forward(&self.norms[1].forward(&x)?)?.gelu_erf()?;
        &x + self.mlp[1].forward(&inner)?.broadcast_mul(&self.scales[1])?
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let heads =
            |x: Tensor| x.reshape((batch, tokens, width / HEAD_WIDTH, HEAD_WIDTH))?.transpose(1, 2)?.contiguous();
        let query = (heads(self.query.forward(x)?)? / (HEAD_WIDTH as f64).sqrt())?;
        let (key, value) = (heads(self.key.forward(x)?)?, heads(self.value.forward(x)?)?);
        let weights = softmax_last_dim(&query.matmul(&key.transpose(D::Minus2, D::Minus1)?)?)?;
        self.out.forward(&weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, tokens, width))?)
    }
}
