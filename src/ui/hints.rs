//! Hints name commands to run next. The options of this command line that choose the bucket, the cache and the
//! configuration are added to them: without these, the command would act on something else.

use std::borrow::Cow;
use std::sync::Arc;

use crate::escape::without_user;

/// How a command in a message begins.
const START: &str = "`hf-cache-sync ";
/// Commands that read no configuration.
const WITHOUT_SETTINGS: [&str; 3] = ["init", "completions", "man"];

/// The options to add, each with its flag.
#[derive(Debug, Clone, Default)]
pub struct GivenOptions(Arc<[(String, String)]>);

impl GivenOptions {
    /// Takes flags with their values, as they were given. A switch has no value.
    pub fn new<'a>(options: impl IntoIterator<Item = (&'a str, Option<Cow<'a, str>>)>) -> GivenOptions {
        let option = |(name, value): (&str, Option<Cow<'_, str>>)| {
            let flag = format!("--{name}");
            let option = match value {
                Some(value) => format!("{flag} {}", quoted(&without_user(&value))),
                None => flag.clone(),
            };
            (flag, option)
        };
        GivenOptions(options.into_iter().map(option).collect())
    }

    /// Adds the options to every command in a text, unless the command has them already.
    pub fn complete<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.0.is_empty() || !text.contains(START) {
            return Cow::Borrowed(text);
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(START) {
            let (front, behind) = rest.split_at(at + START.len());
            out += front;
            let command = behind.split('`').next().unwrap_or_default();
            let words: Vec<&str> = command.split([' ', '=']).collect();
            if !WITHOUT_SETTINGS.contains(&words[0]) {
                // This machine's cache is not that of another one.
                let is_elsewhere = behind[command.len()..].starts_with("` on a machine that");
                let is_left_out = |flag: &str| words.contains(&flag) || (is_elsewhere && flag == "--cache-dir");
                let options = self.0.iter().filter(|(flag, _)| !is_left_out(flag));
                options.for_each(|(_, option)| out += &format!("{option} "));
            }
            rest = behind;
        }
        Cow::Owned(out + rest)
    }
}

/// Quotes a value for a shell, if necessary.
fn quoted(value: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    match !value.is_empty() && value.chars().all(is_plain) {
        true => Cow::Borrowed(value),
        false => Cow::Owned(format!("'{}'", value.replace('\'', r"'\''"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_a_text_get_the_options_that_were_given() {
        let some = |text: &'static str| Some(Cow::Borrowed(text));
        let options = [
            ("config", some("a file.yaml")),
            ("endpoint", some("https://key:secret@s3.example")),
            ("prefix", some("it's")),
            ("no-sign-request", None),
        ];
        let given = GivenOptions::new(options);
        let added = r"--config 'a file.yaml' --endpoint https://s3.example --prefix 'it'\''s' --no-sign-request";
        for (text, expected) in [
            ("run `hf-cache-sync push`, then prune", format!("run `hf-cache-sync {added} push`, then prune")),
            (
                "`hf-cache-sync push` or `hf-cache-sync diff`",
                format!("`hf-cache-sync {added} push` or `hf-cache-sync {added} diff`"),
            ),
            (
                "run `hf-cache-sync push` on a machine that has it",
                format!("run `hf-cache-sync {added} push` on a machine that has it"),
            ),
            (
                "see `hf-cache-sync init` and hf-cache-sync push",
                "see `hf-cache-sync init` and hf-cache-sync push".into(),
            ),
            (
                "`hf-cache-sync doctor --config=x --prefix y`",
                "`hf-cache-sync --endpoint https://s3.example --no-sign-request doctor --config=x --prefix y`".into(),
            ),
            ("a `hf-cache-sync push", format!("a `hf-cache-sync {added} push")),
            ("", String::new()),
        ] {
            assert_eq!(given.complete(text), expected);
            assert_eq!(GivenOptions::default().complete(text), text);
        }
    }
}
