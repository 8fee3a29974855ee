//! The commands. Each gathers the current state, makes a pure plan, executes it unless `--dry-run` is given, and returns a
//! report. None of them prints.

pub mod completions;
pub mod config;
pub mod diff;
pub mod doctor;
pub mod fallback;
pub mod init;
pub mod list;
pub mod man;
pub mod prune;
pub mod pull;
pub mod pull_all;
pub mod pulled;
pub mod push;
pub mod remote;
pub mod rm;
pub mod serve;
pub mod size;
pub mod status;
pub mod verify;
pub mod watch;

use crate::error::{Error, Kind, Result};
use crate::model::filter::PathFilter;
use crate::transfer::limit::Caps;
use size::{ByteRate, Memory};

/// Options of commands that can be limited to some files of each revision.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PathArgs {
    /// Only files whose path matches, such as '*.safetensors' or 'onnx/'; can be repeated. These patterns select files,
    /// like allow_patterns of huggingface_hub
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Skip files whose path matches; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
}

impl PathArgs {
    /// Parses the patterns.
    pub fn filter(&self) -> Result<PathFilter> {
        PathFilter::new(&self.include, &self.exclude)
    }
}

/// Options of commands that transfer blobs.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TransferArgs {
    /// Maximum number of requests in flight [default: adapts to the store]
    #[arg(long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Maximum bytes per second, over all requests together, such as 50MB/s
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub bwlimit: Option<ByteRate>,

    /// Maximum memory, such as 64MiB; caps the requests in flight
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_memory: Option<Memory>,
}

impl TransferArgs {
    /// Returns the limits for transfers.
    pub fn caps(&self) -> Caps {
        Caps {
            workers: self.workers.map(usize::from),
            memory: self.max_memory.map(|memory| memory.0),
            rate: self.bwlimit.map(|rate| rate.0),
        }
    }
}

/// Returns the kind of failure that determines the exit code, or `None` if there are no failures.
pub fn kind_of(failures: &[Error]) -> Option<Kind> {
    Kind::of_many(failures.iter().map(Error::kind))
}
