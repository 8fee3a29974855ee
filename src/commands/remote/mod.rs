//! `remote`: takes care of the bucket. [`du`] shows what takes space in it, [`rm`] deletes repos and revisions, [`gc`] deletes
//! what nothing needs any more.

pub mod deletion;
pub mod du;
pub mod gc;
pub mod rm;

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync remote du                what takes space in the bucket
  hf-cache-sync remote rm org/name       delete a repo from it
  hf-cache-sync remote gc                delete what no revision needs any more";

/// Take care of the bucket: show what takes space in it, and delete from it
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
    Rm(rm::Args),
    Gc(gc::Args),
}
