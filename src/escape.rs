//! Makes untrusted text safe to display. A bucket key, file name, server message or argument can contain characters that
//! control the terminal, reorder or hide the surrounding text, or are invisible. They are shown as escapes such as
//! `\u{1b}`; letters of all scripts are left as they are.

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar;

/// Maximum number of combining marks per letter. Written languages need no more, and a flood of them covers the lines
/// around.
const MAX_MARKS: usize = 3;

/// Control characters to leave as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None: for a single name or line.
    Nothing,
    /// Line breaks and tabs: for our own text with names in it.
    Lines,
    /// Line breaks, tabs and colours.
    LinesAndColours,
}

/// Escapes text for display.
pub fn escape(text: &str, keep: Keep) -> Cow<'_, str> {
    let plain = |byte: u8| (b' '..0x7f).contains(&byte) || (keep != Keep::Nothing && matches!(byte, b'\n' | b'\t'));
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut before = None;
    let mut marks = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if keep == Keep::LinesAndColours
            && let Some(length) = colour(rest)
        {
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let shown = if c.is_ascii() {
            plain(c as u8)
        } else if is_presentation(c) {
            // Selects a form of a symbol, such as a heart; invisible anywhere else.
            before.is_some_and(is_symbol)
        } else if is_hidden(c) {
            false
        } else if c.width() == Some(0) {
            marks += 1;
            marks <= MAX_MARKS && before.is_some_and(takes_marks)
        } else {
            true
        };
        if shown {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
        if c.width() != Some(0) || !shown {
            marks = 0;
            before = shown.then_some(c);
        }
    }
    Cow::Owned(out)
}

/// Escapes JSON for display: an equivalent document, with `\uXXXX` for characters that [`escape`] does not show.
pub fn escape_json(json: String) -> String {
    let harmless = |c: char| match c {
        '\n' | '\t' => true,
        _ if c.is_ascii() => !c.is_ascii_control(),
        _ => !is_hidden(c) && c.width() != Some(0),
    };
    if json.chars().all(harmless) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if harmless(c) {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        }
    }
    out
}

/// Returns the length of the colour sequence at the start of the text. Only sequences that this tool itself writes count:
/// none that conceal, blink, invert or set a background.
fn colour(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("\u{1b}[")?;
    let end = inner.find('m').filter(|end| *end <= 12)?;
    let numbers: Option<Vec<u8>> =
        inner[..end].split(';').map(|number| if number.is_empty() { Some(0) } else { number.parse().ok() }).collect();
    let own = match &numbers?[..] {
        [38, 5, _] => true,
        numbers => numbers.iter().all(|number| matches!(number, 0..=4 | 22..=24 | 31..=37 | 39 | 91..=97)),
    };
    own.then_some(end + 3)
}

fn is_presentation(c: char) -> bool {
    matches!(c, '\u{fe0e}' | '\u{fe0f}')
}

/// Whether a character is a symbol rather than a letter.
fn is_symbol(c: char) -> bool {
    matches!(c, '\u{2000}'..='\u{2bff}' | '\u{3030}'..='\u{303d}' | '\u{3297}'..='\u{3299}' | '\u{1f000}'..='\u{1faff}')
}

fn takes_marks(c: char) -> bool {
    !c.is_ascii() || c.is_ascii_alphanumeric()
}

/// Whether a non-ASCII character controls the terminal (C1), changes the direction of text, or is invisible or
/// misleading. Based on Unicode's `Default_Ignorable_Code_Point`, `Bidi_Control`, `Cf`, `Zs`, `Zl`, `Zp`, `Co` and `Noncharacter`.
pub fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{115f}' | '\u{1160}' | '\u{1680}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
        | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fdd0}'..='\u{fdef}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1345f}' | '\u{16fe4}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..)
        || u32::from(c) & 0xfffe == 0xfffe
}

/// Removes user and password from all URLs in a text.
pub fn without_user(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("//") {
        let (front, behind) = rest.split_at(at + 2);
        // In `hf://gpt2@main`, a revision follows the `@`.
        let is_url = (front.ends_with("://") && !front.to_ascii_lowercase().ends_with("hf://")) || front == "//";
        // A password may contain characters that would end the authority, such as `/`.
        let word = behind.find(|c: char| c.is_whitespace() || "'\"<>`".contains(c)).unwrap_or(behind.len());
        let authority = behind.find(['/', '?', '#']).unwrap_or(word).min(word);
        let user = match behind[..authority].rfind('@') {
            Some(at) => at + 1,
            None => password_end(&behind[..word]).unwrap_or(0),
        };
        shown += front;
        rest = if is_url { &behind[user..] } else { behind };
    }
    if shown.len() + rest.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(shown + rest) }
}

/// Returns the end of `user:pass/word@`, where no port follows the colon and an `@` comes later.
fn password_end(word: &str) -> Option<usize> {
    let colon = word.find(':')?;
    let at = word.rfind('@')?;
    let authority = word.find(['/', '?', '#']).unwrap_or(word.len());
    let is_port = word.get(colon + 1..authority).is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (colon < authority && !is_port && at > colon).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        escape(text, Keep::Nothing).into_owned()
    }

    #[test]
    fn urls_are_shown_without_user_and_password() {
        for (text, shown) in [
            ("https://user:hf_SECRET@example.com/a/b", "https://example.com/a/b"),
            ("--include=https://hf_SECRET@h/a?x=y@z", "--include=https://h/a?x=y@z"),
            ("https://u:pa/hf_SECRET@h/a", "https://h/a"),
            ("HTTP://a:hf_SECRET@b@h", "HTTP://h"),
            ("x https://u:hf_SECRET@h, http://v:hf_SECRET@i", "x https://h, http://i"),
            ("//u:hf_SECRET@h/a", "//h/a"),
            ("https://h:8080/a/b@main", "https://h:8080/a/b@main"),
            ("hf://org/name@main", "hf://org/name@main"),
            ("hf://gpt2@main", "hf://gpt2@main"),
            ("org/name@main", "org/name@main"),
            ("a//b@c", "a//b@c"),
        ] {
            assert_eq!(without_user(text), shown);
        }
    }

    #[test]
    fn names_in_any_language_stay_readable() {
        for text in [
            "model-00001-of-00004.safetensors",
            "café",
            "cafe\u{301}",
            "Tie\u{302}\u{301}ng Vie\u{323}\u{302}t",
            "漢字/データ.json",
            "한국어",
            "\u{1112}\u{1161}\u{11ab}",
            "русский",
            "العربية",
            "עִבְרִית",
            "हिन्दी",
            "ภาษาไทย",
            "🤗 ❤\u{fe0f} 👍🏽",
            "a\\u{1b}b",
        ] {
            assert_eq!(name(text), text);
        }
    }

    #[test]
    fn control_bidi_and_invisible_characters_are_escaped() {
        let bad = "\0\u{7}\u{8}\t\n\r\u{1b}\u{7f}\u{80}\u{85}\u{90}\u{9b}\u{9d}\u{9f}\u{a0}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{2002}\
                   \u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{202f}\u{205f}\
                   \u{2060}\u{2064}\u{2066}\u{2067}\u{2068}\u{2069}\u{206f}\u{2800}\u{3000}\u{3164}\u{e000}\u{fe00}\u{fe0f}\u{feff}\
                   \u{ffa0}\u{fff9}\u{ffff}\u{e0001}\u{e0041}\u{e007f}\u{e0100}\u{f0000}\u{10ffff}";
        for c in bad.chars() {
            let escaped = name(&format!("a{c}b"));
            assert_eq!(escaped, format!("a{}b", c.escape_unicode()));
            assert_eq!(escaped.len(), console::measure_text_width(&escaped), "a column for each character");
            let json = serde_json::to_string(&format!("a{c}b")).unwrap();
            let safe = escape_json(json);
            assert!(safe.is_ascii() && !safe.contains(|c: char| c.is_ascii_control()), "{safe}");
            assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), format!("a{c}b"));
        }
    }

    #[test]
    fn combining_marks_are_limited_and_need_a_base_letter() {
        let flood = format!("a{}", "\u{336}".repeat(40));
        assert_eq!(name(&flood).matches('\u{336}').count(), MAX_MARKS);
        assert_eq!(name("\u{301}a"), "\\u{301}a");
        assert_eq!(escape("'\u{301}a'", Keep::Lines), "'\\u{301}a'");
        assert_eq!(name("\u{202e}\u{301}"), "\\u{202e}\\u{301}");
    }

    #[test]
    fn lines_and_colours_of_our_own_text_are_kept() {
        let own = format!("{}\n\tb", console::style("a").red().bold().force_styling(true));
        assert_eq!(escape(&own, Keep::LinesAndColours), own);
        assert!(!escape(&own, Keep::Lines).contains('\u{1b}'));
        for foreign in [
            "\u{1b}[2J",
            "\u{1b}[8m",
            "\u{1b}[5m",
            "\u{1b}[7m",
            "\u{1b}[41m",
            "\u{1b}]0;x\u{7}",
            "\u{1b}[",
            "\u{9b}31m",
        ] {
            let escaped = escape(foreign, Keep::LinesAndColours);
            assert!(!escaped.contains(char::is_control), "{escaped}");
        }
    }
}
