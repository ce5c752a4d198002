//! One encoded picture to a square of RGB bytes.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage, RgbaImage};

/// Largest encoded picture that is read, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most pixels a picture may have before it is scaled.
const PIXELS_MAX: u64 = 1 << 26;
/// Most memory a decoder may take for one picture, in bytes.
const DECODER_BYTES_MAX: u64 = 512 << 20;
/// File name endings of pictures that can be decoded, lower case.
pub(super) const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Decodes PNG, JPEG or WebP (told by content, not by name), turns it upright as its EXIF data says, lays it over white,
/// crops the middle square and scales that to `size` x `size`. The error is a reason to show.
pub(super) fn decode_square(encoded: &[u8], size: u32) -> Result<RgbImage, String> {
    let upright = decode(encoded).map_err(|error| format!("can't decode the picture: {error}"))?;
    let opaque = match upright {
        DynamicImage::ImageRgb8(rgb) => rgb,
        other if other.color().has_alpha() => over_white(&other.into_rgba8()),
        other => other.into_rgb8(),
    };
    let (width, height) = opaque.dimensions();
    let side = width.min(height);
    let square = imageops::crop_imm(&opaque, (width - side) / 2, (height - side) / 2, side, side);
    // The triangle filter widens with the reduction, so it averages an area rather than picking points.
    Ok(if side == size { square.to_image() } else { imageops::resize(&*square, size, size, FilterType::Triangle) })
}

fn decode(encoded: &[u8]) -> image::ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    let mut reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format()?;
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX || width == 0 || height == 0 {
        let refusal = image::error::LimitErrorKind::DimensionError;
        return Err(image::ImageError::Limits(image::error::LimitError::from_kind(refusal)));
    }
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn over_white(picture: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let blend = |colour: u32| ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([blend(r), blend(g), blend(b)])
    })
}
