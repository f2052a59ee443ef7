//! What was measured, as tables for people and as JSON for programs. Nothing here judges.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::rounds::median;

/// One question with its answer: a table.
#[derive(Debug)]
pub(crate) struct Question {
    /// The name it is asked for by.
    pub(crate) name: String,
    /// The heading.
    pub(crate) title: String,
    /// What each round's figures mean.
    pub(crate) columns: &'static [Column],
    /// What is shown beside the figures.
    pub(crate) comparisons: Vec<Comparison>,
    /// What was measured.
    pub(crate) rows: Vec<Row>,
}

/// The meaning of one figure.
#[derive(Debug)]
pub(crate) struct Column {
    /// Its name in JSON, unit included.
    pub(crate) key: &'static str,
    /// Its name in the table.
    pub(crate) heading: &'static str,
    /// How many decimals are worth showing.
    pub(crate) decimals: usize,
}

/// The key of the column that counts failed requests; a table with one above zero says so.
pub(crate) const FAILED: Column = Column { key: "failed", heading: "failed", decimals: 0 };

/// A figure held against the same round's figure of another row.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// The column's key.
    pub(crate) key: &'static str,
    /// How.
    pub(crate) operation: Operation,
    /// The other row's label.
    pub(crate) to: &'static str,
}

/// How two figures are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// How many times the other it is.
    Ratio,
    /// By how much it is more than the other.
    Difference,
}

/// One contender's figures.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its name in the table.
    pub(crate) label: String,
    /// What became of it.
    pub(crate) state: State,
}

/// What became of a contender.
#[derive(Debug, PartialEq)]
pub(crate) enum State {
    /// Each round's figures, in the order of the columns.
    Measured(Vec<Vec<f64>>),
    /// It could not be measured, and why.
    Skipped(String),
    /// Measuring it failed, and why.
    Failed(String),
}

impl Row {
    fn rounds(&self) -> &[Vec<f64>] {
        match &self.state {
            State::Measured(rounds) => rounds,
            State::Skipped(_) | State::Failed(_) => &[],
        }
    }

    /// What is said in place of figures.
    fn remark(&self) -> Option<String> {
        match &self.state {
            State::Measured(_) => None,
            State::Skipped(reason) => Some(format!("skipped: {reason}")),
            State::Failed(reason) => Some(format!("FAILED: {reason}")),
        }
    }

    fn column(&self, index: usize) -> impl Iterator<Item = f64> + Clone + '_ {
        self.rounds().iter().filter_map(move |round| round.get(index).copied())
    }
}

impl Question {
    /// The row with this label.
    pub(crate) fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    /// The median over the rounds of one row's figure.
    pub(crate) fn median(&self, label: &str, key: &str) -> Option<f64> {
        let index = self.columns.iter().position(|column| column.key == key)?;
        median(self.row(label)?.column(index))
    }

    /// The median over the rounds of one comparison; `None` where either side is missing.
    fn compare(&self, row: &Row, comparison: &Comparison) -> Option<f64> {
        let index = self.columns.iter().position(|column| column.key == comparison.key)?;
        let other = self.row(comparison.to)?;
        let rounds = row.column(index).zip(other.column(index));
        median(rounds.map(|(own, other)| match comparison.operation {
            Operation::Ratio => own / other,
            Operation::Difference => own - other,
        }))
    }

    fn failed_requests(&self) -> f64 {
        let index = self.columns.iter().position(|column| column.key == FAILED.key);
        index.map_or(0.0, |index| self.rows.iter().flat_map(|row| row.column(index)).sum())
    }

    /// The table: medians, with the smallest and the largest round where they differ.
    pub(crate) fn table(&self) -> String {
        let mut header = vec![String::new()];
        header.extend(self.columns.iter().map(|column| column.heading.to_owned()));
        header.extend(self.comparisons.iter().map(|comparison| self.heading(comparison)));
        let mut lines = vec![header];
        lines.extend(
            self.rows.iter().filter(|row| row.remark().is_none()).map(|row| self.cells(row)),
        );
        let mut remarks = self.remarks();
        let failed = self.failed_requests();
        if failed > 0.0 {
            remarks
                .push(format!("!! {failed} REQUESTS FAILED: these figures are not to be trusted"));
        }
        let mut text = format!("\n{} [{}]\n", self.title, self.name);
        text.push_str(&align(&lines));
        for remark in remarks {
            let _ = writeln!(text, "  {remark}");
        }
        text
    }

    /// Why rows are missing, those with the same reason in one line.
    fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<(String, String)> = Vec::new();
        for row in &self.rows {
            let Some(remark) = row.remark() else { continue };
            match remarks.iter_mut().find(|(_, known)| *known == remark) {
                Some((labels, _)) => {
                    let _ = write!(labels, "; {}", row.label);
                }
                None => remarks.push((row.label.clone(), remark)),
            }
        }
        remarks.into_iter().map(|(labels, remark)| format!("{labels}: {remark}")).collect()
    }

    fn heading(&self, comparison: &Comparison) -> String {
        let column = self.columns.iter().find(|column| column.key == comparison.key);
        let heading = column.map_or(comparison.key, |column| column.heading);
        let sign = match comparison.operation {
            Operation::Ratio => '÷',
            Operation::Difference => '−',
        };
        format!("{heading} {sign} {}", comparison.to)
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells = vec![row.label.clone()];
        for (index, column) in self.columns.iter().enumerate() {
            cells.push(cell(&Spread::of(row.column(index)), column.decimals));
        }
        for comparison in &self.comparisons {
            let decimals = match comparison.operation {
                Operation::Ratio => 2,
                Operation::Difference => 1,
            };
            cells.push(match self.compare(row, comparison) {
                Some(_) if comparison.to == row.label => String::new(),
                Some(value) => format!("{value:.decimals$}"),
                None => "-".to_owned(),
            });
        }
        cells
    }

    /// Every round's figures with their medians and extremes.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({ "name": self.name, "title": self.title, "rows": rows })
    }

    fn row_json(&self, row: &Row) -> Value {
        let rounds = match &row.state {
            State::Skipped(reason) => return json!({ "label": row.label, "skipped": reason }),
            State::Failed(reason) => return json!({ "label": row.label, "failed": reason }),
            State::Measured(rounds) => rounds,
        };
        let named = |figures: &[f64]| -> Map<String, Value> {
            let keys = self.columns.iter().map(|column| column.key.to_owned());
            keys.zip(figures.iter().map(|figure| json!(figure))).collect()
        };
        let spreads: Vec<_> =
            (0..self.columns.len()).map(|index| Spread::of(row.column(index))).collect();
        let pick =
            |which: fn(&Spread) -> f64| named(&spreads.iter().map(which).collect::<Vec<_>>());
        let comparisons: Map<String, Value> = self
            .comparisons
            .iter()
            .map(|comparison| (self.heading(comparison), json!(self.compare(row, comparison))))
            .collect();
        json!({
            "label": row.label,
            "rounds": rounds.iter().map(|round| named(round)).collect::<Vec<_>>(),
            "median": pick(|spread| spread.median),
            "min": pick(|spread| spread.min),
            "max": pick(|spread| spread.max),
            "compared": comparisons,
        })
    }
}

/// Where the rounds of one figure lie.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64> + Clone) -> Self {
        Self {
            median: median(figures.clone()).unwrap_or(f64::NAN),
            min: figures.clone().fold(f64::NAN, f64::min),
            max: figures.fold(f64::NAN, f64::max),
        }
    }
}

fn cell(spread: &Spread, decimals: usize) -> String {
    let Spread { median, min, max } = spread;
    let figure = format!("{median:.decimals$}");
    let (min, max) = (format!("{min:.decimals$}"), format!("{max:.decimals$}"));
    if min == max { figure } else { format!("{figure} ({min}–{max})") }
}

/// The first column to the left, the others to the right, each as wide as its widest cell.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[Column { key: "p50_us", heading: "p50 µs", decimals: 1 }, FAILED];

    fn missing(label: &str) -> Row {
        Row { label: label.to_owned(), state: State::Skipped("not installed".to_owned()) }
    }

    fn question(failed: f64) -> Question {
        let compare = |operation| Comparison { key: "p50_us", operation, to: "peer" };
        Question {
            name: "q".to_owned(),
            title: "A question".to_owned(),
            columns: COLUMNS,
            comparisons: vec![compare(Operation::Ratio), compare(Operation::Difference)],
            rows: vec![
                Row {
                    label: "peer".to_owned(),
                    state: State::Measured(vec![
                        vec![10.0, 0.0],
                        vec![20.0, 0.0],
                        vec![100.0, 0.0],
                    ]),
                },
                Row {
                    label: "ours".to_owned(),
                    state: State::Measured(vec![
                        vec![5.0, 0.0],
                        vec![30.0, failed],
                        vec![40.0, 0.0],
                    ]),
                },
                missing("absent"),
                missing("also absent"),
            ],
        }
    }

    #[test]
    fn rows_are_compared_within_a_round() {
        // The ratios are 0.5, 1.5 and 0.4; the ratio of the medians would be 1.5.
        let json = question(0.0).json();
        let compared = &json["rows"][1]["compared"];
        assert_eq!(compared["p50 µs ÷ peer"], 0.5);
        assert_eq!(compared["p50 µs − peer"], -5.0);
    }

    #[test]
    fn json_has_every_round_and_their_spread() {
        let row = &question(0.0).json()["rows"][0];
        assert_eq!(row["rounds"][2]["p50_us"], 100.0);
        for (which, expected) in [("median", 20.0), ("min", 10.0), ("max", 100.0)] {
            assert_eq!(row[which]["p50_us"], expected, "{which}");
        }
    }

    #[test]
    fn the_table_shows_the_spread_and_who_is_missing() {
        let table = question(0.0).table();
        assert!(table.contains("20.0 (10.0–100.0)"), "{table}");
        assert!(table.contains("absent; also absent: skipped: not installed"), "{table}");
        assert!(!table.contains("!!"), "{table}");
    }

    #[test]
    fn failed_requests_are_loud() {
        let table = question(7.0).table();
        assert!(table.contains("!! 7 REQUESTS FAILED"), "{table}");
    }
}
