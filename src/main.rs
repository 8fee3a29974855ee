//! Parses, sets up logging and interruption, runs, and ends the process: the only place that exits.

use std::process::ExitCode;

use clap::Parser;
use hf_cache_sync::cli::{self, Cli};
use hf_cache_sync::error::{Error, Kind};
use hf_cache_sync::interrupt::Interruption;
use hf_cache_sync::ui::Ui;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::new(cli.style());
    start_logging(&cli, &ui);
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ui.error(&Error::failed("cannot start").because(error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        if cli.command.ends_by_signal() {
            return cli::run(&cli, &ui).await;
        }
        let mut interruption = Interruption::listen();
        tokio::select! {
            ended = cli::run(&cli, &ui) => ended,
            () = interruption.next() => Err(Error::interrupted()),
        }
    });
    let kind = ended.unwrap_or_else(|error| {
        ui.error(&error);
        Some(error.kind)
    });
    // Threads that still hash or read must not hold up the exit; what they work on is safe to find again.
    runtime.shutdown_background();
    ExitCode::from(kind.map_or(0, Kind::exit_code))
}

/// A far store gets hundreds of requests at once, each with a socket and a file, and some systems allow 256 by default.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        // The most that macOS accepts.
        const WANTED: u64 = 10_240;
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < WANTED) {
            limit.current = Some(limit.maximum.map_or(WANTED, |most| most.min(WANTED)));
            let _ = setrlimit(Resource::Nofile, limit);
        }
    }
}

/// Warnings of this tool; with -v its debug lines, with -vv everybody's. RUST_LOG wins.
fn start_logging(cli: &Cli, ui: &Ui) {
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "hf_hub=off,error",
        // hf-hub logs what this tool reports itself.
        (_, 0) => "hf_cache_sync=warn,hf_hub=off,error",
        (_, 1) => "hf_cache_sync=debug,warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let bars = ui.bars().clone();
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || bars.log_writer());
    let _ = logger.with_ansi(console::colors_enabled_stderr()).with_target(false).without_time().try_init();
}
