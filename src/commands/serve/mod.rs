//! `serve`: serves the bucket through the Hub's own API, to unmodified clients.
//!
//! The path of a request:
//!
//! ```text
//! server.rs → respond.rs → gatekeeper.rs (may it?), route.rs (what?), range.rs (which bytes?)
//!                 │
//!                 ├─► revisions.rs   bucket, Hub or cache: the manifest   → documents.rs (JSON of the API)
//!                 └─► puller.rs      cache, or a pull of this one file    → body.rs (its bytes)
//! ```
//!
//! Bytes come through the disk. [`puller`] brings each blob into the cache once, as `pull` would, and [`body`] reads it from
//! there, even while it arrives. [`activity`] keeps the counters, [`page`] displays them, [`upkeep`] keeps the cache within
//! its budget and publishes revisions fetched from the Hub.

pub mod activity;
pub mod body;
pub mod cached;
pub mod card;
pub mod child;
pub mod documents;
pub mod environment;
pub mod gatekeeper;
pub mod page;
pub mod puller;
pub mod range;
pub mod respond;
pub mod revisions;
pub mod route;
pub mod server;
pub mod update;
pub mod upkeep;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use super::TransferArgs;
use super::fallback::FallbackArgs;
use super::size::Size;
use crate::cache::presence;
use crate::engine::Session;
use crate::engine::pull::Options;
use crate::error::{Error, Result, shown};
use crate::files;
use crate::platform::{self, Interruption};
use activity::Activity;
use cached::Cached;
use gatekeeper::Gatekeeper;
use puller::Puller;
use respond::Site;
use revisions::Revisions;
use update::{Update, UpdateKind};

/// Maximum size of a token file, in bytes.
const MAX_TOKEN: u64 = 64 << 10;
/// Backlog of the listening socket. Many clients start at once, and any beyond this wait for a second.
const BACKLOG: u32 = 4096;
/// The default address.
const LISTEN: &str = "127.0.0.1:8090";

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync serve                        on 127.0.0.1:8090, until ctrl-c
  eval \"$(hf-cache-sync serve --env)\"        set the variables for clients
  hf-cache-sync serve -- python train.py     for one command, on a free port
  hf-cache-sync serve --fallback hf-hub --push
                                             also from the Hub, and publish that
  hf-cache-sync serve --listen 0.0.0.0:8090 --token-file token --max-size 200GB

Clients read from it with HF_ENDPOINT=http://127.0.0.1:8090 and
HF_HUB_DISABLE_XET=1. Every blob is pulled into the cache once, and verified.";

/// Serve the bucket to unmodified Hub clients
///
/// Answers the Hub's API on this machine, so that huggingface_hub, transformers, datasets, vLLM and everything else that
/// respects HF_ENDPOINT loads from the bucket, without a separate pull. Blobs go through the cache. Ctrl-C and SIGTERM end
/// it (exit code 0).
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Address and port to listen on [default: 127.0.0.1:8090, or a free port with a command]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub listen: Option<SocketAddr>,

    /// File with the token that clients must send (HF_TOKEN); required unless the address is a loopback address
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// Keep the cache within this size, such as 200GB, by evicting what the bucket holds, least recently used first. Use
    /// it with a cache of the server's own
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_size: Option<Size>,

    /// How long a branch or tag is served before the bucket is asked again, such as 60s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = refresh)]
    pub refresh: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub fallback: FallbackArgs,

    /// Publish what came from the Hub to the bucket, under the rules of `push`
    #[arg(long, requires = "fallback")]
    pub push: bool,

    /// Serve only what is in the cache
    #[arg(long, conflicts_with_all = ["fallback", "push", "max_size"])]
    pub offline: bool,

    /// Print the variables that clients need, for `eval`, and exit
    #[arg(long, conflicts_with = "command")]
    pub env: bool,

    /// Do not flush blobs to disk before they become visible: faster, for short-lived machines
    #[arg(long)]
    pub no_sync: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub transfer: TransferArgs,

    /// Run this command with the variables set, and end with its exit code
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let named = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address = named.as_deref().unwrap_or(text).parse();
    address.map_err(|_| "expected an address and a port, such as 127.0.0.1:8090 or [::1]:8090".to_string())
}

fn refresh(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let text = if text.bytes().all(|b| b.is_ascii_digit()) { format!("{text}s") } else { text.into() };
    let age = text.parse::<super::prune::Age>().map(|age| age.0).or_else(|_| match text.as_str() {
        "0s" => Ok(Duration::ZERO),
        _ => Err("expected a time such as 60s, 5m, or 0".to_string()),
    });
    age.map_err(|_| "expected a time such as 60s, 5m, or 0".to_string())
}

impl Args {
    /// Returns the address to listen on.
    fn listen(&self) -> SocketAddr {
        let default: SocketAddr = LISTEN.parse().expect("it is a valid address");
        match self.listen {
            Some(listen) => listen,
            None if self.command.is_empty() => default,
            None => SocketAddr::new(default.ip(), 0),
        }
    }

    /// Returns the variables for clients, as lines for a shell.
    ///
    /// # Errors
    /// If the port is 0.
    pub fn environment(&self) -> Result<environment::Report> {
        let listen = self.listen();
        match listen.port() {
            0 => Err(Error::usage("with port 0, the address is not known until the server runs")
                .hint("choose a port, as in --listen 127.0.0.1:8090")),
            _ => Ok(environment::Report::new(listen)),
        }
    }
}

/// Runs the server until a signal arrives or the command, if there is one, exits. Returns the command's exit code.
///
/// # Errors
/// If the server cannot start, or the command cannot be run.
pub async fn execute(session: &Session, args: &Args, report: &dyn Fn(Update)) -> Result<Option<u8>> {
    let mut interruption = Interruption::listen();
    args.fallback.check()?;
    let listen = args.listen();
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    if token.is_none() && !listen.ip().is_loopback() {
        return Err(Error::usage(format!(
            "{listen} is not a loopback address, so anyone on the network could read from it"
        ))
        .hint("add --token-file PATH with a secret that clients send as HF_TOKEN, or use --listen 127.0.0.1:8090"));
    }
    presence::check_root(&session.layout())?;
    let activity = Arc::new(Activity::new());
    let session = Session { progress: activity.clone(), ..session.clone() };
    let bucket = match args.offline {
        true => None,
        false => Some(session.bucket().await?),
    };
    let listener = bind(listen)?;
    let listen = listener.local_addr().map_err(|error| cannot_listen(listen, &error))?;
    let url = environment::url(listen);
    if args.fallback.fallback.is_some() && environment::is_own(session.config.hub.endpoint.expose(), listen) {
        return Err(Error::usage("HF_ENDPOINT is the address of this server, which would request files from itself")
            .hint("unset HF_ENDPOINT for the server; only its clients need it"));
    }
    let fallback = args.fallback.resolve(&session, false);
    let options = Options { caps: args.transfer.caps(), sync: !args.no_sync, verify: false };
    let revisions = Arc::new(Revisions::new(
        &session,
        bucket.clone(),
        fallback.clone(),
        activity.clone(),
        args.refresh,
        listen.ip().is_loopback(),
    ));
    let puller =
        Puller::new(&session, bucket.clone(), fallback, options, revisions.clone(), activity.clone(), args.push);
    let about = page::About {
        url: url.clone(),
        bucket: bucket.as_ref().map(|bucket| bucket.name().to_string()),
        cache: shown(&session.config.cache.root),
        max_size: args.max_size.map(|size| size.0),
        fallback: args
            .fallback
            .fallback
            .map(|_| if args.push { "the Hub, published to the bucket" } else { "the Hub" }),
        measured: AtomicU64::new(u64::MAX),
    };
    let site = Arc::new(Site {
        revisions,
        puller: puller.clone(),
        activity,
        gatekeeper: Gatekeeper::new(token.clone(), listen),
        shares_cache: args.max_size.is_none(),
        about,
        layout: session.layout(),
        cached: Cached::default(),
    });
    report(Update::now(UpdateKind::Started {
        url,
        cache: session.config.cache.root.clone(),
        bucket: bucket.map(|bucket| bucket.name().to_string()),
        environment: environment::variables(listen),
        needs_token: token.is_some(),
        has_command: !args.command.is_empty(),
    }));
    let (end, ending) = watch::channel(false);
    let serving = tokio::spawn(server::run(listener, site.clone(), ending));
    let session_end = async {
        match args.command.is_empty() {
            true => {
                interruption.next().await;
                Ok(None)
            }
            false => child::run(&args.command, listen, token.as_deref(), &mut interruption).await.map(Some),
        }
    };
    let code = tokio::select! {
        code = session_end => code?,
        () = upkeep::run(&session, &puller, &site, args.max_size) => None,
    };
    let _ = end.send(true);
    let finished = async {
        let _ = serving.await;
        upkeep::publish_rest(&session, &puller).await;
    };
    tokio::select! {
        () = finished => {}
        () = interruption.next() => {}
    }
    report(Update::now(UpdateKind::Stopped { has_command: !args.command.is_empty() }));
    Ok(code)
}

fn bind(listen: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(platform::REUSES_ADDRESSES)?;
        socket.bind(listen)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|error| cannot_listen(listen, &error))
}

fn cannot_listen(listen: SocketAddr, error: &std::io::Error) -> Error {
    let failed = Error::failed(format!("cannot listen on {listen}")).because(crate::error::plain_io(error));
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            failed.hint("the port is in use, perhaps by another serve: choose another one with --listen 127.0.0.1:PORT")
        }
        std::io::ErrorKind::PermissionDenied => failed.hint("ports below 1024 need privileges: choose a higher one"),
        std::io::ErrorKind::AddrNotAvailable => failed.hint("this machine does not have that address"),
        _ => failed,
    }
}

fn read_token(path: &Path) -> Result<String> {
    let failed = |why: &str| {
        Error::usage(format!("the token file {} cannot be used", shown(path)))
            .because(why)
            .hint("it holds one line, the token that clients send as HF_TOKEN")
    };
    let mut file = files::open(path).map_err(|error| failed(&crate::error::plain_io(&error)))?;
    let content = files::read_rest(&mut file, MAX_TOKEN).map_err(|error| failed(&crate::error::plain_io(&error)))?;
    let content = content.ok_or_else(|| failed("it is too large"))?;
    let token = String::from_utf8(content).map_err(|_| failed("it is not text"))?;
    let token = token.trim();
    match token {
        "" => Err(failed("it is empty")),
        token if !token.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(failed("the token has spaces, line breaks or characters that are not ASCII"))
        }
        token => Ok(token.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_times_and_addresses() {
        assert_eq!(refresh("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(refresh("90"), Ok(Duration::from_secs(90)));
        assert_eq!(refresh("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(refresh("0"), Ok(Duration::ZERO));
        assert!(refresh("soon").is_err() && refresh("-1s").is_err() && refresh("").is_err());
        assert_eq!(address("localhost:1"), Ok("127.0.0.1:1".parse().unwrap()));
        assert_eq!(address("[::1]:8090"), Ok("[::1]:8090".parse().unwrap()));
        assert!(address("8090").is_err() && address("127.0.0.1").is_err() && address("127.0.0.1:99999").is_err());
    }
}
