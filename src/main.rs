//! Entry point: parses the command line, sets up logging and signals, runs the command, and sets the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use hf_cache_sync::VERSION;
use hf_cache_sync::cli::{self, Exit};
use hf_cache_sync::complete;
use hf_cache_sync::error::{Cause, Error, Kind};
use hf_cache_sync::platform::{self, Interruption};
use hf_cache_sync::ui::{GivenOptions, Style, Ui, log};

/// Open files without which libraries fail in ways that cannot be reported: the runtime's own, a connection's, the root
/// certificates, and a folder per core.
const MIN_FILES: usize = 64;

fn main() -> ExitCode {
    install_panic_hook(Style::default());
    let args: Vec<_> = std::env::args_os().collect();
    if complete::answer(&args) {
        return ExitCode::SUCCESS;
    }
    restart_with_clean_environment();
    let cli = match cli::parse(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Kind::Usage.exit_code()));
        }
    };
    install_panic_hook(cli.style());
    let ui = Ui::new(cli.style(), cli.global.given_options());
    log::start(&ui, cli.global.verbose);
    platform::raise_file_limit();
    if let Some(limit) = platform::file_limit().filter(|limit| *limit < MIN_FILES) {
        ui.error(
            &Error::failed("cannot start")
                .because(format!("the limit of open files (ulimit -n) is {limit}, which is too low"))
                .hint(format!("raise it to {MIN_FILES} or more, such as with `ulimit -n 1024`")),
        );
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ui.error(&Error::failed("cannot start").because(error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        #[cfg(debug_assertions)]
        panic_for_tests().await;
        platform::survive_file_size_limit();
        if cli.command.runs_until_signal() {
            return cli::run(&cli, &ui).await;
        }
        let mut interruption = Interruption::listen();
        tokio::select! {
            result = cli::run(&cli, &ui) => result,
            () = interruption.next() => Err(Error::interrupted()),
        }
    });
    let exit = result.unwrap_or_else(|error| {
        ui.error(&error);
        Exit::Failed(error.kind())
    });
    // Do not wait for threads that are still hashing or reading. Their work can be abandoned safely, as after a kill.
    runtime.shutdown_background();
    ExitCode::from(exit.code())
}

/// Makes a panic in any thread or task end the process with a short request to report it. Unfinished work is safe, as
/// after a kill. The panic's own message is shown only if it is a literal, which cannot contain user data.
fn install_panic_hook(style: Style) {
    static FIRST: AtomicBool = AtomicBool::new(true);
    std::panic::set_hook(Box::new(move |panic| {
        if !FIRST.swap(false, Ordering::SeqCst) {
            // Another thread is already reporting its panic and will end the process.
            loop {
                std::thread::park();
            }
        }
        let place = panic.location().map_or(String::new(), |place| {
            let file = Path::new(place.file()).file_name().unwrap_or_default().to_string_lossy();
            format!("{file}:{}", place.line())
        });
        let message = panic.payload().downcast_ref::<&'static str>().map_or(String::new(), |text| format!(", {text}"));
        let error = Error::new(Cause::Internal, "internal error")
            .because(format!("{place}{message}, in version {}", VERSION))
            .hint(concat!("please report this message and the command at ", env!("CARGO_PKG_REPOSITORY"), "/issues"));
        // A new `Ui`, since the panicking thread may hold the lock of the progress bars.
        Ui::new(Style { no_progress: true, ..style }, GivenOptions::default()).error(&error);
        #[expect(clippy::exit, reason = "a panic hook has no caller to return an exit code to")]
        std::process::exit(i32::from(Kind::Internal.exit_code()));
    }));
}

/// Panics on request, to test [`install_panic_hook`]; absent from release builds.
#[cfg(debug_assertions)]
async fn panic_for_tests() {
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

/// Variables that libraries read directly, and ignore or misread if the value has white space or quotes around it.
const LIBRARY_VARIABLES: [&str; 24] = [
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

/// Restarts the process with cleaned variables. A proxy with a trailing line break, as left by some `.env` files, would
/// silently be ignored. A process cannot safely change its own environment, but it can re-execute itself with another.
fn restart_with_clean_environment() {
    let cleaned = LIBRARY_VARIABLES.into_iter().filter_map(|name| {
        let text = std::env::var(name).ok()?;
        let clean = hf_cache_sync::clean(&text).ok()?;
        (clean != text).then(|| (name, clean.to_string()))
    });
    let cleaned: Vec<(&str, String)> = cleaned.collect();
    if !cleaned.is_empty() {
        // If this fails, carry on with the variables as they are.
        platform::start_again(cleaned);
    }
}
