//! The filter of `--include` and `--exclude` patterns for repos. Pure.
//!
//! Patterns work like Python's `fnmatch`, as in 0.1.0: `*` also matches `/`, `?` matches one character, `[seq]` and
//! `[!seq]` are sets, and everything else is literal, including braces and backslashes. A type before a colon
//! (`dataset:org/*`) limits a pattern to that type. A pattern without one applies to all types.

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, Result, printable};
use crate::model::ids::{RepoName, RepoType};

/// Include and exclude patterns.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// One pattern.
#[derive(Debug, Clone)]
struct Pattern {
    kind: Option<RepoType>,
    id: GlobMatcher,
}

impl Filter {
    /// Parses the patterns.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] for a pattern that is not valid: an unclosed `[`, an empty range, an unknown
    /// type, or an empty pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let parse = |flag: &str, texts: &[String]| {
            let all = texts.iter().map(|text| {
                Pattern::parse(text).map_err(|why| {
                    Error::usage(format!("--{flag} '{}' is not a valid pattern", printable(text, 100)))
                        .because(why)
                        .hint("patterns are like org/*, dataset:org/*, *-GGUF, model-[0-9]")
                })
            });
            all.collect::<Result<Vec<_>>>()
        };
        Ok(Filter { include: parse("include", include)?, exclude: parse("exclude", exclude)? })
    }

    /// Returns whether the repo is included, or there are no include patterns, and is not excluded.
    pub fn allows(&self, repo: &RepoName) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(repo));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let endpoint = std::env::var("HF_ENDPOINT").ok();
        let (kind, id) = crate::model::ids::pattern(text, endpoint.as_deref())?;
        if id.is_empty() {
            return Err("it is empty".into());
        }
        let glob = GlobBuilder::new(&to_globset(id)?).literal_separator(false).backslash_escape(false).build();
        Ok(Pattern { kind, id: glob.map_err(|error| error.kind().to_string())?.compile_matcher() })
    }

    fn matches(&self, repo: &RepoName) -> bool {
        self.kind.is_none_or(|kind| kind == repo.kind) && self.id.is_match(repo.id.as_str())
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
        Pattern::parse(pattern).unwrap_or_else(|why| panic!("{pattern}: {why}")).id.is_match(text)
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

    #[test]
    fn types_limit_patterns_and_exclude_wins_over_include() {
        let repo = |kind, id: &str| RepoName::new(kind, id.parse().unwrap());
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let filter = Filter::new(&texts(&["dataset:org/*", "gpt2"]), &texts(&["*/secret"])).unwrap();
        assert!(filter.allows(&repo(RepoType::Dataset, "org/a")));
        assert!(!filter.allows(&repo(RepoType::Model, "org/a")));
        assert!(filter.allows(&repo(RepoType::Model, "gpt2")) && filter.allows(&repo(RepoType::Space, "gpt2")));
        assert!(!filter.allows(&repo(RepoType::Dataset, "org/secret")));
        let all = Filter::new(&[], &texts(&["model:*"])).unwrap();
        assert!(all.allows(&repo(RepoType::Kernel, "org/a")) && !all.allows(&repo(RepoType::Model, "org/a")));
    }

    #[test]
    fn invalid_patterns_are_rejected() {
        for bad in ["", "org/[a", "org/[]", "org/[!]", "[z-a]", "foo:org/*", "dataset:"] {
            let error = Filter::new(&[bad.to_string()], &[]).unwrap_err();
            assert_eq!(error.cause, crate::error::Cause::Usage, "{bad}");
            assert!(error.what.contains("--include"), "{error}");
        }
    }
}
