//! Plans a pull. Pure: takes the bucket's manifest and the local state, and returns ordered actions.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use crate::cache::donors::Donor;
use crate::cache::layout::Layout;
use crate::cache::presence::{BlobState, State};
use crate::model::amount::Amount;
use crate::model::found::Found;
use crate::model::ids::{BlobId, RefName, RepoPath};
use crate::model::manifest::Manifest;

/// The plan, to be carried out in this order.
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
    /// Files whose names this system cannot store. All others are pulled.
    #[serde(skip)]
    pub unstorable: Vec<RepoPath>,
    /// Whether to write a ref named after the commit. The Rust hf-hub before 1.0 finds a requested commit only by such
    /// a ref. Nothing else needs it, so it does not count as work on its own.
    #[serde(skip)]
    pub write_pin: bool,
    /// Blobs that are already here.
    pub present: Amount,
    /// Their files, which are marked as used now.
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
    /// The path of a file with this content.
    pub path: RepoPath,
    /// Why it is fetched.
    pub reason: FetchReason,
    /// Another file of this cache that has the blob. It is shared instead of fetched, unless its bytes turn out to be
    /// wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub donor: Option<Donor>,
    /// Its name in the cache-wide store, if this cache has one that the blob may join.
    #[serde(skip)]
    pub xet_hash: Option<BlobId>,
}

/// Why a blob is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchReason {
    /// It is not here.
    Missing,
    /// The local file has the wrong size.
    WrongSize,
    /// The local file has the wrong bytes.
    Corrupt,
}

/// A file to put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkAction {
    /// Its path in the snapshot.
    pub path: RepoPath,
    /// Its blob.
    pub blob: BlobId,
}

impl Plan {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.fetch.is_empty() && self.link.is_empty() && !self.write_tree && self.write_ref.is_none()
    }

    /// Returns a note on the files whose local bytes are wrong and are replaced; `None` if there are none.
    pub fn replaced_note(&self) -> Option<String> {
        let wrong: Vec<&RepoPath> = self
            .fetch
            .iter()
            .filter(|fetch| matches!(fetch.reason, FetchReason::WrongSize | FetchReason::Corrupt))
            .map(|fetch| &fetch.path)
            .collect();
        match wrong.as_slice() {
            [] => None,
            [one] => Some(format!("{one} was corrupt here and has been replaced")),
            [first, ..] => {
                Some(format!("{} files were corrupt here and have been replaced, {first} among them", wrong.len()))
            }
        }
    }

    /// Returns the blobs that have to be downloaded.
    pub fn downloads(&self) -> impl Iterator<Item = &FetchAction> {
        self.fetch.iter().filter(|fetch| fetch.donor.is_none())
    }

    /// Adds the names of blobs in the cache-wide store, from the commit's tree.
    pub fn use_store(&mut self) {
        let entries = self.manifest.tree().into_iter().flat_map(|tree| tree.entries().map(|(_, entry)| entry));
        let names: HashMap<BlobId, BlobId> = entries.filter_map(|entry| Some((entry.blob, entry.xet_hash?))).collect();
        for fetch in &mut self.fetch {
            fetch.xet_hash = names.get(&fetch.blob).copied();
        }
    }

    /// Uses donors for blobs that this cache has elsewhere. A bad file under the blob's own name is not a donor.
    pub fn use_donors(&mut self, layout: &Layout, donors: &HashMap<BlobId, Donor>) {
        for fetch in &mut self.fetch {
            let own = layout.blob(self.manifest.repo(), &fetch.blob);
            fetch.donor = donors.get(&fetch.blob).filter(|donor| donor.file != own).cloned();
        }
    }
}

/// Makes the plan.
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
    for (file, in_place) in manifest.files().iter().zip(&state.in_place) {
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
                        xet_hash: None,
                    });
                }
                None => {
                    plan.present.add(file.size);
                    plan.used.push(layout.snapshot_file(manifest.repo(), manifest.revision(), &file.path));
                }
            }
        }
        if !in_place {
            plan.link.push(LinkAction { path: file.path.clone(), blob: file.blob });
        }
    }
    plan
}

/// Returns a note about files that no bucket can hold, so that the snapshot stays incomplete.
pub fn unportable_note(manifest: &Manifest) -> Option<String> {
    let files = manifest.unportable_count();
    (files > 0).then(|| {
        let files = if files == 1 { "1 file".into() } else { format!("{files} files") };
        format!(
            "{files} of this revision cannot be pulled, because of a backslash or control character in the name; \
             huggingface_hub fetches them from the Hub when needed"
        )
    })
}
