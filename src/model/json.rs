//! JSON from outside, read and written as text. A tree of values would take many times the memory of its text, and untrusted
//! input can be of any size. No I/O.

use std::borrow::Cow;
use std::fmt;
use std::io;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

/// Parses a whole document.
///
/// # Errors
/// The reason, for the user.
pub fn parse<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], seed: S) -> Result<S::Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|error| {
        let text = error.to_string();
        match error.classify() {
            // The text is ours. A position says little in a document of one line.
            Category::Data => {
                let position = format!(" at line {} column {}", error.line(), error.column());
                text.strip_suffix(&position).unwrap_or(&text).to_string()
            }
            Category::Syntax | Category::Eof | Category::Io => format!("it is not JSON: {text}"),
        }
    })
}

macro_rules! refuse {
    ($($name:ident($type:ty)),*) => {$(
        fn $name<X: Error>(self, _: $type) -> Result<Self::Value, X> {
            Err(X::custom(self.refusal))
        }
    )*};
}

/// Handles the entries of an object as they come.
pub trait Entries<'de> {
    /// Handles an entry, whose value must be taken from `map`.
    ///
    /// # Errors
    /// If the value is not acceptable.
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error>;
}

/// An object whose entries are handled one by one.
pub struct Object<T> {
    /// The handler of the entries.
    pub entries: T,
    /// The reason why anything else is not acceptable.
    pub refusal: &'static str,
}

impl<'de, T: Entries<'de>> DeserializeSeed<'de> for Object<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Entries<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T, A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            self.entries.entry(key, &mut map)?;
        }
        Ok(self.entries)
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Err(E::custom(self.refusal))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        Err(A::Error::custom(self.refusal))
    }

    refuse!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

/// A list whose elements are handled one by one: `element` returns the seed of the next one, and `done` gets what came of it.
pub struct List<S, F> {
    /// Returns the seed of an element.
    pub element: S,
    /// Handles a parsed element. It may refuse the list.
    pub done: F,
    /// The reason why anything else is not acceptable.
    pub refusal: &'static str,
}

impl<'de, S, E, F> DeserializeSeed<'de> for List<S, F>
where
    S: FnMut() -> E,
    E: DeserializeSeed<'de>,
    F: FnMut(E::Value) -> Result<(), String>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S, E, F> Visitor<'de> for List<S, F>
where
    S: FnMut() -> E,
    E: DeserializeSeed<'de>,
    F: FnMut(E::Value) -> Result<(), String>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element_seed((self.element)())? {
            (self.done)(element).map_err(A::Error::custom)?;
        }
        Ok(())
    }

    fn visit_unit<X: Error>(self) -> Result<(), X> {
        Err(X::custom(self.refusal))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(self.refusal))
    }

    refuse!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

/// A key of an object, borrowed from the text where possible.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => Ok(Key(text)),
            _ => Err(D::Error::custom("a key is not a text")),
        }
    }
}

/// A value, as far as it is a text, a whole number or null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar<'de> {
    /// A text, borrowed where possible.
    Text(Cow<'de, str>),
    /// A whole number, 0 or more.
    Number(u64),
    /// Null.
    Null,
    /// Anything else. Its content is not kept.
    Other,
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalars;

        impl<'de> Visitor<'de> for Scalars {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_string())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }

        deserializer.deserialize_any(Scalars)
    }
}

/// Appends any value to a text, without white space. Nesting is limited, as in any document that `serde_json` parses.
pub struct Compact<'a>(pub &'a mut Vec<u8>);

impl Compact<'_> {
    fn put<E: Error>(self, value: impl Serialize) -> Result<(), E> {
        serde_json::to_writer(self.0, &value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Compact<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Compact<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.put(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.put(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.push(b'[');
        let start = self.0.len();
        while seq.next_element_seed(Compact(self.0))?.is_some() {
            self.0.push(b',');
        }
        close(self.0, start, b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.0.push(b'{');
        let start = self.0.len();
        while map.next_key_seed(Compact(self.0))?.is_some() {
            self.0.push(b':');
            map.next_value_seed(Compact(self.0))?;
            self.0.push(b',');
        }
        close(self.0, start, b'}');
        Ok(())
    }
}

/// Ends a list or an object whose content began at `start`.
fn close(text: &mut Vec<u8>, start: usize, bracket: u8) {
    if text.len() > start {
        text.pop();
    }
    text.push(bracket);
}

/// Returns JSON that was written by [`Compact`] as text.
pub(super) fn text(json: &[u8]) -> &str {
    std::str::from_utf8(json).expect("it was written as JSON")
}

/// Indents compact JSON as Python's `json.dumps(value, indent=..)` does: characters beyond ASCII are escaped, and there is
/// no final newline.
#[derive(Debug)]
pub struct Python {
    out: Vec<u8>,
    indent: &'static str,
    level: usize,
    /// Whether a list or an object has just begun.
    is_open: bool,
    /// Whether this is inside of a text.
    is_text: bool,
    /// Whether the next character is escaped.
    is_escaped: bool,
}

impl Python {
    /// Starts a document that will have about this many bytes.
    pub fn new(indent: &'static str, capacity: usize) -> Python {
        Python {
            out: Vec::with_capacity(capacity),
            indent,
            level: 0,
            is_open: false,
            is_text: false,
            is_escaped: false,
        }
    }

    /// Adds a piece of compact JSON.
    pub fn text(&mut self, piece: &str) {
        for c in piece.chars() {
            match c {
                _ if self.is_text => self.within_text(c),
                '{' | '[' => {
                    self.open();
                    self.level += 1;
                    self.is_open = true;
                    self.push(c);
                }
                '}' | ']' => {
                    self.level = self.level.saturating_sub(1);
                    if !std::mem::take(&mut self.is_open) {
                        self.line();
                    }
                    self.push(c);
                }
                ',' => {
                    self.push(c);
                    self.line();
                }
                ':' => self.out.extend(b": "),
                _ => {
                    self.open();
                    self.is_text = c == '"';
                    self.push(c);
                }
            }
        }
    }

    /// Adds a value.
    pub fn value(&mut self, value: &impl Serialize) {
        serde_json::to_writer(self, value).expect("plain data can be written to memory");
    }

    /// Returns the document.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    fn within_text(&mut self, c: char) {
        match c {
            ' '..='~' => self.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    self.out.extend(format!("\\u{unit:04x}").bytes());
                }
            }
        }
        self.is_text = self.is_escaped || c != '"';
        self.is_escaped = !self.is_escaped && c == '\\';
    }

    /// Begins the first line of a list or an object.
    fn open(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.line();
        }
    }

    fn line(&mut self) {
        self.out.push(b'\n');
        for _ in 0..self.level {
            self.out.extend(self.indent.bytes());
        }
    }

    /// Adds an ASCII character.
    fn push(&mut self, c: char) {
        self.out.push(c as u8);
    }
}

impl io::Write for Python {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        // `serde_json` writes whole characters.
        self.text(std::str::from_utf8(piece).map_err(io::Error::other)?);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn compact(text: &[u8]) -> Result<String, String> {
        let mut out = Vec::new();
        parse(text, Compact(&mut out))?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn python(compact: &str) -> String {
        let mut out = Python::new("  ", 0);
        out.text(compact);
        String::from_utf8(out.finish()).unwrap()
    }

    #[test]
    fn values_become_compact_text() {
        let text = " { \"a\" : [ ] , \"\\u00e9\\n\\\\\" : { \"b\" : [ 1 , -2 , 3.5 , null , true , \"x\\\"\" ] } } ";
        let expected = r#"{"a":[],"é\n\\":{"b":[1,-2,3.5,null,true,"x\""]}}"#;
        assert_eq!(compact(text.as_bytes()).unwrap(), expected);
        assert!(compact(b"[1,]").unwrap_err().contains("not JSON"));
        assert!(compact("[".repeat(100_000).as_bytes()).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn indentation_equals_that_of_python() {
        let text = r#"{"a":[],"b":{},"é\u007f\"{[,:":[1,{"c":"😀"}]}"#;
        let expected = "{\n  \"a\": [],\n  \"b\": {},\n  \"\\u00e9\\u007f\\\"{[,:\": [\n    1,\n    {\n      \"c\": \
                        \"\\ud83d\\ude00\"\n    }\n  ]\n}";
        assert_eq!(python(text), expected);
        assert_eq!(python(r#"["\\",1]"#), "[\n  \"\\\\\",\n  1\n]");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #[test]
        fn no_value_is_changed(value in any_value()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let text = compact(pretty.as_bytes()).unwrap();
            prop_assert_eq!(&text, &value.to_string());
            let indented = python(&text);
            prop_assert!(indented.is_ascii());
            prop_assert_eq!(compact(indented.as_bytes()).unwrap(), text);
        }
    }
}
