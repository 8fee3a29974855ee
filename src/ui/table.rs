//! Tables: aligned columns without boxes. On a terminal they fit its width, and the wide columns are cut; everywhere
//! else nothing is cut and nothing is coloured.

use comfy_table::{Attribute, Color, ColumnConstraint, ContentArrangement};
use comfy_table::{CellAlignment, presets};

/// How a column behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Text that is cut where the terminal is too narrow.
    Text(&'static str),
    /// Text that is never cut.
    Fixed(&'static str),
    /// A number, aligned to the right and never cut.
    Number(&'static str),
}

/// How a cell looks on a terminal with colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As the terminal writes.
    #[default]
    Plain,
    /// What the row is about.
    Name,
    /// Less important.
    Dim,
    /// As it should be.
    Good,
    /// Something to do.
    Attention,
    /// Something that is elsewhere.
    Elsewhere,
    /// Something wrong.
    Bad,
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in this tone.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Cell { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(text, Tone::Plain)
    }
}

/// Rows to be shown.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Table { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text for this process's stdout.
    pub fn to_text(&self) -> String {
        let terminal = console::Term::stdout();
        let width = terminal.is_term().then(|| terminal.size().1);
        self.render(width, console::colors_enabled())
    }

    /// The text: at most `width` characters wide, when there is such a limit.
    pub fn render(&self, width: Option<u16>, colour: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).force_no_tty().set_truncation_indicator("…");
        if colour {
            table.enforce_styling().style_text_only();
        }
        if let Some(width) = width {
            table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        }
        let titles = self.columns.iter().map(|column| {
            let (Column::Text(title) | Column::Fixed(title) | Column::Number(title)) = column;
            comfy_table::Cell::new(title).add_attribute(Attribute::Bold)
        });
        table.set_header(comfy_table::Row::from(titles.collect::<Vec<_>>()));
        for row in &self.rows {
            let mut row = comfy_table::Row::from(row.iter().map(styled).collect::<Vec<_>>());
            row.max_height(1);
            table.add_row(row);
        }
        let last = self.columns.len().saturating_sub(1);
        for (index, column) in self.columns.iter().enumerate() {
            let Some(shape) = table.column_mut(index) else { continue };
            shape.set_padding((0, if index == last { 0 } else { 2 }));
            if !matches!(column, Column::Text(_)) {
                shape.set_constraint(ColumnConstraint::ContentWidth);
            }
            if matches!(column, Column::Number(_)) {
                shape.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = table.trim_fmt();
        text.push('\n');
        text
    }
}

fn styled(cell: &Cell) -> comfy_table::Cell {
    let plain = comfy_table::Cell::new(&cell.text);
    match cell.tone {
        Tone::Plain => plain,
        Tone::Name => plain.fg(Color::Cyan),
        Tone::Dim => plain.add_attribute(Attribute::Dim),
        Tone::Good => plain.fg(Color::Green),
        Tone::Attention => plain.fg(Color::Yellow),
        Tone::Elsewhere => plain.fg(Color::Blue),
        Tone::Bad => plain.fg(Color::Red),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([Column::Text("Repo"), Column::Number("Size"), Column::Fixed("Last used")]);
        table.row([
            Cell::new("org/a-model-with-a-rather-long-name", Tone::Name),
            "1.5 GiB".into(),
            "3 days ago".into(),
        ]);
        table.row([Cell::new("gpt2", Tone::Name), "12 B".into(), Cell::default()]);
        table
    }

    #[test]
    fn without_a_width_nothing_is_cut_or_coloured() {
        insta::assert_snapshot!(table().render(None, false), @r"
        Repo                                    Size  Last used
        org/a-model-with-a-rather-long-name  1.5 GiB  3 days ago
        gpt2                                    12 B
        ");
    }

    #[test]
    fn a_narrow_terminal_cuts_text_but_no_numbers() {
        insta::assert_snapshot!(table().render(Some(40), false), @r"
        Repo                    Size  Last used
        org/a-model-with-a…  1.5 GiB  3 days ago
        gpt2                    12 B
        ");
    }

    #[test]
    fn colours_leave_no_trailing_blanks() {
        let text = table().render(None, true);
        assert!(text.contains("\u{1b}["));
        let bare = console::strip_ansi_codes(&text).into_owned();
        assert_eq!(
            bare.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"),
            table().render(None, false).trim_end()
        );
    }
}
