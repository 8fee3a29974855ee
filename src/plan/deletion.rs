//! Plans what may be deleted from a bucket. Pure: takes what the bucket has, what its manifests need and what running pushes
//! have announced, and returns deletions with their reasons.
//!
//! `remote gc` and `remote rm` only differ in the revisions that they remove, and in the blobs that they consider.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::bucket::census::Census;
use crate::bucket::client::Unfinished;
use crate::bucket::keys;
use crate::bucket::notices::Subject;
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::when;

/// The options of a deletion.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Blobs, dangling refs and unfinished uploads that are younger than this, by the store's clock, stay.
    pub grace: Duration,
    /// Keys of the manifests to remove.
    pub removed: BTreeSet<String>,
    /// Whether to consider everything, and not only what the removed manifests need.
    pub everything: bool,
    /// Whether all blobs stay, since manifests that could not be read may need any of them.
    pub keep_blobs: bool,
}

/// Everything that the plan is based on.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The complete bucket.
    pub census: &'a Census,
    /// Everything running pushes have announced.
    pub announced: &'a Subject,
    /// Unfinished multipart uploads, with the time of their last change by the store's clock.
    pub uploads: &'a [Unfinished],
    /// The time by the store's clock.
    pub now: SystemTime,
}

/// The objects to delete, in this order: refs, manifests, blobs, uploads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Refs.
    pub refs: Vec<RefDeletion>,
    /// Manifests.
    pub manifests: Vec<ManifestDeletion>,
    /// Blobs.
    pub blobs: Vec<BlobDeletion>,
    /// Unfinished uploads to abort.
    pub uploads: Vec<UploadDeletion>,
    /// What stays, and why. The report itself has this, too.
    #[serde(skip)]
    pub kept: BTreeMap<KeepReason, Amount>,
    /// Revisions that were to be removed and stay, since a push is publishing them.
    #[serde(skip)]
    pub busy: Vec<ManifestDeletion>,
}

/// A ref to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefDeletion {
    /// Its key.
    pub key: String,
    /// Its name.
    pub name: RefName,
    /// The commit that it names.
    pub commit: Commit,
    /// Why.
    pub reason: RefReason,
    /// The key of the manifest that it leads to, or would.
    #[serde(skip)]
    pub target: String,
}

/// Why a ref is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefReason {
    /// Its revision is removed.
    Removed,
    /// It leads to no manifest.
    Dangling,
}

/// A manifest to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestDeletion {
    /// Its key.
    pub key: String,
    /// Its repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Its revision.
    pub revision: Commit,
}

/// A blob to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobDeletion {
    /// Its name.
    pub blob: BlobId,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last written, by the store's clock.
    #[serde(serialize_with = "when::serialize")]
    pub modified: Option<SystemTime>,
}

/// An upload to abort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadDeletion {
    /// The key that it would have had.
    pub key: String,
    /// The store's id of the upload.
    pub id: String,
}

/// Why something that no manifest needs stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepReason {
    /// It is younger than the grace period.
    Young,
    /// A running push is about to publish it.
    Announced,
    /// The store does not say how old it is.
    Undated,
    /// It changed in the meantime.
    Changed,
    /// A manifest that could not be read may need it.
    Unread,
}

impl Plan {
    /// Whether there is anything to delete.
    pub fn deletes(&self) -> bool {
        !(self.refs.is_empty() && self.manifests.is_empty() && self.blobs.is_empty() && self.uploads.is_empty())
    }

    /// Returns everything in it, to be announced to others.
    pub fn subject(&self) -> Subject {
        Subject {
            refs: self.refs.iter().map(|one| one.key.clone()).collect(),
            manifests: self.manifests.iter().map(|one| one.key.clone()).collect(),
            blobs: self.blobs.iter().map(|one| one.blob).collect(),
            gives_way: false,
        }
    }

    /// Returns the number of blobs, and their bytes.
    pub fn amount(&self) -> Amount {
        let mut amount = Amount::default();
        self.blobs.iter().for_each(|blob| add(&mut amount, blob.bytes));
        amount
    }

    /// Removes everything that is not in an earlier plan, or has changed since.
    pub fn limit_to(&mut self, earlier: &Plan) {
        let blobs: BTreeMap<BlobId, Option<SystemTime>> =
            earlier.blobs.iter().map(|one| (one.blob, one.modified)).collect();
        let kept = &mut self.kept;
        self.blobs.retain(|one| {
            let is_same = blobs.get(&one.blob) == Some(&one.modified);
            if !is_same {
                add(kept.entry(KeepReason::Changed).or_default(), one.bytes);
            }
            is_same
        });
        let refs: BTreeSet<(&str, &Commit)> = earlier.refs.iter().map(|one| (one.key.as_str(), &one.commit)).collect();
        self.refs.retain(|one| refs.contains(&(one.key.as_str(), &one.commit)));
        let manifests: BTreeSet<&str> = earlier.manifests.iter().map(|one| one.key.as_str()).collect();
        self.manifests.retain(|one| manifests.contains(one.key.as_str()));
        self.uploads.retain(|one| earlier.uploads.contains(one));
    }
}

/// Sizes come from the bucket and cannot be trusted not to overflow.
fn add(amount: &mut Amount, bytes: u64) {
    *amount += Amount { blobs: 1, bytes };
}

/// Plans what to delete. The caller makes sure that nothing is deleted in spite of problems in the census.
pub fn plan(facts: &Facts<'_>, options: &Options) -> Plan {
    let Facts { census, announced, .. } = facts;
    let mut plan = Plan::default();
    let mut removed = BTreeSet::new();
    for key in &options.removed {
        let Some(needs) = census.manifests.get(key) else { continue };
        let deletion = ManifestDeletion { key: key.clone(), repo: needs.repo.clone(), revision: needs.commit.clone() };
        if announced.manifests.contains(key) {
            plan.busy.push(deletion);
        } else {
            removed.insert(key.as_str());
            plan.manifests.push(deletion);
        }
    }
    plan_refs(facts, options, &removed, &mut plan);
    plan_blobs(facts, options, &removed, &mut plan);
    if options.everything {
        let old = facts.uploads.iter().filter(|upload| is_abandoned(upload, options.grace, facts.now));
        plan.uploads = old.map(|one| UploadDeletion { key: one.key.clone(), id: one.id.clone() }).collect();
    }
    plan
}

/// Whether an unfinished upload of a blob is older than the grace period. The time that `upload` has is its start, or that of
/// its last part.
pub fn is_abandoned(upload: &Unfinished, grace: Duration, now: SystemTime) -> bool {
    keys::parse_blob(&upload.key).is_some() && when::is_past(upload.started, grace, now)
}

fn plan_refs(facts: &Facts<'_>, options: &Options, removed: &BTreeSet<&str>, plan: &mut Plan) {
    let Facts { census, announced, now, .. } = facts;
    for candidate in census.state.refs() {
        let object = &candidate.object;
        let Some(Some(commit)) = census.refs.get(&object.key) else { continue };
        let target = keys::manifest_of(&candidate.encoded, commit);
        let reason = if removed.contains(target.as_str()) {
            RefReason::Removed
        } else if options.everything
            && census.state.listed_manifest(&target).is_none()
            && !keys::may_be_of_other_team(&candidate.encoded, &candidate.name)
            && !announced.refs.contains(&object.key)
            && when::is_past(object.modified, options.grace, *now)
        {
            RefReason::Dangling
        } else {
            continue;
        };
        let (key, name, commit) = (object.key.clone(), candidate.name.clone(), commit.clone());
        plan.refs.push(RefDeletion { key, name, commit, reason, target });
    }
}

fn plan_blobs(facts: &Facts<'_>, options: &Options, removed: &BTreeSet<&str>, plan: &mut Plan) {
    let Facts { census, announced, now, .. } = facts;
    let mut needed: BTreeSet<BlobId> = BTreeSet::new();
    let mut considered: BTreeSet<BlobId> = BTreeSet::new();
    for (key, needs) in &census.manifests {
        let blobs = needs.blobs.keys().chain(&needs.mentions);
        match removed.contains(key.as_str()) {
            true => considered.extend(blobs),
            false => needed.extend(blobs),
        }
    }
    for (blob, entry) in census.state.blobs().iter() {
        if needed.contains(blob) || !(options.everything || considered.contains(blob)) {
            continue;
        }
        let kept = if options.keep_blobs {
            KeepReason::Unread
        } else if announced.blobs.contains(blob) {
            KeepReason::Announced
        } else if entry.modified.is_none() {
            KeepReason::Undated
        } else if when::is_past(entry.modified, options.grace, *now) {
            plan.blobs.push(BlobDeletion { blob: *blob, bytes: entry.size, modified: entry.modified });
            continue;
        } else {
            KeepReason::Young
        };
        add(plan.kept.entry(kept).or_default(), entry.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::census::Needs;
    use crate::bucket::client::Object;
    use crate::bucket::state::RemoteState;
    use crate::model::ids::RepoType;
    use proptest::prelude::*;

    const GRACE: u64 = 1000;
    const NOW: u64 = 10_000;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn blob(number: usize) -> BlobId {
        format!("{number:040x}").parse().unwrap()
    }

    fn commit(number: usize) -> Commit {
        format!("{number:040x}").parse().unwrap()
    }

    fn object(key: String, modified: Option<u64>) -> Object {
        Object { key, size: 10, etag: None, modified: modified.map(at) }
    }

    /// Returns a bucket with these blobs and their times, manifests and their blobs, and refs with their commits and times.
    fn census(blobs: &[(usize, Option<u64>)], manifests: &[(usize, &[usize])], refs: &[(&str, usize, u64)]) -> Census {
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let key = |number| keys::manifest(&repo.id, &commit(number));
        let listed = blobs.iter().map(|(number, time)| object(keys::blob(&blob(*number)), *time));
        let listed = listed.chain(manifests.iter().map(|(number, _)| object(key(*number), Some(0))));
        let listed = listed.chain(refs.iter().map(|(key, _, time)| object(key.to_string(), Some(*time))));
        let needs = |(number, blobs): &(usize, &[usize])| {
            let blobs = blobs.iter().map(|number| (blob(*number), 10)).collect();
            (key(*number), Needs { repo: repo.clone(), commit: commit(*number), blobs, mentions: BTreeSet::new() })
        };
        Census {
            state: RemoteState::new(listed),
            manifests: manifests.iter().map(needs).collect(),
            refs: refs.iter().map(|(key, number, _)| (key.to_string(), Some(commit(*number)))).collect(),
            ..Census::default()
        }
    }

    fn planned(census: &Census, announced: &Subject, removed: &[usize], everything: bool) -> Plan {
        let id = "org/name".parse().unwrap();
        let removed = removed.iter().map(|number| keys::manifest(&id, &commit(*number))).collect();
        let options = Options { grace: Duration::from_secs(GRACE), removed, everything, keep_blobs: false };
        plan(&Facts { census, announced, uploads: &[], now: at(NOW) }, &options)
    }

    fn blobs_of(plan: &Plan) -> Vec<BlobId> {
        plan.blobs.iter().map(|one| one.blob).collect()
    }

    #[test]
    fn blobs_go_when_they_are_old_and_nothing_needs_or_announces_them() {
        let old = Some(NOW - GRACE);
        let young = Some(NOW - GRACE + 1);
        let census =
            census(&[(1, old), (2, young), (3, old), (4, None), (5, old), (6, Some(NOW + 5))], &[(1, &[3])], &[]);
        let announced = Subject { blobs: [blob(5)].into(), ..Subject::default() };
        let plan = planned(&census, &announced, &[], true);
        assert_eq!(blobs_of(&plan), [blob(1)]);
        let amount = |blobs| Amount { blobs, bytes: blobs * 10 };
        let kept =
            [(KeepReason::Young, amount(2)), (KeepReason::Announced, amount(1)), (KeepReason::Undated, amount(1))];
        assert_eq!(plan.kept, kept.into());
    }

    #[test]
    fn removing_a_revision_takes_its_refs_and_the_blobs_that_no_other_needs() {
        let old = Some(0);
        let refs = [("refs/org__name/main", 1, 0), ("refs/org__name/v1", 2, 0), ("refs/org__name/gone", 9, 0)];
        let census = census(&[(1, old), (2, old), (3, old)], &[(1, &[1, 2]), (2, &[2])], &refs);
        let plan = planned(&census, &Subject::default(), &[1], false);
        assert_eq!(blobs_of(&plan), [blob(1)], "one is shared, and one is not its own");
        assert_eq!(plan.refs.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["refs/org__name/main"]);
        assert_eq!(plan.manifests.len(), 1);
        // One that a push is publishing stays, with all its blobs.
        let announced = Subject { manifests: [plan.manifests[0].key.clone()].into(), ..Subject::default() };
        let busy = planned(&census, &announced, &[1], false);
        assert_eq!((busy.deletes(), busy.busy), (false, plan.manifests));
    }

    #[test]
    fn dangling_refs_go_unless_they_may_be_another_teams() {
        let refs = [
            ("refs/org__name/main", 1, 0),
            ("refs/org__name/gone", 9, 0),
            ("refs/org__name/new", 9, NOW),
            ("refs/org__name/refs/pr/1", 9, 0),
            ("refs/refs/org__name/main", 9, 0),
            ("refs/team/refs/org__name/main", 9, 0),
            ("refs/team/refs-v2/models--a--b/main", 9, 0),
            ("refs-v2/datasets--org--name/gone", 9, 0),
        ];
        let census = census(&[], &[(1, &[])], &refs);
        let keys = |plan: &Plan| plan.refs.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        let plan = planned(&census, &Subject::default(), &[], true);
        let gone = ["refs/org__name/gone", "refs/org__name/refs/pr/1", "refs-v2/datasets--org--name/gone"];
        assert_eq!(keys(&plan), gone);
        let announced = Subject { refs: [gone[0].to_string()].into(), ..Subject::default() };
        assert_eq!(keys(&planned(&census, &announced, &[], true)), gone[1..]);
        assert!(keys(&planned(&census, &Subject::default(), &[], false)).is_empty());
    }

    #[test]
    fn the_second_plan_only_removes() {
        let first = census(&[(1, Some(0)), (2, Some(0)), (3, Some(0))], &[], &[]);
        let earlier = planned(&first, &Subject::default(), &[], true);
        let second = census(&[(1, Some(0)), (2, Some(1)), (4, Some(0))], &[], &[]);
        let mut plan = planned(&second, &Subject::default(), &[], true);
        plan.limit_to(&earlier);
        assert_eq!(blobs_of(&plan), [blob(1)]);
        assert_eq!(plan.kept[&KeepReason::Changed].blobs, 2);
    }

    proptest! {
        /// Compares the plan with the definition, blob by blob.
        #[test]
        fn no_blob_that_is_needed_young_or_announced_is_ever_deleted(
            times in prop::collection::vec(prop::option::of(NOW - 2 * GRACE..NOW + GRACE), 12),
            needs in prop::collection::vec(prop::collection::vec(0usize..14, 0..5), 0..5),
            announced in prop::collection::btree_set(0usize..14, 0..4),
            removed in prop::collection::btree_set(0usize..5, 0..4),
            busy in prop::option::of(0usize..5),
            everything: bool,
        ) {
            let blobs: Vec<_> = times.iter().copied().enumerate().collect();
            let manifests: Vec<(usize, &[usize])> = needs.iter().map(Vec::as_slice).enumerate().collect();
            let census = census(&blobs, &manifests, &[]);
            let id = "org/name".parse().unwrap();
            let subject = Subject {
                blobs: announced.iter().map(|number| blob(*number)).collect(),
                manifests: busy.iter().map(|number| keys::manifest(&id, &commit(*number))).collect(),
                ..Subject::default()
            };
            let removed: Vec<usize> = removed.into_iter().collect();
            let plan = planned(&census, &subject, &removed, everything);
            let goes = |manifest: &usize| removed.contains(manifest) && busy != Some(*manifest);
            let expected: Vec<BlobId> = blobs
                .iter()
                .filter(|(number, time)| {
                    let needed_by = |gone: bool| {
                        manifests.iter().any(|(manifest, needs)| goes(manifest) == gone && needs.contains(number))
                    };
                    let is_old = time.is_some_and(|time| time + GRACE <= NOW);
                    is_old && !announced.contains(number) && !needed_by(false) && (everything || needed_by(true))
                })
                .map(|(number, _)| blob(*number))
                .collect();
            prop_assert_eq!(blobs_of(&plan), expected);
            let kept: u64 = plan.kept.values().map(|amount| amount.blobs).sum();
            prop_assert!(!everything || kept + plan.amount().blobs + needed(&census, &plan) == blobs.len() as u64);
        }
    }

    /// Returns the refs that go, by definition: those of removed revisions, and old ones that lead nowhere.
    fn expected_refs(census: &Census, announced: &Subject, removed: &[String], everything: bool) -> BTreeSet<String> {
        let goes = |key: &&String| {
            let commit = census.refs[*key].as_ref().unwrap();
            let target = format!("manifests/org__name@{commit}.json");
            let is_there = census.manifests.contains_key(&target);
            let candidate = census.state.refs().iter().find(|one| one.object.key == **key).unwrap();
            let is_old = candidate.object.modified.is_some_and(|time| time + Duration::from_secs(GRACE) <= at(NOW));
            let is_removed = removed.contains(&target) && is_there && !announced.manifests.contains(&target);
            is_removed || (everything && !is_there && is_old && !announced.refs.contains(*key))
        };
        census.refs.keys().filter(goes).cloned().collect()
    }

    proptest! {
        /// Compares refs, mentions and uploads with the definition, for arbitrary buckets.
        #[test]
        fn refs_mentions_and_uploads_follow_the_rules(
            times in prop::collection::vec(NOW - 2 * GRACE..NOW + GRACE, 6),
            targets in prop::collection::vec(0usize..6, 6),
            needs in prop::collection::vec((prop::collection::vec(0usize..8, 0..4), prop::option::of(0usize..8)), 0..4),
            announced_refs in prop::collection::btree_set(0usize..6, 0..3),
            removed in prop::collection::btree_set(0usize..4, 0..3),
            busy in prop::option::of(0usize..4),
            uploads in prop::collection::vec((prop::option::of(NOW - 2 * GRACE..NOW + GRACE), any::<bool>()), 0..4),
            everything: bool,
            keep_blobs: bool,
        ) {
            let names: Vec<String> = (0..6).map(|number| format!("refs/org__name/ref-{number}")).collect();
            let refs: Vec<(&str, usize, u64)> =
                names.iter().zip(&targets).zip(&times).map(|((name, target), time)| (name.as_str(), *target, *time)).collect();
            let blobs: Vec<_> = (0..8).map(|number| (number, Some(0))).collect();
            let manifests: Vec<(usize, &[usize])> =
                needs.iter().enumerate().map(|(number, (blobs, _))| (number, blobs.as_slice())).collect();
            let mut census = census(&blobs, &manifests, &refs);
            let id = "org/name".parse().unwrap();
            for (number, mention) in needs.iter().enumerate().filter_map(|(number, (_, mention))| Some((number, (*mention)?))) {
                let needs = census.manifests.get_mut(&keys::manifest(&id, &commit(number))).unwrap();
                needs.mentions.insert(blob(mention));
            }
            let announced = Subject {
                refs: announced_refs.iter().map(|number| names[*number].clone()).collect(),
                manifests: busy.iter().map(|number| keys::manifest(&id, &commit(*number))).collect(),
                ..Subject::default()
            };
            let removed: Vec<String> = removed.iter().map(|number| keys::manifest(&id, &commit(*number))).collect();
            let unfinished: Vec<Unfinished> = uploads
                .iter()
                .enumerate()
                .map(|(number, (time, is_blob))| Unfinished {
                    key: if *is_blob { keys::blob(&blob(number)) } else { format!("blobs/other-{number}") },
                    id: number.to_string(),
                    started: time.map(at),
                })
                .collect();
            let options = Options {
                grace: Duration::from_secs(GRACE),
                removed: removed.iter().cloned().collect(),
                everything,
                keep_blobs,
            };
            let plan = plan(&Facts { census: &census, announced: &announced, uploads: &unfinished, now: at(NOW) }, &options);
            let gone: BTreeSet<String> = plan.refs.iter().map(|one| one.key.clone()).collect();
            prop_assert_eq!(gone, expected_refs(&census, &announced, &removed, everything));
            // A ref that stays never loses its manifest.
            for one in &plan.manifests {
                prop_assert!(removed.contains(&one.key) && !announced.manifests.contains(&one.key));
            }
            let stays = |key: &&String| !plan.manifests.iter().any(|one| one.key == **key);
            for key in census.manifests.keys().filter(stays) {
                let needs = &census.manifests[key];
                for needed in needs.blobs.keys().chain(&needs.mentions) {
                    prop_assert!(!blobs_of(&plan).contains(needed), "{key} needs {needed}");
                }
            }
            prop_assert!(!keep_blobs || plan.blobs.is_empty());
            let aborted: Vec<String> = plan.uploads.iter().map(|one| one.id.clone()).collect();
            let old: Vec<String> = uploads
                .iter()
                .enumerate()
                .filter(|(_, (time, is_blob))| everything && *is_blob && time.is_some_and(|time| time + GRACE <= NOW))
                .map(|(number, _)| number.to_string())
                .collect();
            prop_assert_eq!(aborted, old);
        }
    }

    /// Returns the number of blobs that remaining manifests need.
    fn needed(census: &Census, plan: &Plan) -> u64 {
        let stays = |key: &String| !plan.manifests.iter().any(|one| one.key == *key);
        let needed: BTreeSet<_> = census
            .manifests
            .iter()
            .filter(|(key, _)| stays(key))
            .flat_map(|(_, needs)| needs.blobs.keys())
            .filter(|blob| census.state.blobs().get(blob).is_some())
            .collect();
        needed.len() as u64
    }
}
