//! A frame with axes, and curves and areas in it.

use std::fmt::Write;

use super::{PANEL_HEIGHT, Svg, WIDTH, escaped};

/// Room left of a frame, for the values.
pub const LEFT: f64 = 70.0;
/// Room right of it, for the legend.
pub const RIGHT: f64 = 200.0;
/// Height of a line of the legend.
const LEGEND_ROW: f64 = 18.0;

/// A rectangle of the picture and the numbers at its edges.
pub struct Panel {
    /// Its upper edge.
    pub top: f64,
    /// The numbers at its left and right edge.
    pub across: (f64, f64),
    /// Those at its lower and upper edge.
    pub values: (f64, f64),
}

impl Panel {
    /// Where a number lies from left to right.
    pub fn x(&self, across: f64) -> f64 {
        let (first, last) = self.across;
        LEFT + (across - first) / if last > first { last - first } else { 1.0 } * (WIDTH - LEFT - RIGHT)
    }

    /// Where a value lies from top to bottom.
    pub fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        self.top + PANEL_HEIGHT * (1.0 - (value - low) / (high - low).max(1e-9))
    }

    /// The frame with its title, and the numbers at the edges: `unit` follows the values, `name` stands before those across.
    pub fn draw_frame(&self, svg: &mut Svg, title: &str, decimals: usize, unit: &str, name: &str) {
        let (bottom, width) = (self.top + PANEL_HEIGHT, WIDTH - LEFT - RIGHT);
        svg.put(format_args!(
            "<rect x='{LEFT}' y='{}' width='{width}' height='{PANEL_HEIGHT}' fill='none' stroke='#999'/>",
            self.top
        ));
        svg.put(format_args!("<text x='{LEFT}' y='{}'>{}</text>", self.top - 8.0, escaped(title)));
        for value in [self.values.0, (self.values.0 + self.values.1) / 2.0, self.values.1] {
            let y = self.y(value);
            svg.put(format_args!(
                "<text x='{}' y='{:.1}' text-anchor='end'>{value:.decimals$}{unit}</text>",
                LEFT - 6.0,
                y + 4.0
            ));
        }
        for (across, anchor) in [(self.across.0, "start"), (self.across.1, "end")] {
            let x = self.x(across);
            svg.put(format_args!(
                "<text x='{x:.1}' y='{}' text-anchor='{anchor}'>{name} {across}</text>",
                bottom + 16.0
            ));
        }
    }

    /// Names and colours, right of the frame.
    pub fn draw_legend<'a>(&self, svg: &mut Svg, entries: impl Iterator<Item = (&'a str, &'a str)>) {
        for (row, (name, colour)) in entries.enumerate() {
            let (x, y) = (WIDTH - RIGHT + 12.0, self.top + LEGEND_ROW * row as f64);
            svg.put(format_args!("<rect x='{x}' y='{y}' width='12' height='12' fill='{colour}'/>"));
            svg.put(format_args!("<text x='{}' y='{}'>{}</text>", x + 18.0, y + 10.0, escaped(name)));
        }
    }

    /// A curve through points that are finite.
    pub fn draw_line(&self, svg: &mut Svg, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let mut path = String::new();
        for (across, value) in points.filter(|(_, value)| value.is_finite()) {
            let _ = write!(path, "{:.1},{:.1} ", self.x(across), self.y(value));
        }
        svg.put(format_args!("<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>"));
    }

    /// What lies between two curves over the same numbers.
    pub fn draw_area(&self, svg: &mut Svg, points: &[(f64, f64, f64)], colour: &str) {
        let mut path = String::new();
        let below = points.iter().map(|(across, low, _)| (across, low));
        let above = points.iter().rev().map(|(across, _, high)| (across, high));
        for (across, value) in below.chain(above) {
            let _ = write!(path, "{:.1},{:.1} ", self.x(*across), self.y(*value));
        }
        svg.put(format_args!("<polygon points='{path}' fill='{colour}'/>"));
    }
}
