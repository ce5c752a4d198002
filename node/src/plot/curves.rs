//! Named curves over one quantity, in panels under each other.

use super::{COLOURS, GAP, PANEL_HEIGHT, Panel, Svg, TOP, range};

/// A named curve.
pub struct Curve {
    /// What the legend calls it.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Curves in one frame.
pub struct CurvePanel {
    /// What is shown.
    pub title: String,
    /// What stands before the numbers across, such as "step".
    pub across: String,
    /// The curves, in the order of their colours.
    pub curves: Vec<Curve>,
}

/// Draws panels of curves as SVG. Values begin at 0, or below where there are negative ones.
pub fn curves(title: &str, panels: &[CurvePanel]) -> String {
    let top = |row: usize| TOP + row as f64 * (PANEL_HEIGHT + GAP);
    let mut svg = Svg::new(top(panels.len().max(1)) - GAP + 30.0, title);
    for (row, CurvePanel { title, across, curves }) in panels.iter().enumerate() {
        let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
        let (low, high) = range(points().map(|point| point.1));
        let panel = Panel { top: top(row), across: range(points().map(|point| point.0)), values: (low.min(0.0), high) };
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            panel.draw_line(&mut svg, curve.points.iter().copied(), colour);
            for (x, y) in curve.points.iter().filter(|point| point.1.is_finite()) {
                svg.put(format_args!(
                    "<circle cx='{:.1}' cy='{:.1}' r='2.5' fill='{colour}'/>",
                    panel.x(*x),
                    panel.y(*y)
                ));
            }
        }
        panel.draw_frame(&mut svg, title, decimals(high), "", across);
        panel.draw_legend(
            &mut svg,
            curves.iter().zip(COLOURS.iter().cycle()).map(|(curve, colour)| (curve.name.as_str(), *colour)),
        );
    }
    svg.finish()
}

/// As many as show three digits of a value.
fn decimals(value: f64) -> usize {
    if value > 0.0 { (2.0 - value.log10().floor()).clamp(0.0, 8.0) as usize } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_has_a_line_its_points_and_a_name() {
        let curve =
            |name: &str| Curve { name: name.to_owned(), points: vec![(0.25, 3.0), (0.5, f64::NAN), (1.0, 1.0)] };
        let panel = |title: &str| CurvePanel {
            title: title.to_owned(),
            across: "budget".to_owned(),
            curves: vec![curve("top-1 <&>"), curve("full")],
        };
        let svg = curves("distances", &[panel("FD"), panel("KD")]);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (4, 8));
        assert!(svg.contains("top-1 &lt;&amp;&gt;") && svg.contains("budget 0.25") && !svg.contains("NaN"), "{svg}");
        assert!(!curves("nothing", &[]).contains("inf"));
    }
}
