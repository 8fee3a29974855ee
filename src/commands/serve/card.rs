//! The card of a repo: the front matter of its README. Its author is not trusted, and a little YAML can expand to a lot: an
//! alias stands for text of any length, and for each token, the parser takes time proportional to the open brackets. So both
//! are limited.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Maximum size of the front matter, in bytes. Cards that list many benchmark results have a few hundred kilobytes.
const MAX_LENGTH: usize = 1 << 20;
/// Maximum product of its length and its number of opening brackets: about a second of parsing. A front matter of 100 kB may
/// have 2,600 of them.
const MAX_WORK: usize = 1 << 28;

/// Returns the front matter of a README: the YAML between two lines of dashes at its start. It is empty if the YAML is not
/// valid or exceeds a limit.
pub fn front_matter(readme: &str) -> Map<String, Value> {
    let text = readme.strip_prefix('\u{feff}').unwrap_or(readme).replace("\r\n", "\n");
    let yaml = text.strip_prefix("---\n").and_then(|rest| {
        let end = if rest.starts_with("---\n") {
            0
        } else {
            rest.find("\n---\n").or_else(|| rest.strip_suffix("\n---").map(str::len))?
        };
        Some(&rest[..end])
    });
    match yaml.filter(|yaml| is_limited(yaml)).and_then(parse) {
        Some(Value::Object(card)) => card,
        _ => Map::new(),
    }
}

/// Returns whether parsing takes little time. Directives, which no card has, take time quadratic in their number.
fn is_limited(yaml: &str) -> bool {
    let brackets = yaml.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    yaml.len() <= MAX_LENGTH && brackets * yaml.len() <= MAX_WORK && !yaml.lines().any(|line| line.starts_with('%'))
}

/// Parses YAML; `None` if it is not valid, or expands to much more than its text.
fn parse(yaml: &str) -> Option<Value> {
    // The parser takes up to a hundred times the memory of the text, so only one runs at a time.
    static PARSING: Mutex<()> = Mutex::new(());
    let _parsing = PARSING.lock().unwrap_or_else(PoisonError::into_inner);
    // An escape such as `\L` stands for up to three bytes.
    let left = Cell::new(2 * yaml.len() + 64);
    Limited(&left).deserialize(yaml_serde::Deserializer::from_str(yaml)).ok()
}

/// Deserializes a value within a budget of bytes.
#[derive(Clone, Copy)]
struct Limited<'a>(&'a Cell<usize>);

impl Limited<'_> {
    fn spend<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes + 1).ok_or_else(|| E::custom("it is too large"))?;
        self.0.set(left);
        Ok(())
    }

    fn scalar<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Limited<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Limited<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.spend(text.len())?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.spend(key.len())?;
            values.insert(key, map.next_value_seed(self)?);
        }
        Ok(Value::Object(values))
    }
}

/// Returns the tags derived from the card.
pub fn tags(card: &Map<String, Value>) -> Vec<String> {
    let texts = |key: &str| match card.get(key) {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(String::from)).collect(),
        _ => Vec::new(),
    };
    let mut tags = texts("tags");
    tags.extend(texts("library_name"));
    tags.extend(texts("pipeline_tag"));
    tags.extend(texts("language"));
    tags.extend(texts("license").into_iter().map(|license| format!("license:{license}")));
    let mut seen = BTreeSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_card_is_the_front_matter() {
        let card = front_matter("---\r\nlicense: mit\ntags: [a, b]\n---\n# Title\n---\n");
        assert_eq!(Value::Object(card.clone()), json!({ "license": "mit", "tags": ["a", "b"] }));
        assert_eq!(tags(&card), ["a", "b", "license:mit"]);
        for text in ["", "# Title", "---\nno end", "---\n---\n", "---\n[1]\n---\n", "---\n: :\n---\n"] {
            assert!(front_matter(text).is_empty(), "{text:?}");
        }
        assert_eq!(front_matter("---\na: 1\n---").len(), 1);
    }

    #[test]
    fn every_kind_of_value_is_kept() {
        let card =
            front_matter("---\na: [1, -1, 1.5, true, null, ~, x, '1']\nb: {c: {d: e}}\n1: 2\nf: 2024-01-01\n---\n");
        let expected = json!({
            "a": [1, -1, 1.5, true, null, null, "x", "1"], "b": { "c": { "d": "e" } }, "1": 2, "f": "2024-01-01"
        });
        assert_eq!(Value::Object(card), expected);
        let aliases = front_matter("---\na: &x [en, de]\nb: *x\n---\n");
        assert_eq!(Value::Object(aliases), json!({ "a": ["en", "de"], "b": ["en", "de"] }));
        // The escape that expands to the most bytes.
        let escapes = front_matter(&format!("---\na: \"{}\"\n---\n", "\\L".repeat(50_000)));
        assert_eq!(escapes["a"].as_str().map(str::len), Some(150_000));
    }

    #[test]
    fn ignores_front_matter_that_takes_too_much_to_parse() {
        let text = |first: &str, aliases: &str| format!("---\na: &a {first}\nb: [{aliases}]\n---\n");
        assert!(front_matter(&text(&"x".repeat(500_000), &"*a,".repeat(150_000))).is_empty());
        let laughs: String = (b'b'..=b'z')
            .map(|c| {
                let before = char::from(c - 1);
                format!("{}: &{} [*{before},*{before},*{before}]\n", char::from(c), char::from(c))
            })
            .collect();
        assert!(front_matter(&format!("---\na: &a x\n{laughs}---\n")).is_empty());
        for nested in ["[".repeat(400_000), "[a,".repeat(300_000), "{".repeat(100_000), "\"]\",[".repeat(100_000)] {
            assert!(front_matter(&format!("---\na: {nested}\n---\n")).is_empty());
        }
        let directives: String = (0..70_000).map(|number| format!("%TAG !{number:05}! a\n")).collect();
        assert!(front_matter(&format!("---\na: 1\n...\n{directives}---\n")).is_empty());
        let longest = |bytes: usize| format!("---\na: {}\n---\n", "x".repeat(bytes - 3));
        assert!(front_matter(&longest(MAX_LENGTH + 1)).is_empty());
        assert_eq!(front_matter(&longest(MAX_LENGTH)).len(), 1);
    }
}
