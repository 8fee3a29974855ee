//! The one error type: what failed, on what, why, and what to do next.
//!
//! A message is one to three lines: `what: why`, then optionally a line with the next step. No message carries
//! Debug output, names of SDK types, or secrets. What happened is the [`Cause`]; the [`Kind`] and the exit code follow from
//! it.

mod cause;

use std::fmt;
use std::io;
use std::path::Path;

use crate::escape::{Keep, escape, without_user};
use crate::platform;
pub use cause::Cause;

/// What kind of failure it was, for scripts: decides the exit code, and nothing in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Some of the work failed, or a local failure with no kind of its own (exit 1).
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
    /// The remote store cannot be reached or does not answer properly (exit 6).
    Unavailable,
    /// A fault of this program (exit 70).
    Internal,
    /// Stopped by ctrl-c or SIGTERM (exit 130).
    Interrupted,
}

impl Kind {
    /// The process exit code of this kind.
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

    /// The word for it in reports.
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

    /// The kind of a run in which several things failed: corrupt data is said before everything else, then a
    /// credential problem; "unavailable" and "usage" only where nothing else failed, since a retry or another setting
    /// then helps.
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

/// A failure as a user reads it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Error {
    /// What happened; scripts see its kind.
    #[serde(rename = "kind", serialize_with = "as_kind")]
    pub cause: Cause,
    /// What failed, and on what.
    pub what: String,
    /// Why, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do next, when there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the reason is the store's or the set-up's as a whole: of many failures for it, one is shown.
    #[serde(skip)]
    pub shared: bool,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn as_kind<S: serde::Serializer>(cause: &Cause, to: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&cause.kind(), to)
}

impl Error {
    /// An error that says what failed.
    pub fn new(cause: Cause, what: impl Into<String>) -> Self {
        Error { cause, what: what.into(), why: None, hint: None, shared: false }
    }

    /// What scripts are told.
    pub fn kind(&self) -> Kind {
        self.cause.kind()
    }

    /// [`Cause::Other`].
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Cause::Other, what)
    }

    /// [`Cause::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Cause::Usage, what)
    }

    /// [`Cause::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Cause::NotFound, what)
    }

    /// [`Cause::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(Cause::Invalid, what)
    }

    /// [`Cause::Corrupt`].
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(Cause::Corrupt, what)
    }

    /// [`Cause::Interrupted`].
    pub fn interrupted() -> Self {
        Self::new(Cause::Interrupted, "interrupted").hint("run the same command again: finished work is kept")
    }

    /// An I/O error on a path.
    pub fn io(what: &str, path: &Path, source: &io::Error) -> Self {
        // A step on the way has failed, and says itself what to do.
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

/// An I/O error's text without the `(os error 2)` tail.
pub fn plain_io(source: &io::Error) -> String {
    let text = source.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Text from outside, safe to print: what drives a terminal, turns or hides text is shown as `\u{..}`
/// ([`crate::escape`]), and it is cut after `max` characters.
pub fn printable(text: &str, max: usize) -> String {
    let text = &*without_user(text);
    match text.char_indices().nth(max) {
        None => escape(text, Keep::Nothing).into_owned(),
        Some((end, _)) => escape(&text[..end], Keep::Nothing).into_owned() + "…",
    }
}

/// A path, safe to print, and whole.
pub fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy(), Keep::Nothing).into_owned()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name in a message may come from anywhere: it breaks no line but that of a hint, which is ours.
        f.write_str(&escape(&self.what, Keep::Nothing))?;
        if let Some(why) = &self.why {
            write!(f, ": {}", escape(why, Keep::Nothing))?;
        }
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
