//! The local cache: where things are, what is there, and how to change it safely.
//!
//! Finding and reading:
//! - [`layout`]: the paths of huggingface_hub's cache, and the meaning of file names in it
//! - [`root`]: whether the cache folder exists, and if not, why
//! - [`inventory`]: what is there: repos, blobs, revisions, refs and problems
//! - [`scan`]: takes the inventory
//! - [`clients`]: the temporaries, lock files and folders of other programs that write to this cache, by name
//! - [`state`]: the one picture of this cache that the commands read: the inventory, and trees and licences on demand
//! - [`junk`]: names that operating systems, file servers and editors leave everywhere
//! - [`identify`]: which blob each file of a snapshot is, even if it is not a link
//! - [`read`]: opening blobs without changing their access time, and aligned buffers
//! - [`mod@pointer`]: LFS and Xet pointer files
//! - [`gated`]: whether a repo looks gated, judged by its licence files; the licence texts are in `licenses/`
//! - [`mod@select`]: the repos and revisions of the inventory that a command applies to
//! - [`usage`]: bytes on disk and last use
//! - [`space`]: free disk space, and whether the file system keeps access times
//!
//! Input of the commands' plans:
//! - [`pushable`]: for `push` and `diff`, the revisions and files that this cache can publish
//! - [`presence`]: for `pull`, which parts of one revision are already here
//! - [`donors`]: for `pull`, other files of this cache that have the bytes of a missing blob
//! - [`prune_facts`]: for `prune`, everything beyond the scan: locks, leftovers, payloads and client activity
//! - [`incoming_links`]: for `prune`, repos that links from elsewhere lead into, and places that cannot be inspected
//! - [`integrity`]: for `verify`, what every file should be, and which files prove it when hashed
//!
//! Changing:
//! - [`lock`]: huggingface_hub's locks and our own
//! - [`inside`]: the step to the disk, which no link can lead out of the cache
//! - [`staging`]: temporary folders
//! - [`place`]: writes files, never through a link
//! - [`snapshot`]: writes snapshots
//! - [`quarantine`]: keeps what a repair replaces or takes out
//! - [`repair`]: rewrites refs that have white space around their commit
//! - [`remove`]: deletes files and folders
//! - [`leftovers`]: removes what killed runs have left in the tool's own state
//! - [`shared`]: the cache-wide blob store, and deleting from it

pub mod clients;
pub mod donors;
pub mod gated;
pub mod identify;
pub mod incoming_links;
pub mod inside;
pub mod integrity;
pub mod inventory;
pub mod junk;
pub mod layout;
pub mod leftovers;
mod licenses;
pub mod lock;
pub mod place;
pub mod pointer;
pub mod presence;
pub mod prune_facts;
pub mod pushable;
pub mod quarantine;
pub mod read;
pub mod remove;
pub mod repair;
pub mod root;
pub mod scan;
pub mod select;
pub mod shared;
pub mod snapshot;
pub mod space;
pub mod staging;
pub mod state;
pub mod usage;
