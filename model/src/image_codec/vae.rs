//! Stable Diffusion's autoencoder (Rombach et al., 2112.10752), in the layout of `diffusers`' `AutoencoderKL`, from candle-transformers' blocks.
//!
//! candle's own `AutoEncoderKL` keeps its encoder private and gives a sample drawn by an unseeded generator; here it is means and log-variances.

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, VarBuilder, conv2d, group_norm, ops::silu};
use candle_transformers::models::stable_diffusion::unet_2d_blocks::{
    DownEncoderBlock2D, DownEncoderBlock2DConfig, UNetMidBlock2D, UNetMidBlock2DConfig, UpDecoderBlock2D,
    UpDecoderBlock2DConfig,
};

use super::ImageCodec;
use crate::pretrained::{Files, Identity, Network, PretrainedError, Weights};

/// What latents are multiplied by, so that experts learn about unit variance (`scaling_factor` of Stable Diffusion 1 and of Paris).
pub const LATENT_SCALE: f64 = 0.18215;

/// Residual blocks at each resolution of the encoder; the decoder has one more.
const BLOCKS_A_LEVEL: usize = 2;
/// Groups of the group norms.
const GROUPS: usize = 32;
/// What is added to variances before roots.
const EPSILON: f64 = 1e-6;
/// Channels at each resolution of the published network.
const PUBLISHED_CHANNELS: [usize; 4] = [128, 256, 512, 512];

/// The autoencoder: 8 pixels a side to one position of 4 channels, as published; the extents are read from the weights.
pub struct Vae {
    identity: Identity,
    channels: usize,
    reduction: usize,
    encoder: Encoder,
    decoder: Decoder,
}

impl Vae {
    /// Loads `diffusion_pytorch_model.safetensors`.
    pub fn load(files: &Files, device: &Device) -> std::result::Result<Self, PretrainedError> {
        let weights = Weights::new(Network::Vae, &files.weights)?;
        let levels = weights.layers("encoder.down_blocks.", PUBLISHED_CHANNELS.len());
        let widths: Vec<usize> = (0..levels)
            .map(|level| {
                let published = PUBLISHED_CHANNELS[level.min(PUBLISHED_CHANNELS.len() - 1)];
                weights.extent(&format!("encoder.down_blocks.{level}.resnets.0.conv1.weight"), 0, published)
            })
            .collect();
        if let Some(width) = widths.iter().find(|width| !width.is_multiple_of(GROUPS)) {
            let faults = vec![format!("a level has {width} channels, which are no multiple of {GROUPS}")];
            return Err(PretrainedError::Tensors { network: Network::Vae, faults });
        }
        let channels = weights.extent("post_quant_conv.weight", 0, 4);
        let (encoder, decoder) = weights.build(device, &[], |vs| {
            Ok((Encoder::new(&vs, channels, &widths)?, Decoder::new(&vs, channels, &widths)?))
        })?;
        Ok(Self { identity: files.identity(), channels, reduction: 1 << (levels - 1), encoder, decoder })
    }
}

impl ImageCodec for Vae {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn reduction(&self) -> usize {
        self.reduction
    }

    fn moments(&self, pictures: &Tensor) -> Result<Option<Tensor>> {
        let (_, colours, height, width) = pictures.dims4()?;
        if colours != 3 || !height.is_multiple_of(self.reduction) || !width.is_multiple_of(self.reduction) {
            candle_core::bail!(
                "the autoencoder takes pictures [batch, 3, height, width] with sides that are multiples of {}, not {:?}",
                self.reduction,
                pictures.dims()
            );
        }
        let moments = one_by_one(pictures, |picture| self.encoder.forward(picture))?;
        let means = (moments.narrow(1, 0, self.channels)? * LATENT_SCALE)?;
        // The variance of a scaled number is scaled by the square.
        let log_variances = (moments.narrow(1, self.channels, self.channels)? + 2.0 * LATENT_SCALE.ln())?;
        Tensor::cat(&[means, log_variances], 1).map(Some)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        one_by_one(&(latents / LATENT_SCALE)?, |latent| self.decoder.forward(latent))
    }
}

/// Applies `network` to one picture of a batch after the other: each takes a hundred megabytes and more on its way, and candle-transformers' attention
/// block is wrong for more (candle 0.11 multiplies a transposed batch by one matrix as if its rows lay one after the other).
fn one_by_one(batch: &Tensor, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let parts = (0..batch.dim(0)?).map(|picture| network(&batch.narrow(0, picture, 1)?));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

fn conv(inputs: usize, outputs: usize, vs: VarBuilder) -> Result<Conv2d> {
    conv2d(inputs, outputs, 3, Conv2dConfig { padding: 1, ..Default::default() }, vs)
}

fn norm(channels: usize, vs: VarBuilder) -> Result<GroupNorm> {
    group_norm(GROUPS, channels, EPSILON, vs)
}

fn middle(channels: usize, vs: VarBuilder) -> Result<UNetMidBlock2D> {
    let config = UNetMidBlock2DConfig {
        resnet_eps: EPSILON,
        resnet_groups: Some(GROUPS),
        attn_num_head_channels: None,
        ..Default::default()
    };
    UNetMidBlock2D::new(vs, channels, None, config)
}

struct Encoder {
    conv_in: Conv2d,
    levels: Vec<DownEncoderBlock2D>,
    middle: UNetMidBlock2D,
    norm: GroupNorm,
    conv_out: Conv2d,
    quant: Conv2d,
}

impl Encoder {
    fn new(vs: &VarBuilder, channels: usize, widths: &[usize]) -> Result<Self> {
        let (quant, vs) = (vs.pp("quant_conv"), vs.pp("encoder"));
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let levels = widths.iter().enumerate().map(|(level, width)| {
            let config = DownEncoderBlock2DConfig {
                num_layers: BLOCKS_A_LEVEL,
                resnet_eps: EPSILON,
                resnet_groups: GROUPS,
                add_downsample: level + 1 < widths.len(),
                downsample_padding: 0,
                ..Default::default()
            };
            let before = widths[level.saturating_sub(1)];
            DownEncoderBlock2D::new(vs.pp("down_blocks").pp(level), before, *width, config)
        });
        Ok(Self {
            conv_in: conv(3, first, vs.pp("conv_in"))?,
            levels: levels.collect::<Result<_>>()?,
            middle: middle(last, vs.pp("mid_block"))?,
            norm: norm(last, vs.pp("conv_norm_out"))?,
            conv_out: conv(last, 2 * channels, vs.pp("conv_out"))?,
            quant: conv2d(2 * channels, 2 * channels, 1, Default::default(), quant)?,
        })
    }

    fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let x = self.levels.iter().try_fold(self.conv_in.forward(pictures)?, |x, level| level.forward(&x))?;
        let x = silu(&self.norm.forward(&self.middle.forward(&x, None)?)?)?;
        self.quant.forward(&self.conv_out.forward(&x)?)
    }
}

struct Decoder {
    post_quant: Conv2d,
    conv_in: Conv2d,
    middle: UNetMidBlock2D,
    levels: Vec<UpDecoderBlock2D>,
    norm: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(vs: &VarBuilder, channels: usize, widths: &[usize]) -> Result<Self> {
        let (post_quant, vs) = (vs.pp("post_quant_conv"), vs.pp("decoder"));
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let levels = widths.iter().rev().enumerate().map(|(level, width)| {
            let config = UpDecoderBlock2DConfig {
                num_layers: BLOCKS_A_LEVEL + 1,
                resnet_eps: EPSILON,
                resnet_groups: GROUPS,
                add_upsample: level + 1 < widths.len(),
                ..Default::default()
            };
            let before = widths[widths.len() - level.max(1)];
            UpDecoderBlock2D::new(vs.pp("up_blocks").pp(level), before, *width, config)
        });
        Ok(Self {
            post_quant: conv2d(channels, channels, 1, Default::default(), post_quant)?,
            conv_in: conv(channels, last, vs.pp("conv_in"))?,
            middle: middle(last, vs.pp("mid_block"))?,
            levels: levels.collect::<Result<_>>()?,
            norm: norm(first, vs.pp("conv_norm_out"))?,
            conv_out: conv(first, 3, vs.pp("conv_out"))?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.forward(&self.post_quant.forward(latents)?)?;
        let x = self.levels.iter().try_fold(self.middle.forward(&x, None)?, |x, level| level.forward(&x))?;
        self.conv_out.forward(&silu(&self.norm.forward(&x)?)?)
    }
}
