//! The YAML file, read into typed values, with errors that name the line but never a value.
//!
//! The parser's own messages can quote the file, which may contain a secret anywhere by mistake. So they are never shown;
//! fixed messages take their place.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess};

use super::settings::{Form, SECTIONS, SETTINGS, Setting};
use super::source::Source;
use super::values::GIGABYTES;
use crate::error::{Error, Result};

/// Maximum size of the file in bytes. No configuration is larger, and a device file has no end.
const MAX_SIZE: u64 = 1 << 20;

const HINT: &str = "correct that line, or compare with a fresh file that `hf-cache-sync init` writes in another folder";

/// A parsed file; empty if there is none.
#[derive(Default)]
pub(super) struct File {
    path: PathBuf,
    text: String,
    sections: Vec<(String, Vec<(String, Node)>)>,
}

/// A YAML value. Does not implement `Debug`, since it may hold a secret.
#[derive(Clone, PartialEq)]
enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Tagged,
}

/// A value in the file and its location.
pub(super) struct FileValue {
    pub(super) text: String,
    pub(super) source: Source,
}

impl File {
    /// Reads a file, with a warning for each unknown key.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] when it cannot be read, or is not YAML with sections.
    pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<File> {
        let unusable = |why: String| {
            Error::usage(format!("cannot use the configuration {}", path.display())).because(why).hint(HINT)
        };
        let text = read_text(path)?;
        let root: Node = match yaml_serde::from_str(&text) {
            Ok(root) => root,
            Err(error) => return Err(unusable(describe_syntax_error(&error, &text))),
        };
        let mut file = File { path: path.to_path_buf(), text, sections: Vec::new() };
        let entries = match root {
            Node::Null => return Ok(file),
            Node::Map(entries) => entries,
            _ => return Err(unusable("line 1: expected the sections storage, cache and team".into())),
        };
        let shown = path.display().to_string();
        for (key, node) in entries {
            let name = key.as_text();
            let Some(section) = name.filter(|name| SECTIONS.contains(name)) else {
                let place = name.and_then(|name| locate(&file.text, &[name])).map(|place| place.line);
                warnings.push(format!("{shown}: {}", unknown_key("", name, &node, place, &SECTIONS)));
                continue;
            };
            let line = locate(&file.text, &[section]).map_or(String::new(), |place| format!("line {}: ", place.line));
            if file.sections.iter().any(|(known, _)| known == section) {
                return Err(unusable(format!("{line}the section {section} is set twice")));
            }
            let keys = match node {
                Node::Null => Vec::new(),
                Node::Map(keys) => keys,
                _ => return Err(unusable(format!("{line}{section}: expected a section with keys and values"))),
            };
            let known: Vec<&str> =
                SETTINGS.iter().filter(|setting| setting.section == section).map(|setting| setting.key).collect();
            let mut values: Vec<(String, Node)> = Vec::new();
            for (key, node) in keys {
                let name = key.as_text();
                let place = || name.and_then(|name| locate(&file.text, &[section, name])).map(|place| place.line);
                match name.filter(|name| known.contains(name)) {
                    None => {
                        let warning = unknown_key(&format!("{section}."), name, &node, place(), &known);
                        warnings.push(format!("{shown}: {warning}"));
                    }
                    Some(name) if values.iter().any(|(seen, _)| seen == name) => {
                        let line = place().map_or(String::new(), |line| format!("line {line}: "));
                        return Err(unusable(format!("{line}{section}.{name} is set twice")));
                    }
                    Some(name) => values.push((name.to_string(), node)),
                }
            }
            file.sections.push((section.to_string(), values));
        }
        Ok(file)
    }

    /// Returns the value of a setting, or `None` if it is absent or empty.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] when its type is wrong. The error does not contain the value.
    pub(super) fn get(&self, setting: &Setting) -> Result<Option<FileValue>> {
        let section = self.sections.iter().find(|(name, _)| name == setting.section);
        let node = section.and_then(|(_, keys)| keys.iter().find(|(key, _)| key == setting.key));
        let Some((_, node)) = node.filter(|(_, node)| *node != Node::Null) else { return Ok(None) };
        let place = locate(&self.text, &[setting.section, setting.key]);
        let quoted = || {
            let line = place.as_ref().and_then(|place| self.text.lines().nth(place.line - 1));
            let column = place.as_ref().map_or(0, |place| place.column - 1);
            line.and_then(|line| line.chars().nth(column)).is_some_and(|c| "\"'|>".contains(c))
        };
        let source =
            Source::File { path: self.path.clone(), line: place.as_ref().map(|place| place.line), key: setting.name() };
        match node.as_form(setting.form, quoted) {
            Err(_) if setting.key == "max_local_gb" => Err(Error::usage(format!("cannot use {source}"))
                .because(format!("{GIGABYTES}, without quotes"))
                .hint(HINT)),
            Ok(text) => Ok(Some(FileValue { text, source })),
            Err(why) => Err(Error::usage(format!("cannot use {source}")).because(why).hint(HINT)),
        }
    }
}

fn read_text(path: &Path) -> Result<String> {
    let unusable = |why: String| Error::usage(format!("cannot use the configuration {}", path.display())).because(why);
    let mut bytes = Vec::new();
    crate::files::open_named(path)
        .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|e| unusable(crate::error::plain_io(&e)))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(unusable("it is larger than 1 MiB".into()));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(unusable("it is encoded in UTF-16".into()).hint("save it as UTF-8"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        unusable(format!("line {line}: it is not UTF-8")).hint("save it as UTF-8")
    })?;
    Ok(text.trim_start_matches('\u{feff}').to_string())
}

/// Describes a YAML syntax error without quoting the file.
fn describe_syntax_error(error: &yaml_serde::Error, text: &str) -> String {
    let place = error.location();
    let line = place.as_ref().map(|place| place.line());
    let message = error.to_string();
    // A tab in the indentation leads to many different messages, none of which mentions it.
    let indented = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let tab = text.lines().take(line.unwrap_or(usize::MAX)).position(|line| line[..indented(line)].contains('\t'));
    if let Some(at) = tab {
        return format!("line {} is indented with a tab, which YAML does not allow: use spaces", at + 1);
    }
    const KNOWN: [(&str, &str); 13] = [
        (
            "mapping values are not allowed",
            "a value is not allowed here: is the indentation wrong, or a quote missing?",
        ),
        (
            "found character that cannot start any token",
            "a value starts with a character that requires quotes around the value",
        ),
        ("did not find expected key", "expected a key here: is the indentation wrong, or a quote missing?"),
        ("could not find expected ':'", "expected `key: value`"),
        ("did not find expected ',' or", "a bracket or brace is not closed"),
        ("did not find expected node content", "a bracket or brace is not closed"),
        ("found unexpected end of stream", "a quote is not closed"),
        ("found unexpected document indicator", "a quote is not closed"),
        ("unknown anchor", "a value starts with `*`, which requires quotes around the value"),
        ("while scanning an anchor", "a value starts with `&`, which requires quotes around the value"),
        ("while scanning an alias", "a value starts with `*`, which requires quotes around the value"),
        ("more than one document", "it contains more than one document (`---`)"),
        ("control characters are not allowed", "it contains a control character"),
    ];
    let known =
        KNOWN.iter().find(|(theirs, _)| message.contains(theirs)).map_or("it is not valid YAML", |(_, ours)| ours);
    match line.filter(|_| place.is_some_and(|place| place.index() > 0 || place.line() > 1 || place.column() > 1)) {
        Some(line) => format!("line {line}: {known}"),
        None if text.lines().count() <= 1 => format!("line 1: {known}"),
        None => known.to_string(),
    }
}

/// Returns the warning about an unknown key. The key is named only if it looks like one, since a misplaced secret can end
/// up as a key.
fn unknown_key(section: &str, key: Option<&str>, value: &Node, line: Option<usize>, known: &[&str]) -> String {
    let plain = |key: &str| {
        key.len() <= 40
            && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
            && key.chars().filter(char::is_ascii_digit).count() <= 2
    };
    let Some(key) = key.filter(|key| plain(key) && *value != Node::Null) else {
        let line = line.map_or(String::new(), |line| format!(" on line {line}"));
        return match section.strip_suffix('.') {
            Some(section) => format!("an unknown key{line}, in the section {section}, is ignored"),
            None => format!("an unknown key{line} is ignored"),
        };
    };
    match crate::suggest::nearest(key, known.iter().copied()).next() {
        Some(nearest) => format!("unknown key `{section}{key}` is ignored; did you mean `{section}{nearest}`?"),
        None => format!("unknown key `{section}{key}` is ignored"),
    }
}

impl Node {
    fn as_text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Converts a value of this form to text.
    fn as_form(&self, form: Form, quoted: impl Fn() -> bool) -> std::result::Result<String, String> {
        match (form, self) {
            (Form::Number, Node::Number(number)) => Ok(number.clone()),
            (Form::Number, Node::Text(_)) => Err("expected a number, without quotes".into()),
            (Form::Number, _) => Err("expected a number".into()),
            (Form::Switch, Node::Bool(value)) => Ok(value.to_string()),
            // 0.1.0 read YAML 1.1, where these are booleans unless quoted.
            (Form::Switch, Node::Text(text))
                if ["yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str()) && !quoted() =>
            {
                Ok(text.to_ascii_lowercase())
            }
            (Form::Switch, _) => Err("expected true or false, without quotes".into()),
            (Form::List, Node::List(items)) => {
                let is_plain = |text: &&str| !text.contains(|c: char| c == ',' || c.is_whitespace());
                let texts = items.iter().map(|item| item.as_text().filter(is_plain)).collect::<Option<Vec<_>>>();
                let texts =
                    texts.ok_or("expected texts without spaces and commas, in quotes where they start with *")?;
                Ok(texts.join(", "))
            }
            (Form::List, Node::Text(text)) => Ok(text.clone()),
            (Form::List, _) => Err("expected a list, such as [\"org/*\", \"org/name\"]".into()),
            (_, Node::Text(text)) => Ok(text.clone()),
            (Form::Secret, _) => Err("expected a string: put the key in quotes".into()),
            (_, Node::Number(_) | Node::Bool(_)) => Err("expected a string: put it in quotes".into()),
            (_, _) => Err("expected a string".into()),
        }
    }
}

impl<'de> de::Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> de::Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> std::result::Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_none<E>(self) -> std::result::Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, value: bool) -> std::result::Result<Node, E> {
        Ok(Node::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }
    fn visit_i128<E>(self, value: i128) -> std::result::Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }
    fn visit_u128<E>(self, value: u128) -> std::result::Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }
    fn visit_str<E>(self, value: &str) -> std::result::Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        while let Some((key, value)) = map.next_entry::<Node, Node>()? {
            match (key, value) {
                (Node::Text(key), Node::Map(more)) if key == "<<" => merged.extend(more),
                entry => entries.push(entry),
            }
        }
        // As in YAML 1.1, which 0.1.0 read: a merged key does not replace an existing one.
        for (key, value) in merged {
            if !entries.iter().any(|(known, _)| *known == key) {
                entries.push((key, value));
            }
        }
        Ok(Node::Map(entries))
    }
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> std::result::Result<Node, A::Error> {
        let (IgnoredAny, value) = tagged.variant::<IgnoredAny>()?;
        value.newtype_variant::<Node>()?;
        Ok(Node::Tagged)
    }
}

/// A position in a text, counted from 1.
struct Place {
    line: usize,
    column: usize,
}

/// Finds the position of the value at this path. The parser reports positions only in errors, so it is made to fail there.
fn locate(text: &str, path: &[&str]) -> Option<Place> {
    let error = Locate(path).deserialize(yaml_serde::Deserializer::from_str(text)).err()?;
    let place = error.location()?;
    Some(Place { line: place.line(), column: place.column() })
}

struct Locate<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Fails on purpose when the path ends.
impl<'de> de::Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path to a value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(de::Error::custom("here")) };
        while let Some(key) = map.next_key::<Node>()? {
            match key.as_text() == Some(first) {
                true => map.next_value_seed(Locate(rest))?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
