use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, TableStyle, Width,
};

use model::Plain;

use super::out::Out;

/// A wrapped column is not made narrower than this.
const LEAST: Width = Width::Fixed(24);

/// A column's name.
pub(crate) enum Column {
    Text(&'static str),
    /// Stands on the right.
    Number(&'static str),
    /// Is wrapped where a terminal is too narrow.
    Wrapped(&'static str),
}

/// Rows of text under names.
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

impl Column {
    fn name(&self) -> &'static str {
        match self {
            Self::Text(name) | Self::Number(name) | Self::Wrapped(name) => name,
        }
    }
}

impl Table {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with a cell for each column. Whatever the texts are, a row is one row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| Plain(cell).to_string()).collect());
    }

    /// As it is printed: for a terminal, fitted to it; else columns that `awk` can read.
    pub(crate) fn render(&self, out: &Out) -> String {
        self.fit(out.width())
    }

    fn fit(&self, width: Option<u16>) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(TableStyle::new()).set_header(self.columns.iter().map(Column::name));
        if let Some(width) = width {
            let line = LineStyle::none().fill('─');
            table.load_style(TableStyle::new().header_separator(line));
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        // An empty cell would shift all later ones for whoever splits at white space.
        let cell = |cell: &String| if cell.is_empty() { "-".into() } else { cell.clone() };
        table.add_rows(self.rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>()));
        for (index, column) in self.columns.iter().enumerate() {
            let Some(cells) = table.column_mut(index) else { continue };
            // Two blanks between columns, none at the edge.
            cells.set_padding((0, 2));
            cells.set_constraint(match column {
                Column::Text(_) | Column::Number(_) => ColumnConstraint::ContentWidth,
                Column::Wrapped(_) => ColumnConstraint::LowerBoundary(LEAST),
            });
            if matches!(column, Column::Number(_)) {
                cells.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new(&[Column::Text("NAME"), Column::Number("CALLS"), Column::Wrapped("WHY")]);
        table.row(["hello".into(), "7".into(), "long ".repeat(20)]);
        table.row(["a\u{1b}[2J\nb".into(), String::new(), "x".into()]);
        table
    }

    #[test]
    fn piped_columns_are_plain() {
        let long = "long ".repeat(20);
        let expected = format!(
            "NAME         CALLS  WHY\nhello            7  {}\na\\x1b[2J\\nb      -  x\n",
            long.trim_end()
        );
        assert_eq!(table().fit(None), expected);
    }

    #[test]
    fn a_terminal_gets_what_fits_and_names_stay_whole() {
        let text = table().fit(Some(50));
        assert!(text.lines().all(|line| line.chars().count() <= 50), "{text}");
        assert!(text.contains("hello            7  long"), "{text}");
        assert!(text.contains('─') && !text.contains('\u{1b}'), "{text}");
        let narrow = table().fit(Some(10));
        assert!(narrow.contains("hello            7  long"), "{narrow}");
    }
}
