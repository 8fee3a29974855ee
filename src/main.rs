//! Parses, sets up logging and interruption, runs, and ends the process: the only place that exits.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use hf_cache_sync::cli;
use hf_cache_sync::complete;
use hf_cache_sync::error::{Cause, Error, Kind};
use hf_cache_sync::interrupt::Interruption;
use hf_cache_sync::ui::{Style, Ui, log};

fn main() -> ExitCode {
    report_faults(Style::default());
    let args: Vec<_> = std::env::args_os().collect();
    if complete::answer(&args) {
        return ExitCode::SUCCESS;
    }
    #[cfg(unix)]
    start_with_clean_environment();
    let cli = match cli::parse(&args) {
        Ok(cli) => cli,
        Err(told) => {
            let _ = told.print();
            return ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(Kind::Usage.exit_code()));
        }
    };
    report_faults(cli.style());
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
        #[cfg(debug_assertions)]
        fail_if_asked().await;
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
        Some(error.kind())
    });
    // Threads that still hash or read must not hold up the exit; what they work on is safe to find again.
    runtime.shutdown_background();
    ExitCode::from(kind.map_or(0, Kind::exit_code))
}

/// A panic, in whatever thread or task, ends the process with one line that asks for a report. What was being done is
/// safe to find again, as after a kill. The panic's own message is shown only where it cannot hold data of the user.
fn report_faults(style: Style) {
    static FIRST: AtomicBool = AtomicBool::new(true);
    std::panic::set_hook(Box::new(move |panic| {
        if !FIRST.swap(false, Ordering::SeqCst) {
            // Another thread is telling already, and ends this one too.
            loop {
                std::thread::park();
            }
        }
        let place = panic.location().map_or(String::new(), |place| {
            let file = Path::new(place.file()).file_name().unwrap_or_default().to_string_lossy();
            format!("{file}:{}", place.line())
        });
        let message = panic.payload().downcast_ref::<&'static str>().map_or(String::new(), |text| format!(", {text}"));
        let error = Error::new(Cause::Internal, "internal fault")
            .because(format!("{place}{message}, in version {}", cli::VERSION))
            .hint(concat!("please report this line and the command at ", env!("CARGO_PKG_REPOSITORY"), "/issues"));
        // Not the bars of this run: their lock may be held by the thread that failed.
        Ui::new(Style { no_progress: true, ..style }).error(&error);
        #[expect(clippy::exit, reason = "there is nothing to go back to")]
        std::process::exit(i32::from(Kind::Internal.exit_code()));
    }));
}

/// Fails on purpose, for the tests of [`report_faults`]; not there in a release.
#[cfg(debug_assertions)]
async fn fail_if_asked() {
    let secret = std::env::var("B2_APPLICATION_KEY").unwrap_or_default();
    let fail = move || panic!("formatted, with {secret}");
    match std::env::var("HF_CACHE_SYNC_TEST_PANIC").as_deref() {
        Ok("main") => fail(),
        Ok("task") => drop(tokio::spawn(async move { fail() }).await),
        Ok("blocking") => drop(tokio::task::spawn_blocking(fail).await),
        Ok("thread") => drop(std::thread::spawn(fail).join()),
        Ok("plain") => panic!("plain words"),
        _ => {}
    }
}

/// Variables that libraries read by themselves, and ignore, or misread, when something stands around their values.
#[cfg(unix)]
const READ_BY_LIBRARIES: [&str; 24] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// A proxy with a line break at its end, as `.env` files give it, would silently not be used. A process cannot safely
/// change its own environment, but it can begin again with a better one.
#[cfg(unix)]
fn start_with_clean_environment() {
    use std::os::unix::process::CommandExt;
    let cleaned = READ_BY_LIBRARIES.into_iter().filter_map(|name| {
        let text = std::env::var(name).ok()?;
        let clean = hf_cache_sync::clean(&text).ok()?;
        (clean != text).then(|| (name, clean.to_string()))
    });
    let cleaned: Vec<(&str, String)> = cleaned.collect();
    if let (false, Ok(program)) = (cleaned.is_empty(), std::env::current_exe()) {
        let mut args = std::env::args_os();
        let mut again = std::process::Command::new(program);
        again.arg0(args.next().unwrap_or_default()).args(args).envs(cleaned);
        // Where that fails, what is there has to do.
        drop(again.exec());
    }
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
