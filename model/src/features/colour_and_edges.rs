//! Features that need no download.

use candle_core::{DType, Device, Result, Tensor};

use super::ImageFeatures;
use crate::pretrained::Identity;

/// Cells along each side of the layout grids.
const CELLS: usize = 4;
const LAYOUT: usize = CELLS * CELLS * 3;
/// Directions of an edge, light to dark counting as dark to light.
const DIRECTIONS: usize = 8;
const EDGES: usize = CELLS * CELLS * DIRECTIONS;
/// Bins along each of the two colour axes, and of lightness.
const HUES: usize = 6;
const LIGHTS: usize = 6;
const HISTOGRAM: usize = HUES * HUES + LIGHTS;
/// Cosine and sine of each direction's middle, 22.5 degrees apart; written out, since library cosines differ in the last bit.
const AXES: [(f32, f32); DIRECTIONS] = [
    (1.0, 0.0),
    (0.923_879_5, 0.382_683_43),
    (0.707_106_77, 0.707_106_77),
    (0.382_683_43, 0.923_879_5),
    (0.0, 1.0),
    (-0.382_683_43, 0.923_879_5),
    (-0.707_106_77, 0.707_106_77),
    (-0.923_879_5, 0.382_683_43),
];

/// Where the colours lie, where edges of which direction lie, and how much there is of which colour. Needs no download.
///
/// Three parts, each of length one: the mean opponent colour of 4 x 4 cells; the edge directions in them, weighted by strength; a soft
/// histogram of colour and lightness. Plain IEEE arithmetic in a fixed order, so that machines agree on the clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColourAndEdges;

impl ImageFeatures for ColourAndEdges {
    fn identity(&self) -> Identity {
        Identity::built_in("colour-and-edges")
    }

    fn width(&self) -> usize {
        LAYOUT + EDGES + HISTOGRAM
    }

    fn extract(&self, pictures: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pictures.dims4()?;
        if channels != 3 || height == 0 || width == 0 {
            candle_core::bail!("features of pictures need shape [batch, 3, height, width], not {:?}", pictures.dims());
        }
        let values = pictures.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let features: Vec<f32> =
            values.chunks_exact(3 * height * width).flat_map(|picture| describe(picture, height, width)).collect();
        Tensor::from_vec(features, (batch, self.width()), pictures.device())
    }
}

/// Lightness, red against green, blue against yellow; each in -1..1.
fn opponent([r, g, b]: [f32; 3]) -> [f32; 3] {
    [(r + g + b) / 3.0, (r - g) / 2.0, (2.0 * b - r - g) / 4.0]
}

/// The features of one picture, channel by channel in `values`.
fn describe(values: &[f32], height: usize, width: usize) -> Vec<f32> {
    let plane = height * width;
    let colours: Vec<[f32; 3]> =
        (0..plane).map(|at| opponent([values[at], values[plane + at], values[2 * plane + at]])).collect();
    let mut features = vec![0.0; LAYOUT + EDGES + HISTOGRAM];
    let (layout, rest) = features.split_at_mut(LAYOUT);
    let (edges, histogram) = rest.split_at_mut(EDGES);
    for y in 0..height {
        for x in 0..width {
            let colour = colours[y * width + x];
            let cell = (y * CELLS / height) * CELLS + x * CELLS / width;
            layout[cell * 3..][..3].iter_mut().zip(colour).for_each(|(sum, value)| *sum += value);
            let (direction, strength) = edge(&colours, height, width, x, y);
            edges[cell * DIRECTIONS + direction] += strength;
            count_colour(histogram, colour);
        }
    }
    // Roots keep one strong edge, or a large plain background, from drowning the rest.
    edges.iter_mut().chain(histogram.iter_mut()).for_each(|value| *value = value.sqrt());
    [layout, edges, histogram].into_iter().for_each(normalise);
    features
}

/// Direction and strength of the lightness edge at a pixel; outside the picture its border goes on.
fn edge(colours: &[[f32; 3]], height: usize, width: usize, x: usize, y: usize) -> (usize, f32) {
    let light = |x: usize, y: usize| colours[y * width + x][0];
    let across = light((x + 1).min(width - 1), y) - light(x.saturating_sub(1), y);
    let down = light(x, (y + 1).min(height - 1)) - light(x, y.saturating_sub(1));
    let along = |(cos, sin): (f32, f32)| (across * cos + down * sin).abs();
    let direction =
        (1..DIRECTIONS).fold(0, |best, next| if along(AXES[next]) > along(AXES[best]) { next } else { best });
    (direction, (across * across + down * down).sqrt())
}

/// Adds a colour to the bins it lies between.
fn count_colour(histogram: &mut [f32], [light, red, blue]: [f32; 3]) {
    let (colours, lights) = histogram.split_at_mut(HUES * HUES);
    // Most pictures use the middle of the colour axes, so the bins are spread over half of them.
    for (row, share) in between(red * 2.0, HUES) {
        for (column, part) in between(blue * 2.0, HUES) {
            colours[row * HUES + column] += share * part;
        }
    }
    for (bin, share) in between(light, LIGHTS) {
        lights[bin] += share;
    }
}

/// The two of `bins` that `value` (-1..1) lies between, with its share in each.
fn between(value: f32, bins: usize) -> [(usize, f32); 2] {
    let place = (value.clamp(-1.0, 1.0) + 1.0) / 2.0 * (bins - 1) as f32;
    let low = (place as usize).min(bins - 2);
    let share = place - low as f32;
    [(low, 1.0 - share), (low + 1, share)]
}

fn normalise(part: &mut [f32]) {
    let norm = part.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 {
        part.iter_mut().for_each(|value| *value /= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(colour: impl Fn(usize, usize) -> [f32; 3]) -> Tensor {
        let mut values = vec![0.0; 3 * 16 * 16];
        for y in 0..16 {
            for x in 0..16 {
                for (channel, value) in colour(x, y).into_iter().enumerate() {
                    values[channel * 256 + y * 16 + x] = value;
                }
            }
        }
        Tensor::from_vec(values, (1, 3, 16, 16), &Device::Cpu).unwrap()
    }

    fn describe(picture: &Tensor) -> Vec<f32> {
        ColourAndEdges.extract(picture).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    #[test]
    fn each_part_has_length_one() {
        let features = describe(&picture(|x, y| [x as f32 / 8.0 - 1.0, y as f32 / 8.0 - 1.0, 0.3]));
        assert_eq!(features.len(), ColourAndEdges.width());
        for part in [&features[..LAYOUT], &features[LAYOUT..LAYOUT + EDGES], &features[LAYOUT + EDGES..]] {
            assert!((apart(part, &vec![0.0; part.len()]) - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn colour_and_direction_tell_pictures_apart() {
        let stripes = |vertical: bool, colour: [f32; 3]| {
            picture(move |x, y| if (if vertical { x } else { y }) / 4 % 2 == 0 { colour } else { [1.0; 3] })
        };
        let red = describe(&stripes(true, [1.0, -1.0, -1.0]));
        let dark_red = describe(&stripes(true, [0.8, -1.0, -1.0]));
        let blue = describe(&stripes(true, [-1.0, -1.0, 1.0]));
        let lying = describe(&stripes(false, [1.0, -1.0, -1.0]));
        assert!(apart(&red, &dark_red) < 0.3 * apart(&red, &blue));
        assert!(apart(&red, &dark_red) < 0.3 * apart(&red, &lying));
    }

    #[test]
    fn a_plain_or_tiny_picture_gives_finite_features() {
        assert!(describe(&picture(|_, _| [0.0; 3])).iter().all(|value| value.is_finite()));
        let dot = Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(describe(&dot).iter().all(|value| value.is_finite()));
        assert!(ColourAndEdges.extract(&Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu).unwrap()).is_err());
    }
}
