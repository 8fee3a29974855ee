//! Log lines on stderr: time, level, message and fields, escaped and always on a single line.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Ui;
use super::progress::LogWriter;
use crate::escape::{Keep, escape};
use crate::when;

/// Starts logging: by default warnings of this tool; with -v its decisions and requests; with -vv also the logs of
/// dependencies. RUST_LOG takes precedence.
pub fn start(ui: &Ui, verbose: u8) {
    let level = match (ui.style.quiet, verbose) {
        (true, _) => "error",
        (_, 0) => "hf_cache_sync=warn,error",
        (_, 1) => "hf_cache_sync=debug,warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let bars = ui.bars().clone();
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || LogWriter(bars.clone()));
    let _ = logger.event_format(Line { colour: console::colors_enabled_stderr() }).try_init();
}

struct Line {
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        ctx.format_fields(Writer::new(&mut text), event)?;
        let level = *event.metadata().level();
        let word = console::style(format!("{level:>5}")).force_styling(self.colour);
        let word = match level {
            Level::ERROR => word.red(),
            Level::WARN => word.yellow(),
            Level::INFO => word.green(),
            _ => word.dim(),
        };
        writeln!(out, "{} {word} {}", when::now_in_millis(), escape(&text, Keep::Nothing))
    }
}
