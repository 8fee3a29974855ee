//! The status page: cached repos, pulls in flight, and failures. It is complete without JavaScript, and updates itself with
//! it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::activity::{Done, Failure, Pull, Snapshot};
use super::cached::CachedRepo;
use crate::VERSION;

/// The content security policy: the page loads nothing but its own style and script.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                          img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

const TEMPLATE: &str = include_str!("page.html");

/// What the page says about the configuration.
#[derive(Debug)]
pub struct About {
    /// The address of the server.
    pub url: String,
    /// The bucket; `None` if offline.
    pub bucket: Option<String>,
    /// The cache folder.
    pub cache: String,
    /// The budget of the cache, in bytes.
    pub max_size: Option<u64>,
    /// The fallback to the Hub, and whether files from it are published.
    pub fallback: Option<&'static str>,
    /// Size of the cache when it was last measured, in bytes; `u64::MAX` if it never was.
    pub measured: AtomicU64,
}

impl About {
    /// Returns the size of the cache in bytes, if known.
    pub fn cache_bytes(&self) -> Option<u64> {
        Some(self.measured.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX)
    }
}

/// Returns the page.
pub fn html(about: &About, snapshot: &Snapshot, cached: &[CachedRepo]) -> String {
    TEMPLATE
        .replace("{{version}}", &text(VERSION))
        .replace("{{about}}", &facts(about))
        .replace("{{numbers}}", &numbers(about, snapshot))
        .replace("{{pulls}}", &rows(&snapshot.pulls, pull_row, "No pulls in progress."))
        .replace("{{failures}}", &rows(&snapshot.failures, failure_row, "No failures."))
        .replace("{{cached}}", &rows(cached, cached_row, "The cache is empty."))
        .replace("{{recent}}", &rows(&snapshot.recent, done_row, "No pulls completed yet."))
        .replace("{{notes}}", &snapshot.notes.iter().map(|note| format!("<li>{}</li>", text(note))).collect::<String>())
}

/// Returns the parts of the page that change, for its script.
pub fn json(about: &About, snapshot: &Snapshot, cached: &[CachedRepo]) -> Value {
    json!({
        "about": {
            "url": about.url,
            "bucket": about.bucket,
            "cache": about.cache,
            "max_size": about.max_size,
            "fallback": about.fallback,
            "cache_bytes": about.cache_bytes(),
            "version": VERSION,
        },
        "status": snapshot,
        "cached": cached,
        "html": {
            "numbers": numbers(about, snapshot),
            "pulls": rows(&snapshot.pulls, pull_row, "No pulls in progress."),
            "failures": rows(&snapshot.failures, failure_row, "No failures."),
            "cached": rows(cached, cached_row, "The cache is empty."),
            "recent": rows(&snapshot.recent, done_row, "No pulls completed yet."),
        },
    })
}

fn facts(about: &About) -> String {
    let mut out = String::new();
    let mut fact = |name: &str, value: &str| {
        let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", text(name), text(value));
    };
    fact("Address", &about.url);
    fact("Bucket", about.bucket.as_deref().unwrap_or("none: offline"));
    fact("Cache", &about.cache);
    if let Some(fallback) = about.fallback {
        fact("Fallback", fallback);
    }
    out
}

fn numbers(about: &About, snapshot: &Snapshot) -> String {
    let mut out = String::new();
    let mut number = |name: &str, value: String| {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", text(name), text(&value));
    };
    if let Some(max) = about.max_size {
        let now = about.cache_bytes().map_or(String::new(), |bytes| format!("{} of ", size(bytes)));
        number("Cache budget", format!("{now}{}", size(max)));
    }
    number("From the cache", format!("{} files", snapshot.hits));
    number("Pulled for clients", format!("{} files", snapshot.misses));
    number("Read from the bucket", size(snapshot.bytes["bucket"]));
    number("Read from the Hub", size(snapshot.bytes["hub"]));
    number("Sent", size(snapshot.sent));
    number("Connections", snapshot.connections.to_string());
    out
}

fn rows<T>(all: &[T], row: fn(&T) -> String, nothing: &str) -> String {
    match all {
        [] => format!("<tr><td class=\"none\" colspan=\"4\">{nothing}</td></tr>"),
        all => all.iter().map(row).collect(),
    }
}

fn pull_row(pull: &Pull) -> String {
    let percent = (pull.arrived.min(pull.size) * 100).checked_div(pull.size).unwrap_or(100);
    format!(
        "<tr><td>{}</td><td>{}</td><td><progress max=\"100\" value=\"{percent}\">{percent} %</progress> {percent} %</td>\
         <td>{} of {}</td></tr>",
        text(&pull.file),
        pull.origin.word(),
        size(pull.arrived),
        size(pull.size)
    )
}

fn failure_row(failure: &Failure) -> String {
    format!(
        "<tr><td>{}</td><td>{}</td><td class=\"why\">{}</td></tr>",
        text(&failure.time),
        text(&failure.request),
        text(&failure.error)
    )
}

fn done_row(done: &Done) -> String {
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} in {:.1} s</td></tr>",
        text(&done.time),
        text(&done.file),
        done.origin.word(),
        size(done.size),
        done.seconds
    )
}

fn cached_row(cached: &CachedRepo) -> String {
    let revisions = if cached.revisions == 1 { "1 revision".into() } else { format!("{} revisions", cached.revisions) };
    format!(
        "<tr><td>{}</td><td>{}</td><td>{revisions}</td><td>{}</td></tr>",
        text(&cached.repo),
        text(&cached.refs.join(", ")),
        size(cached.size)
    )
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Escapes text for HTML, and makes control characters visible.
fn text(text: &str) -> String {
    let shown = crate::escape::escape(text, crate::escape::Keep::Lines);
    let mut out = String::with_capacity(shown.len());
    for c in shown.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Braces could be mistaken for a placeholder of the template.
            '{' => out.push_str("&#123;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::serve::activity::Activity;
    use crate::error::Error;

    #[test]
    fn names_cannot_add_markup() {
        let activity = Activity::new();
        activity.fail("GET /<script>alert(1)</script>\u{202e}", &Error::failed("{{recent}} \"&'"));
        let about = About {
            url: "http://127.0.0.1:1".into(),
            bucket: Some("<b>".into()),
            cache: "/x".into(),
            max_size: None,
            fallback: None,
            measured: AtomicU64::new(u64::MAX),
        };
        let page = html(&about, &activity.snapshot(), &[]);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\u&#123;202e}"), "{page}");
        assert!(page.contains("&#123;&#123;recent}} &quot;&amp;&#39;"));
        assert!(page.contains("&lt;b&gt;") && !page.contains("{{"));
        assert_eq!(page.matches("<script").count(), 1);
    }
}
