//! The decision of a pull. Pure: the bucket's manifest and what is here in, ordered actions out.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use crate::cache::donors::Donor;
use crate::cache::layout::Layout;
use crate::cache::target::{BlobState, State};
use crate::model::amount::Amount;
use crate::model::found::Found;
use crate::model::ids::{BlobId, RefName, RepoPath};
use crate::model::manifest::Manifest;

/// What to do, in this order.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The revision.
    #[serde(skip)]
    pub manifest: Manifest,
    /// Blobs to fetch.
    pub fetch: Vec<FetchAction>,
    /// Whether to write the tree.
    pub write_tree: bool,
    /// Files to put in place.
    pub link: Vec<LinkAction>,
    /// The ref to write.
    pub write_ref: Option<RefName>,
    /// Files that this system cannot hold by their name; all the others are pulled.
    #[serde(skip)]
    pub unstorable: Vec<RepoPath>,
    /// Whether a ref is to be written that is called like the commit: the Rust hf-hub before 1.0 finds a commit that it
    /// is asked for by that alone. Nothing else misses it, so that by itself it is no work.
    #[serde(skip)]
    pub write_pin: bool,
    /// Blobs that are here.
    pub present: Amount,
    /// Their files: used now.
    #[serde(skip)]
    pub used: Vec<PathBuf>,
}

/// A blob to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchAction {
    /// Its name.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// A file that it is.
    pub path: RepoPath,
    /// Why.
    pub reason: FetchReason,
    /// Another repo of this cache that has it: it is shared, and fetched only when its bytes are not what they should
    /// be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub donor: Option<Donor>,
}

/// Why a blob is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchReason {
    /// It is not here.
    Missing,
    /// What is here has another size.
    WrongSize,
    /// What is here has other bytes.
    Corrupt,
}

/// A file to put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkAction {
    /// Where.
    pub path: RepoPath,
    /// The blob.
    pub blob: BlobId,
}

impl Plan {
    /// Whether everything is as it should be.
    pub fn is_empty(&self) -> bool {
        self.fetch.is_empty() && self.link.is_empty() && !self.write_tree && self.write_ref.is_none()
    }

    /// What comes over the wire.
    pub fn downloads(&self) -> impl Iterator<Item = &FetchAction> {
        self.fetch.iter().filter(|fetch| fetch.donor.is_none())
    }

    /// Takes blobs from where this cache has them. What stands under the blob's own name in the same repo is not that.
    pub fn borrow_from(&mut self, layout: &Layout, donors: &HashMap<BlobId, Donor>) {
        for fetch in &mut self.fetch {
            let own = layout.blob(&self.manifest.repo, &fetch.blob);
            fetch.donor = donors.get(&fetch.blob).filter(|donor| donor.file != own).cloned();
        }
    }
}

/// Decides.
pub fn plan(layout: &Layout, found: &Found, state: &State) -> Plan {
    let manifest = &found.manifest;
    let mut plan = Plan {
        manifest: manifest.clone(),
        fetch: Vec::new(),
        write_tree: !state.tree,
        link: Vec::new(),
        write_ref: found.reference.clone().filter(|_| !state.reference),
        unstorable: Vec::new(),
        write_pin: !state.pin,
        present: Amount::default(),
        used: Vec::new(),
    };
    let mut blobs: BTreeMap<BlobId, &RepoPath> = BTreeMap::new();
    for (file, in_place) in manifest.files.iter().zip(&state.in_place) {
        let first = blobs.insert(file.blob, &file.path).is_none();
        let reason = match state.blobs[&file.blob] {
            BlobState::Present | BlobState::InSnapshot => None,
            BlobState::Missing => Some(FetchReason::Missing),
            BlobState::WrongSize => Some(FetchReason::WrongSize),
            BlobState::Corrupt => Some(FetchReason::Corrupt),
        };
        if first {
            match reason {
                Some(reason) => {
                    plan.fetch.push(FetchAction {
                        blob: file.blob,
                        size: file.size,
                        path: file.path.clone(),
                        reason,
                        donor: None,
                    });
                }
                None => {
                    plan.present.add(file.size);
                    plan.used.push(layout.snapshot_file(&manifest.repo, &manifest.revision, &file.path));
                }
            }
        }
        if !in_place {
            plan.link.push(LinkAction { path: file.path.clone(), blob: file.blob });
        }
    }
    plan
}
/// What to say of files that no bucket can have: the snapshot is never complete without them.
pub fn unportable(manifest: &Manifest) -> Option<String> {
    let files = manifest.unportable();
    (files > 0).then(|| {
        let files = if files == 1 { "1 file".into() } else { format!("{files} files") };
        format!(
            "{files} of this revision cannot be pulled: a backslash or control character is in the name; huggingface_hub \
             fetches what it is asked for from the Hub"
        )
    })
}
