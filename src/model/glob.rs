//! Patterns that work like Python's `fnmatch`, as in 0.1.0 and huggingface_hub: `*` also matches `/`, `?` matches one
//! character, `[seq]` and `[!seq]` are sets, and everything else is literal, including braces and backslashes. Pure.
//!
//! Unlike in Python, a pattern that cannot be meant literally, such as one with an unclosed `[`, is an error.

use globset::{GlobBuilder, GlobMatcher};

/// A pattern.
#[derive(Debug, Clone)]
pub struct Glob(GlobMatcher);

impl Glob {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The reason, if it is empty, or has an unclosed `[` or an empty range.
    pub fn parse(text: &str) -> Result<Glob, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        let glob = GlobBuilder::new(&to_globset(text)?).literal_separator(false).backslash_escape(false).build();
        Ok(Glob(glob.map_err(|error| error.kind().to_string())?.compile_matcher()))
    }

    /// Returns whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// Translates a pattern to globset's syntax, which also has `**` and `{}`.
fn to_globset(pattern: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' if out.ends_with('*') => {}
            '{' | '}' => out.extend(['[', c, ']']),
            '[' => {
                let rest = chars.as_str();
                let negated = rest.starts_with('!');
                let body = &rest[usize::from(negated)..];
                // A leading `]` is a member.
                let first = body.chars().next().map_or(0, char::len_utf8);
                let end = body.get(first..).and_then(|more| more.find(']')).map(|end| first + end);
                let Some(end) = end else { return Err("it has a '[' without a matching ']'".into()) };
                out.push_str(&to_globset_set(&body[..end], negated)?);
                chars = body[end + 1..].chars();
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Translates `[seq]`, ordering its members so that globset takes each of them literally.
fn to_globset_set(body: &str, negated: bool) -> Result<String, String> {
    let members: Vec<char> = body.chars().collect();
    let (mut ranges, mut singles) = (String::new(), Vec::new());
    let mut at = 0;
    while at < members.len() {
        match members[at..] {
            [from, '-', to, ..] => {
                if from > to {
                    return Err(format!("its range {from}-{to} is empty"));
                }
                ranges.extend([from, '-', to]);
                at += 3;
            }
            [single, ..] => {
                singles.push(single);
                at += 1;
            }
            [] => break,
        }
    }
    let special = |c: &char| "]!^-".contains(*c);
    let has = |c: char| singles.contains(&c);
    let plain: String = singles.iter().filter(|c| !special(c)).collect();
    let marks: String = ['!', '^'].into_iter().filter(|c| has(*c)).collect();
    let bracket = if has(']') { "]" } else { "" };
    let dash = if has('-') { "-" } else { "" };
    let not = if negated { "!" } else { "" };
    if !negated && bracket.is_empty() && plain.is_empty() && !marks.is_empty() && !ranges.starts_with(']') {
        // A leading mark would negate the set.
        let rest = if ranges.is_empty() && dash.is_empty() { String::new() } else { format!(",[{ranges}{dash}]") };
        let marks: Vec<String> = marks.chars().map(String::from).collect();
        return Ok(format!("{{{}{rest}}}", marks.join(",")));
    }
    let head = if ranges.starts_with(['!', '^']) && bracket.is_empty() { &plain } else { "" };
    let tail = if head.is_empty() { plain.as_str() } else { "" };
    Ok(format!("[{not}{bracket}{head}{ranges}{tail}{marks}{dash}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::parse(pattern).unwrap_or_else(|why| panic!("{pattern}: {why}")).matches(text)
    }

    /// Each line matches Python: `fnmatch.fnmatchcase(text, pattern) is expected`.
    #[test]
    fn patterns_match_like_those_of_python() {
        for (pattern, text, expected) in [
            ("org/*", "org/name", true),
            ("org/*", "org/a/b", true),
            ("*", "org/name", true),
            ("**", "org/name", true),
            ("**/name", "name", false),
            ("**/name", "org/name", true),
            ("org/**", "org/", true),
            ("or*", "org/name", true),
            ("*name", "org/name", true),
            ("org?name", "org/name", true),
            ("org/nam", "org/name", false),
            ("org/name", "Org/name", false),
            ("gpt2", "gpt2", true),
            ("?pt2", "gpt2", true),
            ("?", "", false),
            ("model-[0-9]", "model-7", true),
            ("model-[0-9]", "model-x", false),
            ("model-[!0-9]", "model-x", true),
            ("model-[!0-9]", "model-7", false),
            ("[a-c]x", "bx", true),
            ("[^a]x", "^x", true),
            ("[^a]x", "ax", true),
            ("[^a]x", "bx", false),
            ("[^]x", "^x", true),
            ("[^]x", "bx", false),
            ("[!^]x", "^x", false),
            ("[a!]x", "!x", true),
            ("[]]x", "]x", true),
            ("[]a]x", "ax", true),
            ("[!]]x", "]x", false),
            ("[!]]x", "ax", true),
            ("[a-]x", "-x", true),
            ("[-a]x", "-x", true),
            ("[-a]x", "bx", false),
            ("[a-c-]x", "-x", true),
            ("[/]", "/", true),
            ("[*]", "*", true),
            ("[*]", "a", false),
            ("{a,b}", "a", false),
            ("{a,b}", "{a,b}", true),
            ("a\\*", "a\\b", true),
            ("a\\*", "a*", false),
            ("a,b", "a,b", true),
            ("a.b", "axb", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
