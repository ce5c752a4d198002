//! The contact sheet: each cluster's size, words and nearest pictures, in one PNG.

use std::io::Cursor;

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use image::{ImageFormat, Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::PrepareError;
use super::report::{ClusterReport, NEAREST, Report};
use crate::data::source::Reason;

/// Side of a picture on the sheet, in pixels.
const SIDE: u32 = 112;
/// Between pictures, in pixels.
const GAP: u32 = 8;
/// Around everything, in pixels.
const MARGIN: u32 = 24;
/// Heights of the two lines above each cluster's pictures, and of the space below, in pixels.
const TITLE: u32 = 26;
const LINE: u32 = 28;
const BELOW: u32 = 24;
const WIDTH: u32 = 2 * MARGIN + NEAREST as u32 * (SIDE + GAP) - GAP;
const HEAD: u32 = MARGIN + TITLE + LINE + BELOW;
const ROW: u32 = TITLE + LINE + SIDE + BELOW;

const INK: Rgb<u8> = Rgb([28, 30, 36]);
const FAINT: Rgb<u8> = Rgb([110, 114, 124]);
const RULE: Rgb<u8> = Rgb([222, 224, 229]);

/// Draws the sheet of pictures that are `side` pixels a side and that `pixels` reads (cluster, place among its nearest, RGB bytes). Gives a PNG.
pub(super) fn draw(
    report: &Report,
    side: u32,
    mut pixels: impl FnMut(usize, usize, &mut [u8]) -> Result<(), PrepareError>,
) -> Result<Vec<u8>, PrepareError> {
    let height = HEAD + report.clusters.len() as u32 * ROW + MARGIN - BELOW;
    let mut sheet = RgbImage::from_pixel(WIDTH, height, Rgb([255; 3]));
    let (title, details) = head(report);
    text(&mut sheet, MARGIN, MARGIN, &title, FontWeight::Bold, INK);
    text(&mut sheet, MARGIN, MARGIN + TITLE, &details, FontWeight::Regular, FAINT);
    let mut picture = RgbImage::new(side, side);
    for (number, cluster) in report.clusters.iter().enumerate() {
        let top = HEAD + number as u32 * ROW;
        (MARGIN..WIDTH - MARGIN).for_each(|x| sheet.put_pixel(x, top - BELOW / 2, RULE));
        let (size, words) = describe(number, cluster, report.samples);
        text(&mut sheet, MARGIN, top, &size, FontWeight::Bold, INK);
        text(&mut sheet, MARGIN, top + TITLE, &words, FontWeight::Regular, FAINT);
        for place in 0..cluster.nearest.len() {
            pixels(number, place, &mut picture)?;
            let x = MARGIN + place as u32 * (SIDE + GAP);
            imageops::replace(&mut sheet, &scaled(&picture), x.into(), (top + TITLE + LINE).into());
        }
    }
    let mut png = Cursor::new(Vec::new());
    sheet.write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

fn head(report: &Report) -> (String, String) {
    let Report { samples, pictures, balance, clusters, skipped } = report;
    let title = format!("{} captioned pictures in {} clusters", thousands(*samples), clusters.len());
    let same = samples - pictures;
    let mut details = format!("largest / smallest {balance:.2}");
    if same > 0 {
        details += &format!(" \u{b7} {} the same as another", thousands(same));
    }
    details += &format!(" \u{b7} {} skipped", thousands(skipped.count() as usize));
    let reason = |(reason, count): (&Reason, &u64)| format!("{} {reason}", thousands(*count as usize));
    let reasons: Vec<_> = skipped.by_reason.iter().map(reason).collect();
    if !reasons.is_empty() {
        details += &format!(" ({})", reasons.join(", "));
    }
    (title, details)
}

fn describe(number: usize, cluster: &ClusterReport, samples: usize) -> (String, String) {
    let share = 100.0 * cluster.samples as f64 / samples as f64;
    let size = format!(
        "cluster {number}: {} pictures ({share:.1} %), {} of them held out",
        thousands(cluster.samples),
        thousands(cluster.held_out)
    );
    let words: Vec<_> = cluster.words.iter().map(|word| word.word.as_str()).collect();
    (size, if words.is_empty() { "(no word tells it from the others)".to_owned() } else { words.join(", ") })
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// A picture at its size on the sheet. Small ones are enlarged smoothly: hard pixels of a photograph are hard to read.
fn scaled(picture: &RgbImage) -> RgbImage {
    let mut to = images::Image::new(SIDE, SIDE, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let from = images::ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3);
    let drawn = from.is_ok_and(|from| Resizer::new().resize(&from, &mut to, &options).is_ok());
    drawn.then(|| RgbImage::from_raw(SIDE, SIDE, to.into_vec())).flatten().unwrap_or_else(|| RgbImage::new(SIDE, SIDE))
}

/// Writes a line of text with its upper left corner at (x, y); what doesn't fit is cut. Letters that the font lacks become `?`.
fn text(sheet: &mut RgbImage, x: u32, y: u32, line: &str, weight: FontWeight, colour: Rgb<u8>) {
    let height = RasterHeight::Size20;
    let step = get_raster_width(weight, height) as u32;
    let room = ((WIDTH - MARGIN).saturating_sub(x) / step) as usize;
    let cut = line.chars().count() > room;
    let letters =
        line.chars().take(if cut { room.saturating_sub(3) } else { room }).chain(if cut { "..." } else { "" }.chars());
    for (place, letter) in letters.enumerate() {
        let Some(raster) = get_raster(letter, weight, height).or_else(|| get_raster('?', weight, height)) else {
            continue;
        };
        for (dy, row) in raster.rows().enumerate() {
            for (dx, strength) in row.iter().enumerate() {
                let place = (x + place as u32 * step + dx as u32, y + dy as u32);
                if let Some(pixel) = sheet.get_pixel_mut_checked(place.0, place.1) {
                    for (value, ink) in pixel.0.iter_mut().zip(colour.0) {
                        let mixed =
                            u32::from(*value) * (255 - u32::from(*strength)) + u32::from(ink) * u32::from(*strength);
                        *value = ((mixed + 127) / 255) as u8;
                    }
                }
            }
        }
    }
}
