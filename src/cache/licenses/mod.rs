//! Which open licences a text is made of, by comparison with their texts.
//!
//! The texts are those of the SPDX list that are OSI-approved, FSF-free, Creative Commons or open data, as word numbers
//! (`open.bin`, made by `make.py`). Compared are runs of four words: line breaks, punctuation, list marks, names and
//! copyright lines make no difference. What is no part of a recognised licence is left over, for others to judge.

#[cfg(test)]
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::OnceLock;

/// Words in a run that is compared.
const RUN: usize = 4;
/// Share of a licence's runs that a text must have to be taken for it, in percent.
const SHARE: usize = 80;
/// Share of them that must be no other's for a licence to be named, in percent.
const NEWS: usize = 40;
/// The number of words that no licence has.
const UNKNOWN: u16 = u16::MAX;
/// Units from here on are copies; see `make.py`.
const COPY: u16 = 0xF000;

/// What a text is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// SPDX names of the open licences in it, the largest first.
    pub licenses: Vec<&'static str>,
    /// What is none of them: the words of each passage.
    pub rest: Vec<Vec<String>>,
}

struct Known {
    vocabulary: Vec<&'static str>,
    /// Name and words of each licence.
    texts: Vec<(&'static str, Vec<u16>)>,
}

/// Takes a text apart.
pub fn judge(text: &str) -> Judgement {
    let known = known();
    let number = |word: &String| known.vocabulary.binary_search(&word.as_str()).map_or(UNKNOWN, |index| index as u16);
    let words = words(text);
    let numbers: Vec<u16> = words.iter().map(number).collect();
    let here: HashSet<u64> = runs(&numbers).collect();
    let mut found: Vec<(usize, &(&'static str, Vec<u16>))> = Vec::new();
    for license in &known.texts {
        let all = license.1.len().saturating_sub(RUN - 1);
        let common = runs(&license.1).filter(|run| here.contains(run)).count();
        if common > 0 && common * 100 >= all * SHARE {
            found.push((common, license));
        }
    }
    found.sort_by_key(|(common, _)| std::cmp::Reverse(*common));
    let mut theirs: HashSet<u64> = HashSet::new();
    let mut licenses = Vec::new();
    for (common, (name, text)) in found {
        // A licence that is nearly a part of a larger one is not worth a word.
        let new = runs(text).filter(|run| here.contains(run) && !theirs.contains(run)).count();
        if new * 100 >= common * NEWS {
            licenses.push(*name);
        }
        theirs.extend(runs(text));
    }
    let rest = if theirs.is_empty() { vec![words] } else { without(words, &numbers, &theirs) };
    Judgement { licenses, rest: rest.into_iter().filter(|words| !words.is_empty()).collect() }
}

/// Letters and digits between anything else, in lower case; each ideograph alone; no marks of lists.
pub fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word = String::new();
    let end = |word: &mut String, found: &mut Vec<String>| {
        let done = std::mem::take(word);
        if !done.is_empty() && !is_mark(&done) {
            found.push(done);
        }
    };
    for c in text.chars().flat_map(char::to_lowercase) {
        let is_ideograph = ('\u{2e80}'..='\u{ffff}').contains(&c);
        if !c.is_alphanumeric() || is_ideograph {
            end(&mut word, &mut found);
        }
        if c.is_alphanumeric() {
            word.push(c);
        }
        if is_ideograph {
            end(&mut word, &mut found);
        }
    }
    end(&mut word, &mut found);
    found
}

/// `1.`, `a)`, `iv.`
fn is_mark(word: &str) -> bool {
    let is_roman = word.len() <= 4 && word.bytes().all(|byte| b"ivx".contains(&byte));
    let is_number = word.len() <= 2 && word.bytes().all(|byte| byte.is_ascii_digit());
    is_roman || is_number || (word.len() == 1 && word.is_ascii())
}

/// The runs of a text, each as one number. A text of fewer words has none.
fn runs(numbers: &[u16]) -> impl Iterator<Item = u64> {
    numbers.windows(RUN).filter(|run| !run.contains(&UNKNOWN)).map(packed)
}

fn packed(run: &[u16]) -> u64 {
    run.iter().fold(0, |packed, number| packed << 16 | u64::from(*number))
}

/// The passages of a text that have none of these runs.
fn without(words: Vec<String>, numbers: &[u16], theirs: &HashSet<u64>) -> Vec<Vec<String>> {
    let mut covered = vec![false; numbers.len()];
    for (at, run) in numbers.windows(RUN).enumerate() {
        if !run.contains(&UNKNOWN) && theirs.contains(&packed(run)) {
            covered[at..at + RUN].fill(true);
        }
    }
    let mut passages = vec![Vec::new()];
    for (word, covered) in words.into_iter().zip(covered) {
        match covered {
            true if passages.last().is_some_and(Vec::is_empty) => {}
            true => passages.push(Vec::new()),
            false => passages.last_mut().expect("there is always one").push(word),
        }
    }
    passages
}

/// The licences, read when they are first needed.
fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| read(include_bytes!("open.bin")).expect("the file is a part of this program"))
}

fn read(file: &'static [u8]) -> Option<Known> {
    let mut rest = file.strip_prefix(b"hfcsl1\n")?;
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(taken)
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let length = number(take(4)?);
    let vocabulary = std::str::from_utf8(take(length)?).ok()?.split('\n').collect();
    let count = number(take(4)?);
    let mut lengths = Vec::new();
    for _ in 0..count {
        let name = number(take(1)?);
        let name = std::str::from_utf8(take(name)?).ok()?;
        lengths.push((name, number(take(4)?)));
    }
    let mut all: Vec<u16> = Vec::new();
    let mut units = rest.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    while let Some(unit) = units.next() {
        if unit < COPY {
            all.push(unit);
            continue;
        }
        let from = usize::from(units.next()?) | usize::from(units.next()?) << 16;
        let length = usize::from(unit - COPY);
        let copied = all.get(from..from + length)?.to_vec();
        all.extend(copied);
    }
    let mut texts = Vec::new();
    let mut at = 0;
    for (name, length) in lengths {
        texts.push((name, all.get(at..at + length)?.to_vec()));
        at += length;
    }
    Some(Known { vocabulary, texts })
}

/// Names of the licences by the keyword that each of their texts has, for tests.
#[cfg(test)]
pub fn texts() -> HashMap<&'static str, String> {
    let known = known();
    let text = |numbers: &[u16]| {
        numbers.iter().map(|number| known.vocabulary[usize::from(*number)]).collect::<Vec<_>>().join(" ")
    };
    known.texts.iter().map(|(name, numbers)| (*name, text(numbers))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_licence_is_recognised_in_its_own_text() {
        let all = texts();
        assert!(all.len() > 250, "{}", all.len());
        for name in
            ["Apache-2.0", "MIT", "CC-BY-NC-SA-4.0", "CC-BY-3.0-AT", "CDLA-Permissive-2.0", "ODbL-1.0", "EUPL-1.2"]
        {
            let Judgement { licenses, rest } = judge(&all[name]);
            assert!(!licenses.is_empty() && rest.is_empty(), "{name}: {licenses:?} {rest:?}");
        }
        assert_eq!(judge(&all["EPL-2.0"]).licenses, ["EPL-2.0"]);
    }

    #[test]
    fn what_was_added_is_left_over() {
        let all = texts();
        let text =
            format!("Copyright 2024 Somebody\n{}\nYou must accept our terms.\n{}", all["Apache-2.0"], all["EPL-2.0"]);
        let Judgement { licenses, rest } = judge(&text);
        assert_eq!(licenses.iter().collect::<HashSet<_>>(), HashSet::from([&"Apache-2.0", &"EPL-2.0"]));
        let rest: Vec<String> = rest.iter().map(|words| words.join(" ")).collect();
        assert_eq!(rest, ["copyright 2024 somebody", "you must accept our terms"]);
        // Half of a licence is none.
        let words: Vec<&str> = all["Apache-2.0"].split(' ').collect();
        assert_eq!(judge(&words[..words.len() / 2].join(" ")).licenses, Vec::<&str>::new());
    }

    #[test]
    fn words_are_without_marks_and_punctuation() {
        assert_eq!(
            words("1. The \"Licence\"\r\n (iv) MIT/X11, §2 über 木兰"),
            ["the", "licence", "mit", "x11", "über", "木", "兰"]
        );
    }
}
