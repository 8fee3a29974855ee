//! Tables: aligned columns without boxes. On a terminal they fit its width, and the wide columns are cut; everywhere
//! else nothing is cut and nothing is coloured.

use console::{Alignment, Style};
use unicode_width::UnicodeWidthChar;

use crate::escape::{Keep, escape};

/// Blanks between columns.
const GAP: usize = 2;
/// Text and names are cut to this width before a spare column is given up.
const COMFORTABLE: usize = 32;
/// No column is cut to less.
const NARROWEST: usize = 10;

/// How a column behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// A name, cut in the middle where the terminal is too narrow: both ends tell names apart.
    Name(&'static str),
    /// Text that is cut at its end where the terminal is too narrow.
    Text(&'static str),
    /// Text that is never cut.
    Fixed(&'static str),
    /// A number, aligned to the right and never cut.
    Number(&'static str),
    /// A number that is left out where the terminal is too narrow.
    SpareNumber(&'static str),
    /// Text that is left out where the terminal is too narrow.
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

    /// The text, at most so wide.
    fn cut(self, text: &str, width: usize) -> String {
        let over = console::measure_text_width(text) > width;
        match self {
            Column::Name(_) if over => cut_in_the_middle(text, width),
            Column::Text(_) if over => console::truncate_str(text, width, "…").into_owned(),
            _ => text.to_string(),
        }
    }
}

/// Cut in the middle to at most so many columns; a wide character is two.
pub(super) fn cut_in_the_middle(text: &str, width: usize) -> String {
    let kept = width.saturating_sub(1);
    cut(text, kept.div_ceil(2), kept - kept.div_ceil(2))
}

/// The first and the last columns of a text that is too wide, with an ellipsis between.
pub(super) fn cut(text: &str, head: usize, tail: usize) -> String {
    let fits = |most: usize| {
        let mut used = 0;
        move |c: &char| {
            used += c.width().unwrap_or_default();
            used <= most
        }
    };
    let start: String = text.chars().take_while(fits(head)).collect();
    let end: Vec<char> = text[start.len()..].chars().rev().take_while(fits(tail)).collect();
    // A mark without the letter that it belongs to would go onto the ellipsis.
    let end = end.into_iter().rev().skip_while(|c| c.width() == Some(0));
    start.chars().chain(['…']).chain(end).collect()
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

impl Tone {
    fn style(self) -> Style {
        let plain = Style::new();
        match self {
            Tone::Plain => plain,
            Tone::Name => plain.cyan(),
            Tone::Dim => plain.dim(),
            Tone::Good => plain.green(),
            Tone::Attention => plain.yellow(),
            Tone::Elsewhere => plain.blue(),
            Tone::Bad => plain.red(),
        }
    }
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in this tone. What is hidden in the text is shown, so that its width is what the terminal makes of it.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Cell { text: escape(&text.into(), Keep::Nothing).into_owned(), tone }
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

    /// The same without the titles: for `-q`.
    pub fn to_bare_text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let text = self.to_text();
        text.split_once('\n').map(|(_, rows)| rows.to_string()).unwrap_or_default()
    }

    /// The text: at most `width` characters wide where that can be had, when there is such a limit.
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

    /// Adds one line: each cell cut and padded to its column's width, nothing after the last text.
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

    /// The columns to show, with their widths: long text and names are cut a little, then spare columns go,
    /// then text and names are cut further.
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
            if over(&layout, limit) == 0 {
                return layout;
            }
            match natural.iter().rposition(|(index, _)| self.columns[*index].is_spare()) {
                Some(spare) => drop(natural.remove(spare)),
                None => {
                    self.shrink(&mut layout, limit, NARROWEST);
                    return layout;
                }
            }
        }
    }

    /// Narrows what may be cut, but to no less than `least`. Names last: they are what a row is about.
    fn shrink(&self, layout: &mut [(usize, usize)], limit: usize, least: usize) {
        for names in [false, true] {
            while over(layout, limit) > 0 {
                let shrinkable = layout.iter_mut().filter(|(index, width)| {
                    let column = self.columns[*index];
                    column.can_shrink() && matches!(column, Column::Name(_)) == names && *width > least
                });
                match shrinkable.max_by_key(|(_, width)| *width) {
                    Some((_, width)) => *width -= 1,
                    None => break,
                }
            }
        }
    }
}

/// How much too wide this is.
fn over(layout: &[(usize, usize)], limit: usize) -> usize {
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
    fn without_a_width_nothing_is_cut_or_coloured() {
        insta::assert_snapshot!(table().render(None, false), @r"
        Repo                                    Size  Blobs  Refs                   Last used
        org/a-model-with-a-rather-long-name  1.5 GiB     12  main, refs/pr/1, v1.0  3 days ago
        gpt2                                    12 B      1  main
        ");
    }

    #[test]
    fn a_narrower_terminal_loses_what_is_spare() {
        insta::assert_snapshot!(table().render(Some(80), false), @r"
        Repo                                    Size  Refs                   Last used
        org/a-model-with-a-rather-long-name  1.5 GiB  main, refs/pr/1, v1.0  3 days ago
        gpt2                                    12 B  main
        ");
    }

    #[test]
    fn a_narrow_terminal_cuts_names_and_text_but_no_numbers() {
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
    fn wide_and_hidden_characters_keep_the_columns_straight() {
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
