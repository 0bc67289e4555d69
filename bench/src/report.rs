//! The report: tables in Markdown.

use std::fmt::{self, Display, Write};
use std::path::PathBuf;

/// The text of all tables so far.
#[derive(Debug)]
pub(crate) struct Report(String);

impl Report {
    pub(crate) fn new(machine: &str) -> Self {
        Self(format!("{machine}\n"))
    }

    pub(crate) fn add(&mut self, table: &Table) {
        self.0.push_str(&table.to_string());
    }

    pub(crate) fn close(&mut self, text: &str) {
        self.0.push('\n');
        self.0.push_str(text);
    }

    /// Writes it to where it is looked for.
    pub(crate) fn write(&self) -> std::io::Result<PathBuf> {
        let path = PathBuf::from("target/bench/report.md");
        std::fs::create_dir_all("target/bench")?;
        std::fs::write(&path, format!("{}\n", self.0))?;
        Ok(path)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A table with the text that introduces it.
#[derive(Debug)]
pub(crate) struct Table {
    title: &'static str,
    about: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &'static str, about: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(ToString::to_string).collect();
        Self { title, about: about.into(), rows: vec![columns] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        write!(f, "\n## {}\n\n{}\n\n", self.title, self.about)?;
        for (number, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:<width$} ")?;
            }
            f.write_str("|\n")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "|{:-<1$}", "", width + 2)?;
                }
                f.write_str("|\n")?;
            }
        }
        f.write_char('\n')
    }
}

/// A ratio.
pub(crate) fn ratio(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// A whole number, its thousands apart.
pub(crate) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of little digits, such as of microseconds.
pub(crate) fn small(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { count(value) }
}
