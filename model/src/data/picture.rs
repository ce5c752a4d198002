//! One encoded picture to a square of RGB bytes.

use std::io::Cursor;
use std::sync::Mutex;

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::ImageRef};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage, RgbaImage};

use super::source::{Reason, Refusal};

/// Largest encoded picture that is read, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most pixels a picture may have before it is scaled.
const PIXELS_MAX: u64 = 1 << 26;
/// Pictures of more pixels are decoded one at a time, whatever the number of threads, for the sake of memory.
const PIXELS_LARGE: u64 = 1 << 24;
/// Most memory a decoder may take for one picture, in bytes.
const DECODER_BYTES_MAX: u64 = 512 << 20;
/// File name endings of pictures that can be decoded, lower case.
pub(super) const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Whoever decodes a large picture holds it.
static LARGE: Mutex<()> = Mutex::new(());

/// Decodes PNG, JPEG or WebP (told by content, not by name), turns it upright as its EXIF data says, lays it over white,
/// crops the middle square and scales that to `size` x `size`.
pub(super) fn decode_square(encoded: &[u8], size: u32, side_min: u32) -> Result<RgbImage, Refusal> {
    let undecodable = |error: image::ImageError| match error {
        image::ImageError::Limits(_) => Refusal::new(Reason::TooLarge, error),
        _ => Refusal::new(Reason::Undecodable, error),
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    let mut reader =
        ImageReader::new(Cursor::new(encoded)).with_guessed_format().map_err(|error| undecodable(error.into()))?;
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    check_side(width, height, side_min)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > PIXELS_MAX {
        return Err(Refusal::new(
            Reason::TooLarge,
            format!("{width} x {height} pixels where {PIXELS_MAX} in all are decoded"),
        ));
    }
    let _alone = (pixels > PIXELS_LARGE).then(|| LARGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let orientation = decoder.orientation().map_err(undecodable)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    picture.apply_orientation(orientation);
    square(
        &match picture {
            DynamicImage::ImageRgb8(rgb) => rgb,
            other if other.color().has_alpha() => over_white(&other.into_rgba8()),
            other => other.into_rgb8(),
        },
        size,
    )
}

/// Bare grey pixels, `width` a row, as [`decode_square`] gives a picture.
pub(super) fn grey_square(pixels: Vec<u8>, width: u32, size: u32, side_min: u32) -> Result<RgbImage, Refusal> {
    let height = pixels.len() as u32 / width.max(1);
    check_side(width, height, side_min)?;
    let rgb = pixels.into_iter().flat_map(|grey| [grey; 3]).collect();
    let rgb = RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| Refusal::new(Reason::Undecodable, "pixels are missing"))?;
    square(&rgb, size)
}

fn check_side(width: u32, height: u32, side_min: u32) -> Result<(), Refusal> {
    if width.min(height) < side_min.max(1) {
        return Err(Refusal::new(
            Reason::TooSmall,
            format!("{width} x {height} pixels where {side_min} a side are the least"),
        ));
    }
    Ok(())
}

/// The middle square, scaled. The triangle filter widens with the reduction, so it averages an area rather than picking points.
fn square(picture: &RgbImage, size: u32) -> Result<RgbImage, Refusal> {
    let (width, height) = picture.dimensions();
    let side = width.min(height);
    let (left, top) = ((width - side) / 2, (height - side) / 2);
    if side == size {
        return Ok(image::imageops::crop_imm(picture, left, top, side, side).to_image());
    }
    let refused = |error: &dyn std::fmt::Display| Refusal::new(Reason::Undecodable, error);
    let from = ImageRef::new(width, height, picture.as_raw(), PixelType::U8x3).map_err(|error| refused(&error))?;
    let mut to = fast_image_resize::images::Image::new(size, size, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(
        left.into(),
        top.into(),
        side.into(),
        side.into(),
    );
    Resizer::new().resize(&from, &mut to, &options).map_err(|error| refused(&error))?;
    RgbImage::from_raw(size, size, to.into_vec()).ok_or_else(|| refused(&"scaling lost pixels"))
}

fn over_white(picture: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let blend = |colour: u32| ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([blend(r), blend(g), blend(b)])
    })
}
