//! A history as a picture: losses above, where the time went below.

use super::{Line, Steps};
use crate::plot::{GAP, PANEL_HEIGHT, Panel, Svg, TOP, escaped, range};

/// Intervals that a plot shows at most; a screen shows no more.
pub const POINTS_MAX: usize = 600;

const LOSSES: [(&str, &str); 2] = [("training", "#4477aa"), ("held out", "#cc6677")];
/// In the order of [`Split::named`](super::Split::named).
const SHARES: [&str; 7] = ["#88ccee", "#4477aa", "#332288", "#117733", "#ddcc77", "#cc6677", "#cccccc"];

/// Draws the history of a part as SVG. Steps that failed are marked by a vertical line.
pub fn svg(part: &str, lines: &[Line]) -> String {
    let steps: Vec<&Steps> =
        lines.iter().filter_map(|line| if let Line::Steps(it) = line { Some(it) } else { None }).collect();
    let span = range(steps.iter().map(|it| it.step as f64));
    let (_, highest) = range(steps.iter().flat_map(|it| [Some(it.loss), it.held_out_loss]).flatten().map(f64::from));
    let losses = Panel { top: TOP, across: span, values: (0.0, if highest > 0.0 { highest } else { 1.0 }) };
    let shares = Panel { top: TOP + PANEL_HEIGHT + GAP, across: span, values: (0.0, 100.0) };
    let mut svg = Svg::new(shares.top + PANEL_HEIGHT + 30.0, part);
    for line in lines {
        if let Line::Event(event) = line
            && event.is_failure()
        {
            let (x, bottom) = (losses.x(event.step as f64), TOP + PANEL_HEIGHT);
            svg.put(format_args!(
                "<line x1='{x:.1}' y1='{TOP}' x2='{x:.1}' y2='{bottom}' stroke='#aa3377' stroke-dasharray='3'><title>{}</title></line>",
                escaped(&event.message)
            ));
        }
    }
    let held_out = steps.iter().filter_map(|it| Some((it.step as f64, it.held_out_loss?.into())));
    losses.draw_line(&mut svg, steps.iter().map(|it| (it.step as f64, it.loss.into())), LOSSES[0].1);
    losses.draw_line(&mut svg, held_out, LOSSES[1].1);
    losses.draw_frame(&mut svg, "loss", 3, "", "step");
    losses.draw_legend(&mut svg, LOSSES.into_iter());

    let mut base = vec![0.0; steps.len()];
    let mut entries = Vec::new();
    for (index, colour) in SHARES.into_iter().enumerate() {
        let mut points = Vec::with_capacity(steps.len());
        for (it, base) in steps.iter().zip(&mut base) {
            let low = *base;
            *base += 100.0 * it.split.named()[index].1 / it.seconds.max(1e-9);
            points.push((it.step as f64, low.min(100.0), base.min(100.0)));
        }
        shares.draw_area(&mut svg, &points, colour);
        entries.push((super::Split::default().named()[index].0, colour));
    }
    shares.draw_frame(&mut svg, "time of the trainer", 0, " %", "step");
    shares.draw_legend(&mut svg, entries.into_iter());
    svg.finish()
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
