//! Computes how much space each repo takes in a bucket. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::bucket::census::Census;
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, RepoName};

/// The space that a repo takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepoUsage {
    /// Number of revisions.
    pub revisions: usize,
    /// Its blobs in the bucket, each counted once.
    pub all: Amount,
    /// Blobs that no other repo needs.
    pub unique: Amount,
    /// Blobs that other repos need, too.
    pub shared: Amount,
    /// Blobs that it needs and that are missing from the bucket, or have another size there.
    pub missing: Amount,
}

/// The contents of a bucket.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By repo.
    pub repos: BTreeMap<RepoName, RepoUsage>,
    /// All blobs.
    pub blobs: Amount,
    /// Blobs that several repos need.
    pub shared: Amount,
    /// Blobs that no manifest needs.
    pub unreferenced: Amount,
}

/// Adds up what each repo takes. Sizes are those of the bucket's listing.
pub fn usage(census: &Census) -> Usage {
    let mut usage = Usage::default();
    for needs in census.manifests.values() {
        usage.repos.entry(needs.repo.clone()).or_default().revisions += 1;
    }
    let repos: HashMap<&RepoName, u32> = usage.repos.keys().zip(0..).collect();
    // A bucket may have millions of blobs: sorted lists take less memory than maps.
    let mut needed: Vec<(BlobId, u32, u64)> = Vec::new();
    let mut mentioned: Vec<BlobId> = Vec::new();
    for needs in census.manifests.values() {
        let repo = repos[&needs.repo];
        needed.extend(needs.blobs.iter().map(|(blob, size)| (*blob, repo, *size)));
        mentioned.extend(&needs.mentions);
    }
    needed.sort_unstable();
    needed.dedup_by_key(|(blob, repo, _)| (*blob, *repo));
    mentioned.sort_unstable();

    let mut of_repos = vec![RepoUsage::default(); repos.len()];
    for users in needed.chunk_by(|(one, ..), (other, ..)| one == other) {
        for (blob, repo, size) in users {
            let of_repo = &mut of_repos[*repo as usize];
            match census.state.blobs().get(blob) {
                Some(entry) if entry.size == *size => {
                    add(&mut of_repo.all, *size);
                    add(if users.len() > 1 { &mut of_repo.shared } else { &mut of_repo.unique }, *size);
                }
                _ => add(&mut of_repo.missing, *size),
            }
        }
    }
    for (of_repo, added) in usage.repos.values_mut().zip(of_repos) {
        *of_repo = RepoUsage { revisions: of_repo.revisions, ..added };
    }
    for (blob, entry) in census.state.blobs().iter() {
        add(&mut usage.blobs, entry.size);
        let start = needed.partition_point(|(known, ..)| known < blob);
        let users = needed[start..].iter().take(2).take_while(|(known, ..)| known == blob).count();
        match users {
            0 if mentioned.binary_search(blob).is_err() => add(&mut usage.unreferenced, entry.size),
            0 | 1 => {}
            _ => add(&mut usage.shared, entry.size),
        }
    }
    usage
}

/// Sizes come from the bucket and cannot be trusted not to overflow.
fn add(amount: &mut Amount, bytes: u64) {
    *amount += Amount { blobs: 1, bytes };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::census::Needs;
    use crate::bucket::client::Object;
    use crate::bucket::keys;
    use crate::bucket::state::RemoteState;
    use crate::model::ids::RepoType;

    fn blob(digit: char) -> BlobId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn needs(id: &str, digit: char, blobs: &str) -> (String, Needs) {
        let repo = RepoName::new(RepoType::Model, id.parse().unwrap());
        let commit = digit.to_string().repeat(40).parse().unwrap();
        let key = keys::manifest(&repo.id, &commit);
        let blobs = blobs.chars().map(|digit| (blob(digit), 10)).collect();
        (key, Needs { repo, commit, blobs, mentions: Default::default() })
    }

    #[test]
    fn shared_blobs_are_distinguished_and_each_counts_once() {
        let object = |(digit, size)| Object { key: keys::blob(&blob(digit)), size, etag: None, modified: None };
        let state = RemoteState::new([('1', 10), ('2', 10), ('3', 10), ('4', 9), ('5', 10)].map(object));
        let manifests = [needs("org/a", 'a', "12"), needs("org/a", 'b', "13"), needs("org/b", 'c', "146")];
        let census = Census { state, manifests: manifests.into(), ..Census::default() };
        let usage = usage(&census);
        let amount = |blobs, bytes| Amount { blobs, bytes };
        let repos: Vec<_> = usage.repos.values().copied().collect();
        let a = RepoUsage {
            revisions: 2,
            all: amount(3, 30),
            unique: amount(2, 20),
            shared: amount(1, 10),
            missing: amount(0, 0),
        };
        let b = RepoUsage {
            revisions: 1,
            all: amount(1, 10),
            unique: amount(0, 0),
            shared: amount(1, 10),
            missing: amount(2, 20),
        };
        assert_eq!(repos, [a, b]);
        assert_eq!((usage.blobs, usage.shared, usage.unreferenced), (amount(5, 49), amount(1, 10), amount(1, 10)));
    }
}
