//! `remote`: the care of the bucket. `remote du` shows what takes space in it.

pub mod du;

use crate::bucket::census::Census;
use crate::bucket::client::Bucket;
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync remote du                what takes space in the bucket";

/// Show what takes space in the bucket
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Command,
}

/// The commands below `remote`.
#[derive(Debug, Clone, clap::Subcommand)]
#[allow(missing_docs)] // documented on each command's Args
pub enum Command {
    Du(du::Args),
}

/// Lists the bucket and reads its manifests.
async fn census(bucket: &Bucket) -> Result<Census> {
    Census::take(bucket, None).await
}
