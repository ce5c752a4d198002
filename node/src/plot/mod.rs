//! Numbers as pictures: SVG with panels of curves, and matrices.

mod curves;
mod matrix;
mod panel;

use std::fmt::{Arguments, Write};

pub use self::{
    curves::{Curve, CurvePanel, curves},
    matrix::matrix,
    panel::{LEFT, Panel, RIGHT},
};

/// Width of a picture.
pub const WIDTH: f64 = 970.0;
/// Height of a panel.
pub const PANEL_HEIGHT: f64 = 240.0;
/// The upper edge of the first panel.
pub const TOP: f64 = 50.0;
/// Between two panels.
pub const GAP: f64 = 60.0;

/// Colours that are told apart with any kind of colour vision (Paul Tol's bright and muted schemes).
pub const COLOURS: [&str; 12] = [
    "#4477aa", "#cc6677", "#117733", "#ddcc77", "#aa4499", "#88ccee", "#882255", "#44aa99", "#999933", "#332288",
    "#ee8866", "#777777",
];

/// A picture that is being drawn.
pub struct Svg(String);

impl Svg {
    /// A white picture of the [`WIDTH`] and so much height, with a title.
    pub fn new(height: f64, title: &str) -> Self {
        let mut svg = Self(String::new());
        svg.put(format_args!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' font-family='sans-serif' font-size='12'>"
        ));
        svg.put(format_args!("<rect width='{WIDTH}' height='{height}' fill='white'/>"));
        svg.put(format_args!("<text x='{LEFT}' y='20' font-size='15'>{}</text>", escaped(title)));
        svg
    }

    /// Adds an element.
    pub fn put(&mut self, element: Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.0.write_fmt(element);
        self.0.push('\n');
    }

    /// The picture as a file's text.
    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// Text that means nothing but itself in SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The least and the greatest of what is finite; 0..1 where nothing is.
pub fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let wider = |(low, high): (f64, f64), it: f64| (low.min(it), high.max(it));
    let (low, high) = values.filter(|it| it.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), wider);
    if low <= high { (low, high) } else { (0.0, 1.0) }
}
