//! Suppresses repeated messages: a corrupt blob is reported when it is found, not after every push. Pure.

use std::collections::HashSet;

use crate::error::Error;
use crate::plan::push::Skip;

/// The report of the last push.
#[derive(Debug, Default)]
pub struct News {
    failures: HashSet<String>,
    skips: HashSet<String>,
    notes: HashSet<String>,
}

impl News {
    /// Returns the failures that the previous push did not have. A failure that disappears is new again when it returns.
    pub fn failures(&mut self, found: &[Error]) -> Vec<Error> {
        // Ignores the reason, which may contain a request id or a time.
        let text = |error: &Error| format!("{:?} {}", error.cause, error.what);
        let new = found.iter().filter(|error| !self.failures.contains(&text(error))).cloned().collect();
        self.failures = found.iter().map(text).collect();
        new
    }

    /// Does the same for skipped items.
    pub fn skips(&mut self, found: &[Skip]) -> Vec<Skip> {
        let text = |skip: &Skip| serde_json::to_string(skip).unwrap_or_default();
        let new = found.iter().filter(|skip| !self.skips.contains(&text(skip))).cloned().collect();
        self.skips = found.iter().map(text).collect();
        new
    }

    /// Does the same for notes.
    pub fn notes(&mut self, found: &[String]) -> Vec<String> {
        let new = found.iter().filter(|note| !self.notes.contains(*note)).cloned().collect();
        self.notes = found.iter().cloned().collect();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_failure_is_reported_once() {
        let (one, two) = ([Error::corrupt("blob 1")], Error::failed("blob 2"));
        let mut news = News::default();
        assert_eq!(news.failures(&one), one);
        assert_eq!(news.failures(&[one[0].clone().because("request 7"), two.clone()]), [two]);
        assert_eq!(news.failures(&[]), []);
        assert_eq!(news.failures(&one), one);
    }
}
