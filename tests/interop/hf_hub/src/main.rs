//! Downloads files with hf-hub, and prints a line for each: its path in the cache, or the error.
//!
//! Usage: `hf-hub-client KIND REPO REVISION FILE...`. The endpoint and the cache come from the environment (HF_ENDPOINT,
//! HF_HUB_CACHE). The first line is the commit and the number of files that the client is told.

use std::env;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Repo, RepoType};

/// How often a download is resumed after its connection has broken.
const RETRIES: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, id, revision, files @ ..] = arguments.as_slice() else { return Err("too few arguments".into()) };
    let kind = match kind.as_str() {
        "model" => RepoType::Model,
        "dataset" => RepoType::Dataset,
        _ => RepoType::Space,
    };
    let api = ApiBuilder::from_env()
        .with_cache_dir(env::var("HF_HUB_CACHE")?.into())
        .with_progress(false)
        .with_retries(RETRIES)
        .build()?;
    let repo = api.repo(Repo::with_revision(id.clone(), kind, revision.clone()));
    let info = repo.info()?;
    println!("{} {}", info.sha, info.siblings.len());
    for file in files {
        match repo.get(file) {
            Ok(path) => println!("{}", path.display()),
            Err(error) => println!("error: {error}"),
        }
    }
    Ok(())
}
