//! Parses, sets up logging and interruption, runs, and ends the process: the only place that exits.

use std::process::ExitCode;

use hf_cache_sync::cli;
use hf_cache_sync::complete;
use hf_cache_sync::error::{Error, Kind};
use hf_cache_sync::interrupt::Interruption;
use hf_cache_sync::ui::{Ui, log};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if complete::answer(&args) {
        return ExitCode::SUCCESS;
    }
    let cli = match cli::parse(&args) {
        Ok(cli) => cli,
        Err(told) => {
            let _ = told.print();
            return ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(Kind::Usage.exit_code()));
        }
    };
    let ui = Ui::new(cli.style());
    log::start(&ui, cli.global.verbose);
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
