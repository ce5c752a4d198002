//! A table that reads well in a terminal and is Markdown.

use std::fmt;

/// Rows under a head. All have as many cells as the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; the first is aligned left, the others right.
    pub fn new<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Self {
        Self { rows: vec![head.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row; cells that are missing are empty, and those beyond the head are left out.
    pub fn add<T: Into<String>>(&mut self, row: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = row.into_iter().map(Into::into).collect();
        row.resize(self.rows[0].len(), String::new());
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "| {cell:<width$} |")?,
                    _ => write!(f, " {cell:>width$} |")?,
                }
            }
            writeln!(f)?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let line = "-".repeat(*width);
                    match column {
                        0 => write!(f, "|-{line}-|")?,
                        _ => write!(f, "-{line}:|")?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_a_line_stands_under_the_head() {
        let mut table = Table::new(["strategy", "FD"]);
        table.add(["top-2", "12.5"]);
        table.add(["full"]);
        let lines: Vec<_> = table.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines, ["| strategy |   FD |", "|----------|-----:|", "| top-2    | 12.5 |", "| full     |      |"]);
    }
}
