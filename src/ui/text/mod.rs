//! Reports as text, with a file per command and shared formatting.

mod completions;
mod config;
mod diff;
mod doctor;
mod init;
mod list;
mod man;
mod prune;
mod pull;
mod pull_all;
mod push;
mod remote;
mod rm;
mod serve;
mod status;
pub mod time;
mod verify;
mod watch;

use bytesize::ByteSize;

use crate::model::amount::Amount;

/// Formats a size in binary units (powers of 1024), which are used everywhere.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// "1 blob", "2 blobs"
pub fn plural(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// "2 blobs (1.5 GiB)"
pub fn blobs(amount: &Amount) -> String {
    format!("{} ({})", plural(amount.blobs, "blob"), size(amount.bytes))
}

/// "in 3.2 s, 512 MiB/s"
pub fn pace(amount: &Amount, seconds: f64) -> String {
    match amount.bytes {
        0 => format!("in {seconds:.1} s"),
        bytes => format!("in {seconds:.1} s, {}/s", size((bytes as f64 / seconds.max(0.001)) as u64)),
    }
}
