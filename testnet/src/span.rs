//! Spans of time, as they are asked for on the command line.

/// The shortest: a sixtieth of what it is counted in.
const LEAST: f64 = 1.0 / 60.0;
/// The longest: more than anybody has, and few enough to be added to any clock.
const MOST: f64 = 100_000.0;

/// Reads a number of hours or minutes.
pub(crate) fn span(text: &str) -> Result<f64, String> {
    let span: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match (LEAST..=MOST).contains(&span) {
        true => Ok(span),
        false => Err(format!("it must lie between 1/60 and {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_one_that_a_clock_can_wait_for() {
        assert_eq!(["0.02", "1", "1e5"].map(span), [Ok(0.02), Ok(1.0), Ok(1e5)]);
        for wrong in ["0", "-1", "0.001", "2e5", "inf", "NaN", "an hour", ""] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
