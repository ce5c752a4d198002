//! A history as a picture: losses above, where the time went below.

use std::fmt::Write;

use super::{Line, Steps};

const WIDTH: f64 = 900.0;
const PANEL_HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 50.0;
const GAP: f64 = 60.0;
/// Intervals that a plot shows at most; a screen shows no more.
pub const POINTS_MAX: usize = 600;

const LOSSES: [(&str, &str); 2] = [("training", "#4477aa"), ("held out", "#cc6677")];
/// In the order of [`Split::named`](super::Split::named).
const SHARES: [&str; 7] = ["#88ccee", "#4477aa", "#332288", "#117733", "#ddcc77", "#cc6677", "#cccccc"];

/// A rectangle of the picture and the values at its edges.
struct Panel {
    top: f64,
    steps: (f64, f64),
    values: (f64, f64),
}

impl Panel {
    fn x(&self, step: u64) -> f64 {
        let (first, last) = self.steps;
        LEFT + (step as f64 - first) / (last - first).max(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        self.top + PANEL_HEIGHT * (1.0 - (value - low) / (high - low).max(1e-9))
    }

    /// The frame with its title and the values at the edges.
    fn draw_frame(&self, svg: &mut String, title: &str, decimals: usize, unit: &str) {
        let (bottom, width) = (self.top + PANEL_HEIGHT, WIDTH - LEFT - RIGHT);
        put(
            svg,
            format_args!(
                "<rect x='{LEFT}' y='{}' width='{width}' height='{PANEL_HEIGHT}' fill='none' stroke='#999'/>",
                self.top
            ),
        );
        put(svg, format_args!("<text x='{LEFT}' y='{}'>{title}</text>", self.top - 8.0));
        for value in [self.values.0, (self.values.0 + self.values.1) / 2.0, self.values.1] {
            let y = self.y(value);
            put(
                svg,
                format_args!(
                    "<text x='{}' y='{:.1}' text-anchor='end'>{value:.decimals$}{unit}</text>",
                    LEFT - 6.0,
                    y + 4.0
                ),
            );
        }
        for (step, anchor) in [(self.steps.0, "start"), (self.steps.1, "end")] {
            let x = self.x(step as u64);
            put(svg, format_args!("<text x='{x:.1}' y='{}' text-anchor='{anchor}'>step {step}</text>", bottom + 16.0));
        }
    }

    fn draw_legend(&self, svg: &mut String, entries: impl Iterator<Item = (&'static str, &'static str)>) {
        for (row, (name, colour)) in entries.enumerate() {
            let (x, y) = (WIDTH - RIGHT + 12.0, self.top + 18.0 * row as f64);
            put(svg, format_args!("<rect x='{x}' y='{y}' width='12' height='12' fill='{colour}'/>"));
            put(svg, format_args!("<text x='{}' y='{}'>{name}</text>", x + 18.0, y + 10.0));
        }
    }

    fn draw_line(&self, svg: &mut String, points: impl Iterator<Item = (u64, f64)>, colour: &str) {
        let mut path = String::new();
        for (step, value) in points.filter(|(_, value)| value.is_finite()) {
            let _ = write!(path, "{:.1},{:.1} ", self.x(step), self.y(value));
        }
        put(svg, format_args!("<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>"));
    }

    /// What lies between two curves over the same steps.
    fn draw_area(&self, svg: &mut String, points: &[(u64, f64, f64)], colour: &str) {
        let mut path = String::new();
        let below = points.iter().map(|(step, low, _)| (step, low));
        let above = points.iter().rev().map(|(step, _, high)| (step, high));
        for (step, value) in below.chain(above) {
            let _ = write!(path, "{:.1},{:.1} ", self.x(*step), self.y(*value));
        }
        put(svg, format_args!("<polygon points='{path}' fill='{colour}'/>"));
    }
}

/// Draws the history of a part as SVG. Steps that failed are marked by a vertical line.
pub fn svg(part: &str, lines: &[Line]) -> String {
    let steps: Vec<&Steps> =
        lines.iter().filter_map(|line| if let Line::Steps(it) = line { Some(it) } else { None }).collect();
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values
            .filter(|it| it.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), it| (low.min(it), high.max(it)))
    };
    let span = range(&mut steps.iter().map(|it| it.step as f64));
    let span = if span.0 <= span.1 { span } else { (0.0, 1.0) };
    let (_, highest) =
        range(&mut steps.iter().flat_map(|it| [Some(it.loss), it.held_out_loss]).flatten().map(f64::from));
    let losses = Panel { top: TOP, steps: span, values: (0.0, if highest > 0.0 { highest } else { 1.0 }) };
    let shares = Panel { top: TOP + PANEL_HEIGHT + GAP, steps: span, values: (0.0, 100.0) };
    let height = shares.top + PANEL_HEIGHT + 30.0;

    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' font-family='sans-serif' font-size='12'>"
        ),
    );
    put(&mut svg, format_args!("<rect width='{WIDTH}' height='{height}' fill='white'/>"));
    put(&mut svg, format_args!("<text x='{LEFT}' y='20' font-size='15'>{}</text>", escaped(part)));
    for line in lines {
        if let Line::Event(event) = line
            && event.is_failure()
        {
            let (x, bottom) = (losses.x(event.step), TOP + PANEL_HEIGHT);
            put(
                &mut svg,
                format_args!(
                    "<line x1='{x:.1}' y1='{TOP}' x2='{x:.1}' y2='{bottom}' stroke='#aa3377' stroke-dasharray='3'><title>{}</title></line>",
                    escaped(&event.message)
                ),
            );
        }
    }
    losses.draw_line(&mut svg, steps.iter().map(|it| (it.step, it.loss.into())), LOSSES[0].1);
    losses.draw_line(&mut svg, steps.iter().filter_map(|it| Some((it.step, it.held_out_loss?.into()))), LOSSES[1].1);
    losses.draw_frame(&mut svg, "loss", 3, "");
    losses.draw_legend(&mut svg, LOSSES.into_iter());

    let mut base = vec![0.0; steps.len()];
    let mut entries = Vec::new();
    for (index, colour) in SHARES.into_iter().enumerate() {
        let mut points = Vec::with_capacity(steps.len());
        for (it, base) in steps.iter().zip(&mut base) {
            let low = *base;
            *base += 100.0 * it.split.named()[index].1 / it.seconds.max(1e-9);
            points.push((it.step, low.min(100.0), base.min(100.0)));
        }
        shares.draw_area(&mut svg, &points, colour);
        entries.push((super::Split::default().named()[index].0, colour));
    }
    shares.draw_frame(&mut svg, "time of the trainer", 0, " %");
    shares.draw_legend(&mut svg, entries.into_iter());
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = svg.write_fmt(what);
    svg.push('\n');
}

/// Text that means nothing but itself in SVG.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use paris_model::report::{LossByTime, StepDurations, StepReport};

    use crate::history::{EventName, Interval};

    #[test]
    fn a_plot_has_both_losses_every_share_and_what_failed() {
        let mut lines = Vec::new();
        for step in 1..=5 {
            let mut interval = Interval::begin();
            let (loss, durations) = (1.0 / step as f32, StepDurations::default());
            let loss_by_time = LossByTime::default();
            interval.add(&StepReport { step, loss, loss_by_time, gradient_norm: 1.0, micro_batches: 1, durations });
            lines.push(Line::Steps(interval.end(8, 0.7).unwrap()));
        }
        lines.push(Line::event(EventName::WentBack, 5, "loss NaN <&>"));
        let svg = svg("expert-0", &lines);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<polygon").count(), SHARES.len());
        assert!(svg.contains("loss NaN &lt;&amp;&gt;") && svg.contains("step 5") && svg.contains("backward"), "{svg}");
        assert!(!svg.contains("NaN,") && !svg.contains("inf"), "{svg}");
        // A first interval that goes from the left edge to the right one.
        let points: Vec<&str> = svg.split("points='").nth(1).unwrap().split_whitespace().take(5).collect();
        assert!(points[0].starts_with("70.0,50.0") && points[4].starts_with("770.0,"), "{points:?}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let svg = svg("router", &[]);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
