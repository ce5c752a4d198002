//! Which expert was used when: the weights of every step, as JSON and as a picture.

use std::fmt::Write;

use serde::Serialize;

use super::Step;

/// Width of a panel's curves, and what stands around them; pixels.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 96.0;
const LEFT: f64 = 12.0;
const TITLE: f64 = 24.0;
const LEGEND: f64 = 110.0;
const BOTTOM: f64 = 34.0;

/// The weights of all steps of a drawing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    steps: Vec<Traced>,
}

/// One step's weights. Where a solver asks more than once in a step, these are the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Traced {
    /// The time the step starts at, 1 for noise.
    t: f64,
    /// `[pictures][experts]`, rows sum to 1.
    weights: Vec<Vec<f32>>,
}

impl Trace {
    /// Adds a step.
    pub fn add(&mut self, step: &Step) {
        self.steps.push(Traced { t: step.t, weights: step.weights.to_vec() });
    }

    /// The steps as a picture (SVG): a panel for each drawn picture, titled by `titles`, from noise on the left to the picture on the right; the height of a
    /// colour is the weight of its expert.
    pub fn svg(&self, titles: &[&str]) -> String {
        let first = self.steps.first().map(|step| step.weights.as_slice()).unwrap_or_default();
        let (pictures, experts) = (first.len(), first.first().map_or(0, Vec::len));
        let panel = TITLE + HEIGHT;
        let (width, height) = (LEFT + WIDTH + LEGEND, (panel * pictures as f64).max(18.0 * experts as f64) + BOTTOM);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' font-family='sans-serif' \
             font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
        );
        for picture in 0..pictures {
            let top = panel * picture as f64;
            let title = escaped(titles.get(picture).copied().unwrap_or_default());
            put(&mut svg, format_args!("<text x='{LEFT}' y='{:.1}'>{picture}: {title}</text>", top + TITLE - 6.0));
            self.draw(&mut svg, picture, experts, top + TITLE);
        }
        let foot = panel * pictures as f64 + 18.0;
        put(&mut svg, format_args!("<text x='{LEFT}' y='{foot:.1}' fill='#555'>noise, t = 1</text>"));
        let right = LEFT + WIDTH;
        put(
            &mut svg,
            format_args!("<text x='{right}' y='{foot:.1}' text-anchor='end' fill='#555'>picture, t = 0</text>"),
        );
        for expert in 0..experts {
            let (x, y) = (LEFT + WIDTH + 12.0, TITLE + 18.0 * expert as f64);
            let colour = colour(expert, experts);
            put(&mut svg, format_args!("<rect x='{x}' y='{y:.1}' width='12' height='12' fill='{colour}'/>"));
            put(&mut svg, format_args!("<text x='{}' y='{:.1}'>expert {expert}</text>", x + 18.0, y + 10.0));
        }
        svg + "</svg>\n"
    }

    /// The weights of one picture, stacked, a column a step.
    fn draw(&self, svg: &mut String, picture: usize, experts: usize, top: f64) {
        for (number, step) in self.steps.iter().enumerate() {
            let x = |step: usize| LEFT + WIDTH * step as f64 / self.steps.len() as f64;
            let (left, mut y) = (x(number), top);
            for (expert, weight) in step.weights[picture].iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                let height = HEIGHT * f64::from(*weight);
                let (width, colour) = (x(number + 1) - left, colour(expert, experts));
                put(
                    svg,
                    format_args!(
                        "<rect x='{left:.2}' y='{y:.2}' width='{width:.2}' height='{height:.2}' fill='{colour}'/>"
                    ),
                );
                y += height;
            }
        }
        put(
            svg,
            format_args!("<rect x='{LEFT}' y='{top:.1}' width='{WIDTH}' height='{HEIGHT}' fill='none' stroke='#999'/>"),
        );
    }
}

/// Hues of equal distance, every other one darker, so that neighbours differ without colour as well.
fn colour(expert: usize, experts: usize) -> String {
    let hue = 360 * expert / experts.max(1);
    format!("hsl({hue},55%,{}%)", if expert.is_multiple_of(2) { 62 } else { 42 })
}

fn escaped(text: &str) -> String {
    let short: String = text.chars().take(70).collect();
    short.replace('&', "&amp;").replace('<', "&lt;")
}

fn put(svg: &mut String, line: std::fmt::Arguments) {
    // Writing to a string does not fail.
    let _ = writeln!(svg, "{line}");
}
