//! The measured figures, and the table of them.

use std::time::Duration;

/// Repetitions of one measure, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Figures(pub Vec<f64>);

impl Figures {
    /// Adds a time in milliseconds.
    pub fn push_ms(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1_000.0);
    }

    /// Returns the value below which the share `percent` of the figures lies; not a number if there are none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// Returns the median.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Writes `median [least..most] n`.
    pub fn text(&self, unit: &str) -> String {
        let (least, most) = (self.percentile(0), self.percentile(100));
        format!("{} {unit} [{}..{}] n{}", short(self.median()), short(least), short(most), self.0.len())
    }
}

/// Writes three significant digits at most, after which nothing is known.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A table in Markdown: rows under their headings.
#[derive(Debug, Default)]
pub struct Table {
    notes: Vec<String>,
    rows: Vec<[String; 4]>,
}

impl Table {
    /// Adds a line above the table.
    pub fn note(&mut self, what: &str, text: &str) {
        eprintln!("{what}: {text}");
        self.notes.push(format!("{what}: {text}"));
    }

    /// Adds a row: a measure, our figure, the reference in the same run with the ratio, and what flannel's study
    /// quotes.
    pub fn row(
        &mut self,
        measure: impl Into<String>,
        ours: impl Into<String>,
        reference: impl Into<String>,
        flannel: &str,
    ) {
        let row = [measure.into(), ours.into(), reference.into(), flannel.to_owned()];
        eprintln!("{}: {} | {} | {}", row[0], row[1], row[2], row[3]);
        self.rows.push(row);
    }

    /// Writes the whole table.
    pub fn render(&self) -> String {
        let mut lines = self.notes.clone();
        lines.push(String::new());
        let head = ["measure", "ours", "reference in the same run", "flannel, as quoted"].map(str::to_owned);
        let width =
            |column: usize| self.rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(width);
        let line = |row: &[String; 4]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} "));
            format!("|{}|", cells.collect::<Vec<_>>().join("|"))
        };
        lines.push(line(&head));
        lines.push(format!("|{}|", widths.map(|width| "-".repeat(width + 2)).join("|")));
        lines.extend(self.rows.iter().map(line));
        lines.join("\n")
    }
}
