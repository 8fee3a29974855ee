//! A small S3 server on the loopback interface, for trying hf-cache-sync without an account:
//!
//! ```text
//! cargo run --example s3-server -- --root /tmp/store --bucket my-hf-cache
//! ```
//!
//! It prints its URL when it is ready. Not for production: it is only as safe and fast as tests require.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;

#[path = "../tests/it/harness/s3.rs"]
mod s3;

#[derive(Parser)]
struct Options {
    /// Folder for the objects
    #[arg(long)]
    root: PathBuf,
    /// Bucket to create
    #[arg(long)]
    bucket: Option<String>,
    /// Port, or 0 for any free port
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Access key to accept
    #[arg(long, default_value = s3::ACCESS_KEY)]
    access_key: String,
    /// Secret key to accept
    #[arg(long, default_value = s3::SECRET_KEY)]
    secret_key: String,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let options = Options::parse();
    std::fs::create_dir_all(options.root.join(options.bucket.as_deref().unwrap_or("")))?;
    let server = s3::Server::start(&options.root, options.port, &options.access_key, &options.secret_key).await;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", server.url)?;
    stdout.flush()?;
    tokio::signal::ctrl_c().await
}
