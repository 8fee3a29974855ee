//! Tables: aligned columns without borders. On a terminal, columns are shortened to fit its width; elsewhere, nothing is
//! shortened or coloured.

use console::{Alignment, Style};
use unicode_width::UnicodeWidthChar;

use crate::escape::{Keep, escape};

/// Number of blanks between columns.
const GAP: usize = 2;
/// Width to which text and names are shortened before a spare column is dropped.
const COMFORTABLE: usize = 32;
/// Minimum width of a shortened column.
const MIN_WIDTH: usize = 10;

/// How a column behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// A name, shortened in the middle if necessary, since both ends distinguish names.
    Name(&'static str),
    /// Text, shortened at the end if necessary.
    Text(&'static str),
    /// Text that is never shortened.
    Fixed(&'static str),
    /// A number, right-aligned and never shortened.
    Number(&'static str),
    /// A number, dropped if the terminal is too narrow.
    SpareNumber(&'static str),
    /// Text, dropped if the terminal is too narrow.
    Spare(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Name(title)
            | Column::Text(title)
            | Column::Fixed(title)
            | Column::Number(title)
            | Column::SpareNumber(title)
            | Column::Spare(title) => title,
        }
    }

    fn alignment(self) -> Alignment {
        match self {
            Column::Number(_) | Column::SpareNumber(_) => Alignment::Right,
            _ => Alignment::Left,
        }
    }

    fn is_spare(self) -> bool {
        matches!(self, Column::Spare(_) | Column::SpareNumber(_))
    }

    fn can_shrink(self) -> bool {
        matches!(self, Column::Name(_) | Column::Text(_))
    }

    /// Shortens text to this width.
    fn cut(self, text: &str, width: usize) -> String {
        let is_too_wide = console::measure_text_width(text) > width;
        match self {
            Column::Name(_) if is_too_wide => cut_in_the_middle(text, width),
            Column::Text(_) if is_too_wide => console::truncate_str(text, width, "…").into_owned(),
            _ => text.to_string(),
        }
    }
}

/// Shortens text in the middle to at most this many columns. A wide character takes two.
pub(super) fn cut_in_the_middle(text: &str, width: usize) -> String {
    let kept = width.saturating_sub(1);
    cut(text, kept.div_ceil(2), kept - kept.div_ceil(2))
}

/// Keeps the first and last columns of a text, with an ellipsis between them.
pub(super) fn cut(text: &str, head: usize, tail: usize) -> String {
    let fits = |max: usize| {
        let mut used = 0;
        move |c: &char| {
            used += c.width().unwrap_or_default();
            used <= max
        }
    };
    let start: String = text.chars().take_while(fits(head)).collect();
    let end: Vec<char> = text[start.len()..].chars().rev().take_while(fits(tail)).collect();
    // A combining mark without its letter would attach to the ellipsis.
    let end = end.into_iter().rev().skip_while(|c| c.width() == Some(0));
    start.chars().chain(['…']).chain(end).collect()
}

/// The meaning of a cell, shown by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// No special meaning.
    #[default]
    Plain,
    /// The subject of the row.
    Name,
    /// Less important.
    Dim,
    /// In order.
    Good,
    /// Needs action.
    Attention,
    /// Only in the bucket.
    Remote,
    /// Wrong.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        let plain = Style::new();
        match self {
            Tone::Plain => plain,
            Tone::Name => plain.cyan(),
            Tone::Dim => plain.dim(),
            Tone::Good => plain.green(),
            Tone::Attention => plain.yellow(),
            Tone::Remote => plain.blue(),
            Tone::Bad => plain.red(),
        }
    }
}

/// A cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Creates a cell. Hidden characters are escaped, so that the text's width is as computed.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Cell { text: escape(&text.into(), Keep::Nothing).into_owned(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(text, Tone::Plain)
    }
}

/// A table.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Creates a table with these columns.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Table { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the text for this process's stdout.
    pub fn to_text(&self) -> String {
        let terminal = console::Term::stdout();
        let width = terminal.is_term().then(|| terminal.size().1);
        self.render(width, console::colors_enabled())
    }

    /// Returns the text without titles, for `-q`.
    pub fn to_bare_text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let text = self.to_text();
        text.split_once('\n').map(|(_, rows)| rows.to_string()).unwrap_or_default()
    }

    /// Returns the text, at most `width` columns wide if possible.
    pub fn render(&self, width: Option<u16>, colour: bool) -> String {
        let layout = self.layout(width.map(usize::from));
        let mut text = String::new();
        let titles = layout.iter().map(|(index, _)| (self.columns[*index].title(), Style::new().bold()));
        self.write_line(&mut text, &layout, titles.collect(), colour);
        for row in &self.rows {
            let cells = layout.iter().map(|(index, _)| match row.get(*index) {
                Some(cell) => (cell.text.as_str(), cell.tone.style()),
                None => ("", Style::new()),
            });
            self.write_line(&mut text, &layout, cells.collect(), colour);
        }
        text
    }

    /// Writes a line, with cells shortened or padded to their columns' widths, and without trailing blanks.
    fn write_line(&self, out: &mut String, layout: &[(usize, usize)], cells: Vec<(&str, Style)>, colour: bool) {
        let start = out.len();
        for ((index, width), (text, style)) in layout.iter().zip(cells) {
            let column = self.columns[*index];
            let text = column.cut(text, *width);
            let blanks = " ".repeat(width.saturating_sub(console::measure_text_width(&text)));
            let text = if text.is_empty() { text } else { style.force_styling(colour).apply_to(text).to_string() };
            match column.alignment() {
                Alignment::Right => out.extend([blanks, text]),
                _ => out.extend([text, blanks]),
            }
            out.push_str(&" ".repeat(GAP));
        }
        let end = start + out[start..].trim_end_matches(' ').len();
        out.truncate(end);
        out.push('\n');
    }

    /// Returns the columns to show and their widths. First, long text and names are shortened a little, then spare columns
    /// are dropped, and then text and names are shortened further.
    fn layout(&self, limit: Option<usize>) -> Vec<(usize, usize)> {
        let natural = |(index, column): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            let widest = cells.map(|cell| console::measure_text_width(&cell.text)).max().unwrap_or_default();
            (index, widest.max(column.title().len()))
        };
        let mut natural: Vec<(usize, usize)> = self.columns.iter().enumerate().map(natural).collect();
        let Some(limit) = limit else { return natural };
        loop {
            let mut layout = natural.clone();
            self.shrink(&mut layout, limit, COMFORTABLE);
            if excess_width(&layout, limit) == 0 {
                return layout;
            }
            match natural.iter().rposition(|(index, _)| self.columns[*index].is_spare()) {
                Some(spare) => drop(natural.remove(spare)),
                None => {
                    self.shrink(&mut layout, limit, MIN_WIDTH);
                    return layout;
                }
            }
        }
    }

    /// Narrows columns that may be shortened, to no less than `min`. Names come last, since they are the subject of the row.
    fn shrink(&self, layout: &mut [(usize, usize)], limit: usize, min: usize) {
        for names in [false, true] {
            while excess_width(layout, limit) > 0 {
                let shrinkable = layout.iter_mut().filter(|(index, width)| {
                    let column = self.columns[*index];
                    column.can_shrink() && matches!(column, Column::Name(_)) == names && *width > min
                });
                match shrinkable.max_by_key(|(_, width)| *width) {
                    Some((_, width)) => *width -= 1,
                    None => break,
                }
            }
        }
    }
}

/// Returns by how many columns a layout is too wide.
fn excess_width(layout: &[(usize, usize)], limit: usize) -> usize {
    let wide: usize = layout.iter().map(|(_, width)| width + GAP).sum();
    wide.saturating_sub(GAP).saturating_sub(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = [
            Column::Name("Repo"),
            Column::Number("Size"),
            Column::SpareNumber("Blobs"),
            Column::Text("Refs"),
            Column::Fixed("Last used"),
        ];
        let mut table = Table::new(columns);
        let refs = "main, refs/pr/1, v1.0";
        let name = Cell::new("org/a-model-with-a-rather-long-name", Tone::Name);
        table.row([name, "1.5 GiB".into(), "12".into(), refs.into(), "3 days ago".into()]);
        table.row([Cell::new("gpt2", Tone::Name), "12 B".into(), "1".into(), "main".into(), Cell::default()]);
        table
    }

    #[test]
    fn without_a_width_nothing_is_shortened_or_coloured() {
        insta::assert_snapshot!(table().render(None, false), @r"
        Repo                                    Size  Blobs  Refs                   Last used
        org/a-model-with-a-rather-long-name  1.5 GiB     12  main, refs/pr/1, v1.0  3 days ago
        gpt2                                    12 B      1  main
        ");
    }

    #[test]
    fn a_narrower_terminal_drops_spare_columns() {
        insta::assert_snapshot!(table().render(Some(80), false), @r"
        Repo                                    Size  Refs                   Last used
        org/a-model-with-a-rather-long-name  1.5 GiB  main, refs/pr/1, v1.0  3 days ago
        gpt2                                    12 B  main
        ");
    }

    #[test]
    fn a_narrow_terminal_shortens_names_and_text_but_not_numbers() {
        let text = table().render(Some(60), false);
        assert!(text.lines().all(|line| line.chars().count() <= 60));
        insta::assert_snapshot!(text, @r"
        Repo                            Size  Refs        Last used
        org/a-model-w…her-long-name  1.5 GiB  main, ref…  3 days ago
        gpt2                            12 B  main
        ");
        assert!(table().render(Some(1), false).contains("org/a…name  1.5 GiB  main, ref…  3 days ago"));
    }

    #[test]
    fn columns_stay_aligned_with_wide_and_hidden_characters() {
        let mut table = Table::new([Column::Name("Repo"), Column::Number("Size")]);
        let names = ["漢字漢字漢字漢字漢字漢字漢字漢字/データ", "a\u{1b}[31m\u{202e}b", "cafe\u{301}", "plain"];
        names.iter().for_each(|name| table.row([(*name).into(), "1 B".into()]));
        for width in [None, Some(20), Some(30), Some(80)] {
            let text = table.render(width, false);
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
            let columns: Vec<_> = text.lines().map(console::measure_text_width).collect();
            assert!(columns.iter().all(|count| *count == columns[0]), "{columns:?}: {text}");
            assert!(width.is_none_or(|width| columns[0] <= usize::from(width)), "{text}");
        }
        for width in 0..40 {
            assert!(console::measure_text_width(&cut_in_the_middle(names[0], width)) <= width.max(1), "{width}");
        }
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
