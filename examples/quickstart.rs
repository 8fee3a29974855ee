//! Demonstrates push and pull without an account: pushes a sample cache to an S3 server that runs inside this example, pulls
//! it into a second, empty cache, and compares the two.
//!
//! ```text
//! cargo run --example quickstart
//! ```
#![allow(clippy::print_stdout)] // an example prints its own output

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use clap::Parser;
use hf_cache_sync::cli::{self, Cli, Exit};
use hf_cache_sync::internals::cache::layout::{Layout, link_text};
use hf_cache_sync::internals::config::{Config, Environment, Overrides};
use hf_cache_sync::internals::hash::BlobHasher;
use hf_cache_sync::internals::model::ids::{BlobId, RepoName, RepoType};
use hf_cache_sync::ui::Ui;

#[path = "../tests/it/harness/s3.rs"]
mod s3;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let (first, second) = (dir.path().join("machine-a/hub"), dir.path().join("machine-b/hub"));
    fs::create_dir_all(dir.path().join("store/team-hf-cache"))?;
    let config = dir.path().join("config.yaml");
    fs::write(&config, format!("storage:\n  access_key: {}\n  secret_key: {}\n", s3::ACCESS_KEY, s3::SECRET_KEY))?;

    say("A Hugging Face cache on machine A: a model of 48 MiB, and a dataset with the same name");
    sample_cache(&first)?;
    say("An S3 server on the loopback interface, in this process");
    let (access_key, secret_key) = key_pair(&config)?;
    let server = s3::Server::start(&dir.path().join("store"), 0, &access_key, &secret_key).await;
    println!("  {}", server.url);

    let run = async |cache: &Path, command: &[&str]| -> Outcome<()> {
        println!("\n$ hf-cache-sync {}", command.join(" "));
        let text = |path: &Path| path.display().to_string();
        let setup = ["--bucket", "team-hf-cache", "--endpoint", &server.url, "--region", "local"].map(String::from);
        let paths = ["--config".into(), text(&config), "--cache-dir".into(), text(cache)];
        let line = ["hf-cache-sync"].into_iter().chain(command.iter().copied()).map(String::from);
        let cli = Cli::parse_from(line.chain(setup).chain(paths));
        match cli::run(&cli, &Ui::new(cli.global.style(), cli.global.given_options())).await? {
            Exit::Success => Ok(()),
            exit => Err(format!("exited with code {}", exit.code()).into()),
        }
    };
    run(&first, &["doctor"]).await?;
    run(&first, &["push"]).await?;
    say("Machine B has an empty cache");
    run(&second, &["pull", "acme/tiny"]).await?;
    run(&second, &["pull", "dataset:acme/tiny"]).await?;
    say("Pushing again takes three listings and no uploads");
    run(&first, &["push"]).await?;

    let (original, copy) = (contents(&first)?, contents(&second)?);
    if original != copy {
        return Err("the two caches differ".into());
    }
    say(&format!("Both caches are identical: {} files and links, byte for byte", copy.len()));
    Ok(())
}

fn say(text: &str) {
    println!("\n# {text}");
}

/// Returns the key pair that the tool will use. As always, an exported pair takes precedence over the file.
fn key_pair(file: &Path) -> Outcome<(String, String)> {
    let env = Environment {
        var: &|name| std::env::var(name).ok(),
        home: std::env::home_dir(),
        current: std::env::current_dir()?,
    };
    let config = Config::load(&Overrides { file: Some(file.into()), ..Overrides::default() }, &env)?;
    let pair = config.storage.credentials.pair().ok_or("the configuration has no key pair")?;
    Ok((pair.id.expose().into(), pair.secret.expose().into()))
}

/// Creates the cache that huggingface_hub would create for two downloads.
fn sample_cache(root: &Path) -> Outcome<()> {
    let layout = Layout::new(root);
    let mut state = 1u64;
    let weights: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(48 << 20)
    .collect();
    let model = RepoName::new(RepoType::Model, "acme/tiny".parse()?);
    add_revision(&layout, &model, '1', &[("config.json", b"{\"hidden_size\": 8}\n"), ("model.safetensors", &weights)])?;
    let dataset = RepoName::new(RepoType::Dataset, "acme/tiny".parse()?);
    add_revision(&layout, &dataset, '2', &[("README.md", b"# Tiny\n"), ("data/train.csv", b"a,b\n1,2\n")])
}

fn add_revision(layout: &Layout, repo: &RepoName, digit: char, files: &[(&str, &[u8])]) -> Outcome<()> {
    let commit = digit.to_string().repeat(40).parse()?;
    let mut tree = serde_json::Map::new();
    for (path, bytes) in files {
        let git = hash(BlobHasher::git(bytes.len() as u64), bytes);
        let sha256 = hash(BlobHasher::sha256(), bytes);
        let is_large = path.ends_with(".safetensors");
        let mut entry = serde_json::json!({"size": bytes.len(), "blob_id": git});
        if is_large {
            entry["lfs_sha256"] = serde_json::json!(sha256);
            entry["lfs_size"] = bytes.len().into();
        }
        tree.insert(path.to_string(), entry);
        let (path, blob) = (path.parse()?, if is_large { sha256 } else { git });
        fs::create_dir_all(layout.blobs(repo))?;
        fs::write(layout.blob(repo, &blob), bytes)?;
        let link = layout.snapshot_file(repo, &commit, &path);
        fs::create_dir_all(link.parent().ok_or("a file has a folder")?)?;
        make_link(layout, repo, &blob, &link_text(&path, &blob), &link)?;
    }
    write(&layout.reference(repo, &"main".parse()?), commit.as_str())?;
    let tree = serde_json::json!({"format_version": 1, "files": tree});
    let mut bytes = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b" ");
    serde::Serialize::serialize(&tree, &mut serde_json::Serializer::with_formatter(&mut bytes, indent))?;
    write(&layout.tree(repo, &commit), &String::from_utf8(bytes)?)
}

fn hash(mut hasher: BlobHasher, bytes: &[u8]) -> BlobId {
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(unix)]
fn make_link(_: &Layout, _: &RepoName, _: &BlobId, text: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(text, link)
}

#[cfg(not(unix))]
fn make_link(layout: &Layout, repo: &RepoName, blob: &BlobId, _: &str, link: &Path) -> std::io::Result<()> {
    fs::copy(layout.blob(repo, blob), link).map(drop)
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    fs::create_dir_all(path.parent().ok_or("a file has a folder")?)?;
    Ok(fs::write(path, text)?)
}

/// Returns all files (with their bytes) and links (with their targets) of a cache, except lock files.
fn contents(root: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            match entry.file_type()? {
                _ if name == ".locks" => {}
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_symlink() => {
                    found.insert(name, fs::read_link(&path)?.to_string_lossy().into_owned().into_bytes());
                }
                _ => {
                    found.insert(name, fs::read(&path)?);
                }
            }
        }
    }
    Ok(found)
}
