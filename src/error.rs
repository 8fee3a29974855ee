//! The one error type: what failed, on what, why, and what to do next.
//!
//! A message is one to three lines: `what: why`, then optionally a line with the next step. No message contains
//! Debug output, names of SDK types, or secrets. What happened is the [`Cause`]; the [`Kind`] and the exit code follow from
//! it. A request that failed is a [`Failure`] first.

mod cause;
mod failure;

use std::fmt;
use std::io;
use std::path::Path;

use crate::escape::{Keep, escape, without_user};
use crate::platform;
pub use cause::Cause;
pub(crate) use failure::Failure;

/// The kind of an error, for scripts. It decides the exit code, and nothing else in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Some of the work failed, or a local failure without a kind of its own (exit 1).
    Failed,
    /// Wrong flags, configuration or environment (exit 2).
    Usage,
    /// Credentials rejected, or permission denied by the store (exit 3).
    Credentials,
    /// Permission denied by the file system (exit 3).
    Permission,
    /// The repo, revision or manifest is not there (exit 4).
    NotFound,
    /// The bucket itself is not there (exit 4).
    MissingBucket,
    /// Bytes or metadata are not what their name says (exit 5).
    Integrity,
    /// The store or the Hub cannot be reached or does not respond properly (exit 6).
    Unavailable,
    /// A bug in this program (exit 70).
    Internal,
    /// Stopped by ctrl-c or SIGTERM (exit 130).
    Interrupted,
}

impl Kind {
    /// Returns the exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Credentials | Kind::Permission => 3,
            Kind::NotFound | Kind::MissingBucket => 4,
            Kind::Integrity => 5,
            Kind::Unavailable => 6,
            Kind::Internal => 70,
            Kind::Interrupted => 130,
        }
    }

    /// Returns the word for it in reports.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::Credentials => "credentials",
            Kind::Permission => "permission",
            Kind::NotFound => "not-found",
            Kind::MissingBucket => "missing-bucket",
            Kind::Integrity => "integrity",
            Kind::Unavailable => "unavailable",
            Kind::Internal => "internal",
            Kind::Interrupted => "interrupted",
        }
    }

    /// Returns the kind of a run in which several things failed. Corrupt data outranks a problem with credentials, which
    /// outranks the rest. "Unavailable" and "usage" require that nothing else failed: only then does another attempt or
    /// another setting help.
    pub fn of_many(kinds: impl IntoIterator<Item = Kind>) -> Option<Kind> {
        let kinds: Vec<Kind> = kinds.into_iter().collect();
        let first = *kinds.first()?;
        for loud in [Kind::Internal, Kind::Interrupted, Kind::Integrity, Kind::Credentials, Kind::Permission] {
            if kinds.contains(&loud) {
                return Some(loud);
            }
        }
        let alike = kinds.iter().all(|kind| *kind == first);
        Some(if alike && matches!(first, Kind::Unavailable | Kind::Usage) { first } else { Kind::Failed })
    }
}

/// An error as users read it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Error {
    /// What happened. Scripts see its kind.
    #[serde(rename = "kind", serialize_with = "as_kind")]
    pub cause: Cause,
    /// What failed, and on what.
    pub what: String,
    /// Why, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do next, if anything helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the store or the configuration as a whole is the reason, so that one of many such errors is enough to show.
    #[serde(skip)]
    pub shared: bool,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn as_kind<S: serde::Serializer>(cause: &Cause, to: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&cause.kind(), to)
}

impl Error {
    /// Creates an error that says what failed.
    pub fn new(cause: Cause, what: impl Into<String>) -> Self {
        Error { cause, what: what.into(), why: None, hint: None, shared: false }
    }

    /// Returns its kind.
    pub fn kind(&self) -> Kind {
        self.cause.kind()
    }

    /// Creates an error with [`Cause::Other`].
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Cause::Other, what)
    }

    /// Creates an error with [`Cause::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Cause::Usage, what)
    }

    /// Creates an error with [`Cause::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Cause::NotFound, what)
    }

    /// Creates an error with [`Cause::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(Cause::Invalid, what)
    }

    /// Creates an error with [`Cause::Corrupt`].
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(Cause::Corrupt, what)
    }

    /// Creates an error with [`Cause::Interrupted`].
    pub fn interrupted() -> Self {
        Self::new(Cause::Interrupted, "interrupted").hint("run the same command again: finished work is kept")
    }

    /// Returns what failed and why, on one line and without the hint, as part of a note.
    pub fn brief(&self) -> String {
        // Names in a message may come from anywhere. Only a hint, which is our own text, may have line breaks.
        let what = escape(&self.what, Keep::Nothing);
        match &self.why {
            Some(why) => format!("{what}: {}", escape(why, Keep::Nothing)),
            None => what.into_owned(),
        }
    }

    /// Creates an error from an I/O error on a path.
    pub fn io(what: &str, path: &Path, source: &io::Error) -> Self {
        // An earlier step has failed, and its error says what to do.
        if let Some(step) = source.get_ref().and_then(|step| step.downcast_ref::<Error>()) {
            let why = step.why.iter().fold(step.what.clone(), |what, why| format!("{what}: {why}"));
            return Self { what: format!("{what} {}", shown(path)), why: Some(why), ..step.clone() };
        }
        let error = Self::new(Cause::of_io(source), format!("{what} {}", shown(path))).because(plain_io(source));
        match source.kind() {
            io::ErrorKind::StorageFull if platform::lacks_inodes(path) => error
                .because("the file system has no inodes left, so it cannot hold more files")
                .hint("delete files, for example with `hf-cache-sync prune`, or use another --cache-dir"),
            io::ErrorKind::StorageFull => error.hint("free some space, for example with `hf-cache-sync prune`"),
            io::ErrorKind::QuotaExceeded => {
                error.hint("your disk quota is used up: free some space, for example with `hf-cache-sync prune`")
            }
            io::ErrorKind::FileTooLarge => error.hint("raise the limit (ulimit -f), or use another --cache-dir"),
            io::ErrorKind::PermissionDenied => error.hint(platform::PERMISSION_HINT),
            io::ErrorKind::ReadOnlyFilesystem => error.hint("the cache is on a read-only mount: use --cache-dir"),
            _ if platform::lacks_handles(source) => error.hint("raise the limit of open files (ulimit -n)"),
            _ if platform::is_in_use(source) => error.hint("close the program that has it open, and try again"),
            _ => error,
        }
    }

    /// Adds the reason.
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Returns an I/O error's text without the `(os error 2)` at its end.
pub fn plain_io(source: &io::Error) -> String {
    let text = source.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Makes text from outside safe to print: characters that control a terminal or hide text become `\u{..}`
/// ([`crate::escape`]), and everything after `max` characters is cut off.
pub fn printable(text: &str, max: usize) -> String {
    let text = &*without_user(text);
    match text.char_indices().nth(max) {
        None => escape(text, Keep::Nothing).into_owned(),
        Some((end, _)) => escape(&text[..end], Keep::Nothing).into_owned() + "…",
    }
}

/// Makes a whole path safe to print.
pub fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy(), Keep::Nothing).into_owned()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief())?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  {}", escape(hint, Keep::Lines))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loudest_kind_decides_a_mixed_run() {
        use Kind::*;
        assert_eq!(Kind::of_many([]), None);
        assert_eq!(Kind::of_many([Failed, Integrity, Unavailable]), Some(Integrity));
        assert_eq!(Kind::of_many([Unavailable, Credentials]), Some(Credentials));
        assert_eq!(Kind::of_many([Unavailable, Unavailable]), Some(Unavailable));
        assert_eq!(Kind::of_many([Usage, Usage]), Some(Usage));
        assert_eq!(Kind::of_many([Unavailable, NotFound]), Some(Failed));
        assert_eq!(Kind::of_many([NotFound]), Some(Failed));
    }

    #[test]
    fn io_errors_lose_the_number_and_keep_the_path() {
        let error = Error::io("cannot read", Path::new("/x/y"), &io::Error::from_raw_os_error(2));
        assert_eq!(error.to_string(), "cannot read /x/y: No such file or directory");
    }

    #[cfg(unix)]
    #[test]
    fn a_full_file_system_and_a_used_up_quota_have_different_hints() {
        for (error, why, hint) in [
            (rustix::io::Errno::DQUOT, "quota exceeded", "your disk quota is used up: free some space"),
            (rustix::io::Errno::NOSPC, "No space left on device", "free some space"),
        ] {
            let error = io::Error::from_raw_os_error(error.raw_os_error());
            let shown = Error::io("cannot write", Path::new("/x"), &error);
            let line = format!("cannot write /x: {}", shown.why.as_deref().unwrap());
            assert!(line.to_lowercase().contains(&why.to_lowercase()), "{line}");
            assert_eq!(shown.to_string(), format!("{line}\n  {hint}, for example with `hf-cache-sync prune`"));
            assert_eq!(shown.kind(), Kind::Failed);
        }
    }

    #[test]
    fn printable_disarms_escape_sequences() {
        assert_eq!(printable("a\u{1b}[31mb", 20), "a\\u{1b}[31mb");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(shown(Path::new("a/\u{202e}b\n")), "a/\\u{202e}b\\u{a}");
        let error = Error::failed("a\u{1b}[31m").because("b\nc").hint("d\u{200b}\n  e");
        assert_eq!(error.to_string(), "a\\u{1b}[31m: b\\u{a}c\n  d\\u{200b}\n  e");
    }
}
