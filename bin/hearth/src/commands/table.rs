use std::iter::repeat_n;

use model::Plain;
use unicode_width::UnicodeWidthChar;

use super::out::Out;
use crate::color::Meaning;

/// A wrapped column is not made narrower than this, as long as others can give way.
const LEAST: usize = 24;
/// Blanks between columns.
const GAP: usize = 2;

/// A column: its name, what is in it, and when it gives way.
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
    /// Where a terminal is too narrow, columns with the greatest rank are left out first; those with
    /// 0 stay.
    rank: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// Stands on the right.
    Number,
    /// Has the colour of what it means.
    State,
    /// What went wrong: wrapped where a terminal is too narrow.
    Trouble,
}

impl Column {
    pub(crate) const fn text(name: &'static str) -> Self {
        Self { name, kind: Kind::Text, rank: 0 }
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        Self { name, kind: Kind::Number, rank: 0 }
    }

    pub(crate) const fn state(name: &'static str) -> Self {
        Self { name, kind: Kind::State, rank: 0 }
    }

    pub(crate) const fn trouble(name: &'static str) -> Self {
        Self { name, kind: Kind::Trouble, rank: 0 }
    }

    /// The same, left out where there is no room, before those with a smaller rank.
    pub(crate) const fn goes(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    fn meaning(&self, cell: &str) -> Option<Meaning> {
        match self.kind {
            Kind::Text | Kind::Number => None,
            Kind::State => Meaning::of_state(cell),
            Kind::Trouble => (cell != "-").then_some(Meaning::Bad),
        }
    }
}

/// Rows of text under names.
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with a cell for each column. Whatever the texts are, a row is one row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        // An empty cell would shift all later ones for whoever splits at white space.
        let cell =
            |cell: &String| if cell.is_empty() { "-".into() } else { Plain(cell).to_string() };
        self.rows.push(cells.iter().map(cell).collect());
    }

    /// As it is printed: for a terminal, never wider than that; else columns that `awk` can read.
    pub(crate) fn render(&self, out: &Out) -> String {
        self.fit(out.width(), out.is_colored())
    }

    /// As it is printed on a terminal of that width, or in a pipe.
    pub(crate) fn fit(&self, width: Option<u16>, is_colored: bool) -> String {
        let layout = self.layout(width.map(usize::from));
        let names: Vec<_> = self.columns.iter().map(|column| column.name.to_owned()).collect();
        let mut lines = layout.lines(&names, |_, text| text.to_owned());
        if width.is_some() {
            let whole = layout.width();
            lines.extend(['─'.to_string().repeat(whole), "\n".into()]);
        }
        for row in &self.rows {
            lines.extend(layout.lines(row, |index, text| {
                let meaning = self.columns[index].meaning(&row[index]).filter(|_| is_colored);
                meaning.map_or_else(|| text.to_owned(), |meaning| meaning.paint(text))
            }));
        }
        lines.concat()
    }

    /// Which columns there is room for, and how wide they are.
    fn layout(&self, width: Option<usize>) -> Layout<'_> {
        let natural: Vec<_> = (0..self.columns.len())
            .map(|index| {
                let cells = self.rows.iter().map(|row| columns(&row[index]));
                cells.chain([columns(self.columns[index].name)]).max().unwrap_or(0)
            })
            .collect();
        let mut layout =
            Layout { columns: self.columns, kept: natural.into_iter().enumerate().collect() };
        let Some(width) = width else { return layout };
        let is_wrapped = |index: usize| self.columns[index].kind == Kind::Trouble;
        let least = |layout: &Layout<'_>| {
            let cells = layout.kept.iter().map(|(index, natural)| {
                if is_wrapped(*index) { LEAST.min(*natural) } else { *natural }
            });
            cells.sum::<usize>() + layout.gaps()
        };
        while least(&layout) > width {
            let rank = |(index, _): &(usize, usize)| self.columns[*index].rank;
            // Of equal ones that on the right.
            let first = layout.kept.iter().enumerate().max_by_key(|(_, kept)| rank(kept));
            match first {
                Some((position, kept)) if rank(kept) > 0 => _ = layout.kept.remove(position),
                _ => break,
            }
        }
        // A terminal that is as narrow as this has no room for the blanks alone.
        while layout.kept.len() > 1 && layout.kept.len() + layout.gaps() > width {
            layout.kept.pop();
        }
        // What is wrapped gives way first, then whatever is the widest.
        while layout.width() > width {
            let wrapped = layout.kept.iter().position(|(i, n)| is_wrapped(*i) && *n > LEAST);
            let widest = layout.kept.iter().enumerate().max_by_key(|(_, (_, natural))| *natural);
            let narrowed = wrapped.or(widest.map(|(position, _)| position));
            let too_much = layout.width() - width;
            let Some((_, cell)) = narrowed.and_then(|position| layout.kept.get_mut(position))
            else {
                break;
            };
            if *cell <= 1 {
                break;
            }
            *cell = match wrapped {
                Some(_) => cell.saturating_sub(too_much).max(LEAST),
                None => *cell - 1,
            };
        }
        layout
    }
}

/// Columns that are shown, and their widths.
struct Layout<'a> {
    columns: &'a [Column],
    kept: Vec<(usize, usize)>,
}

impl Layout<'_> {
    fn gaps(&self) -> usize {
        GAP * self.kept.len().saturating_sub(1)
    }

    fn width(&self) -> usize {
        self.kept.iter().map(|(_, width)| width).sum::<usize>() + self.gaps()
    }

    /// A row as lines: more than one where a cell is wrapped.
    fn lines(&self, row: &[String], paint: impl Fn(usize, &str) -> String) -> Vec<String> {
        let cells: Vec<_> =
            self.kept.iter().map(|(index, width)| wrap(&row[*index], *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        let mut lines = Vec::new();
        for number in 0..height {
            let (mut line, mut blanks) = (String::new(), 0);
            for ((index, width), cell) in self.kept.iter().zip(&cells) {
                let text = cell.get(number).map_or("", String::as_str);
                let room = width.saturating_sub(columns(text));
                let is_right = self.columns[*index].kind == Kind::Number;
                let (before, after) = if is_right { (room, 0) } else { (0, room) };
                if !text.is_empty() {
                    // Blanks at the end of a line are of no use to anybody.
                    line.extend(repeat_n(' ', blanks + before));
                    line.push_str(&paint(*index, text));
                    blanks = after + GAP;
                } else {
                    blanks += room + GAP;
                }
            }
            lines.extend([line, "\n".into()]);
        }
        lines
    }
}

/// How many columns of a terminal a text takes, at most: some characters are drawn as one.
fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Lines of at most that width, broken between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if columns(text) <= width {
        return vec![text.trim_end().to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        let used = columns(line);
        if used > 0 && used + 1 + columns(word) <= width {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        if used > 0 {
            lines.push(String::new());
        }
        for c in word.chars() {
            let line = lines.last_mut().expect("there is one");
            if !line.is_empty() && columns(line) + c.width().unwrap_or(0) > width {
                lines.push(c.to_string());
            } else {
                line.push(c);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::text("NAME"),
        Column::state("STATE"),
        Column::number("CALLS").goes(2),
        Column::text("URL").goes(1),
        Column::trouble("WHY"),
    ];

    fn table() -> Table {
        let mut table = Table::new(COLUMNS);
        let url = "http://127.0.0.1:8080/fn/hello";
        table.row(["hello".into(), "failing".into(), "7".into(), url.into(), "long ".repeat(20)]);
        table.row([
            "a\u{1b}[2J\nb".into(),
            "active".into(),
            String::new(),
            "x".into(),
            String::new(),
        ]);
        table
    }

    #[test]
    fn piped_columns_are_plain() {
        let long = "long ".repeat(20);
        let expected = format!(
            "NAME         STATE    CALLS  URL                             WHY\n\
             hello        failing      7  http://127.0.0.1:8080/fn/hello  {}\n\
             a\\x1b[2J\\nb  active       -  x                               -\n",
            long.trim_end()
        );
        assert_eq!(table().fit(None, false), expected);
    }

    #[test]
    fn no_table_is_wider_than_its_terminal() {
        for width in 1..=200 {
            for is_colored in [false, true] {
                let text = table().fit(Some(width), is_colored);
                for line in text.lines() {
                    let plain = ["31", "32"].iter().fold(line.to_owned(), |line, code| {
                        line.replace(&format!("\x1b[{code}m"), "").replace("\x1b[0m", "")
                    });
                    assert!(columns(&plain) <= usize::from(width), "{width}: {text}");
                    assert!(!plain.contains('\x1b'), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn columns_give_way_in_their_order() {
        let shown = |width| {
            let text = table().fit(Some(width), false);
            text.lines().next().expect("names").split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(100), "NAME STATE CALLS URL WHY");
        assert_eq!(shown(82), "NAME STATE URL WHY");
        assert_eq!(shown(50), "NAME STATE WHY");
        let narrow = table().fit(Some(50), false);
        assert!(narrow.contains("hello        failing  long"), "{narrow}");
        assert!(narrow.contains('─'), "{narrow}");
    }

    #[test]
    fn colours_mean_something() {
        let text = table().fit(Some(100), true);
        for part in ["\x1b[31mfailing\x1b[0m", "\x1b[32mactive\x1b[0m", "\x1b[31mlong long"] {
            assert!(text.contains(part), "{text:?}");
        }
        assert!(!text.contains("\x1b[31m-"), "{text:?}");
    }

    #[test]
    fn words_stay_whole_where_they_fit() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("日本語", 4), ["日本", "語"]);
        assert_eq!(wrap("日", 1), ["日"], "there is no narrower way");
    }
}
