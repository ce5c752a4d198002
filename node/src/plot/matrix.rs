//! A matrix of numbers as coloured cells: the lower, the darker, column by column.

use super::{LEFT, Svg, TOP, escaped, range};

const CELL: (f64, f64) = (90.0, 36.0);
/// Room for the names of the rows.
const NAMES: f64 = 150.0;

/// Draws a matrix as SVG. Colours compare the rows of one column; the least of a column is framed. `rows` are names with a value a column.
pub fn matrix(title: &str, columns: &[String], rows: &[(String, Vec<f64>)]) -> String {
    let mut svg = Svg::new(TOP + CELL.1 * (rows.len() + 1) as f64 + 20.0, title);
    for (place, column) in columns.iter().enumerate() {
        let x = LEFT + NAMES + CELL.0 * (place as f64 + 0.5);
        svg.put(format_args!(
            "<text x='{x}' y='{}' text-anchor='middle'>{}</text>",
            TOP + CELL.1 - 8.0,
            escaped(column)
        ));
    }
    for (row, (name, values)) in rows.iter().enumerate() {
        let y = TOP + CELL.1 * (row + 1) as f64;
        svg.put(format_args!("<text x='{LEFT}' y='{}'>{}</text>", y + CELL.1 / 2.0 + 4.0, escaped(name)));
        for (place, value) in values.iter().enumerate() {
            let (low, high) = range(rows.iter().filter_map(|(_, values)| values.get(place)).copied());
            let share = if high > low { (value - low) / (high - low) } else { 0.0 };
            // From Tol's blue to white.
            let shade = |dark: f64| (dark + (255.0 - dark) * share.clamp(0.0, 1.0)).round() as u8;
            let (red, green, blue) = (shade(68.0), shade(119.0), shade(170.0));
            let x = LEFT + NAMES + CELL.0 * place as f64;
            let stroke = if *value <= low { "stroke='#222' stroke-width='2'" } else { "stroke='#fff'" };
            svg.put(format_args!(
                "<rect x='{x}' y='{y}' width='{}' height='{}' fill='rgb({red},{green},{blue})' {stroke}/>",
                CELL.0 - 2.0,
                CELL.1 - 2.0
            ));
            let ink = if share < 0.5 { "#fff" } else { "#222" };
            svg.put(format_args!(
                "<text x='{}' y='{}' text-anchor='middle' fill='{ink}'>{value:.4}</text>",
                x + CELL.0 / 2.0,
                y + CELL.1 / 2.0 + 4.0
            ));
        }
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_every_column_is_framed() {
        let rows = [("expert-0".to_owned(), vec![0.1, 0.5]), ("expert-1".to_owned(), vec![0.3, 0.2])];
        let svg = matrix("losses", &["cluster 0".to_owned(), "cluster 1".to_owned()], &rows);
        assert_eq!((svg.matches("stroke='#222'").count(), svg.matches("stroke='#fff'").count()), (2, 2));
        assert!(svg.contains("0.1000") && svg.contains("cluster 1") && !svg.contains("NaN"), "{svg}");
    }
}
