//! A small S3 server on the loopback, to try hf-cache-sync without an account:
//!
//! ```text
//! cargo run --example s3-server -- --root /tmp/store --bucket my-hf-cache
//! ```
//!
//! It prints its URL when it is ready. Not meant for production: it is as safe and as fast as a test needs.

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
    /// A bucket to create
    #[arg(long)]
    bucket: Option<String>,
    /// Port; a free one when 0
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The access key that is accepted
    #[arg(long, default_value = s3::ACCESS_KEY)]
    access_key: String,
    /// The secret key that is accepted
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
