//! Which revision gets which number, which label, and which one has come to its end.

use std::{collections::BTreeSet, sync::Arc};

use fairlead_crds::names::LAST_GOOD_LABEL;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt as _;

/// How many revisions are kept beside those in use.
const HISTORY: usize = 10;

/// What has to become of a revision that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// It is there and the newest.
    Right,
    /// It is there, from earlier: it gets this number.
    Raise(i64),
    /// It is not there: it is made with this number.
    Make(i64),
}

/// The number of a wanted revision: the highest there is, as the DaemonSet controller does it.
pub fn number(name: &str, there: &[Arc<ControllerRevision>]) -> Number {
    let highest_other =
        there.iter().filter(|other| other.name_any() != name).map(|other| other.revision).max();
    let next = highest_other.unwrap_or_default().saturating_add(1);
    match there.iter().find(|revision| revision.name_any() == name) {
        None => Number::Make(next),
        Some(revision) if revision.revision >= next => Number::Right,
        Some(_) => Number::Raise(next),
    }
}

/// The revision that passed its rollout last: the newest of those labelled so.
pub fn last_good(there: &[Arc<ControllerRevision>]) -> Option<String> {
    let labelled = there.iter().filter(|revision| is_last_good(revision));
    labelled.max_by_key(|revision| revision.revision).map(|revision| revision.name_any())
}

/// Whether a revision is labelled as the last good one.
pub fn is_last_good(revision: &ControllerRevision) -> bool {
    revision.labels().get(LAST_GOOD_LABEL).is_some_and(|value| value == "true")
}

/// Revisions that nobody needs any more: beyond the history, and run by no node.
pub fn spent(there: &[Arc<ControllerRevision>], in_use: &BTreeSet<String>) -> Vec<Arc<ControllerRevision>> {
    let mut idle: Vec<_> = there
        .iter()
        .filter(|revision| !in_use.contains(&revision.name_any()) && !is_last_good(revision))
        .cloned()
        .collect();
    idle.sort_by_key(|revision| std::cmp::Reverse(revision.revision));
    idle.split_off(HISTORY.min(idle.len()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn revision(name: &str, number: i64, good: bool) -> Arc<ControllerRevision> {
        let labels = good.then(|| [(LAST_GOOD_LABEL.to_owned(), "true".to_owned())].into());
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() };
        Arc::new(ControllerRevision { metadata, data: None, revision: number })
    }

    #[test]
    fn numbers_grow_and_a_revision_that_is_used_again_gets_a_new_one() {
        assert_eq!(number("a", &[]), Number::Make(1));
        let there = [revision("a", 1, true), revision("b", 2, false)];
        assert_eq!(number("b", &there), Number::Right);
        assert_eq!(number("a", &there), Number::Raise(3));
        assert_eq!(number("c", &there), Number::Make(3));
        assert_eq!(number("a", &[revision("a", 1, true)]), Number::Right);
    }

    #[test]
    fn of_two_that_are_labelled_the_newer_is_the_last_good_one() {
        let there = [revision("a", 4, true), revision("b", 2, true), revision("c", 5, false)];
        assert_eq!(last_good(&there), Some("a".to_owned()));
        assert_eq!(last_good(&[revision("c", 5, false)]), None);
    }

    #[test]
    fn the_oldest_go_and_none_that_is_in_use_or_last_good() {
        let mut there: Vec<_> = (1..=14).map(|n| revision(&format!("r{n}"), n, n == 1)).collect();
        there.reverse();
        let in_use = BTreeSet::from(["r2".to_owned(), "r14".to_owned()]);
        let spent: Vec<_> = spent(&there, &in_use).iter().map(|revision| revision.name_any()).collect();
        assert_eq!(spent, ["r3"]);
        assert!(super::spent(&there[..10], &BTreeSet::new()).is_empty());
    }
}
