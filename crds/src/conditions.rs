//! Conditions of a status: their types, and how they change.
//!
//! The conventions are those of the Kubernetes API and of kstatus: `Ready` is always there,
//! `Reconciling` and `Stalled` only while they are true.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Of a ServiceNetwork: what was asked for holds.
pub const READY: &str = "Ready";
/// Of a ServiceNetwork: on its way to what was asked for.
pub const RECONCILING: &str = "Reconciling";
/// Of a ServiceNetwork: will not get there without the user.
pub const STALLED: &str = "Stalled";
/// Of a ServiceNetworkNode: the revision asked for was read and understood.
pub const ACCEPTED: &str = "Accepted";
/// Of a ServiceNetworkNode: that revision, and every Service, is in the kernel.
pub const PROGRAMMED: &str = "Programmed";
/// Of a ServiceNetworkNode: nothing is wrong on this node.
pub const HEALTHY: &str = "Healthy";

/// The value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can say.
    Unknown,
}

impl Truth {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition as one wants it to be, without the time since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// One of the types above.
    pub type_: &'static str,
    /// Its value.
    pub status: Truth,
    /// One CamelCase word of a closed list.
    pub reason: &'static str,
    /// A sentence, with numbers where there are any.
    pub message: String,
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == Truth::True.as_str())
}

/// The conditions that are to be written where `before` is what is there: those of other types are
/// dropped, and the time of a condition moves only with its value.
pub fn update(
    before: &[Condition],
    wanted: Vec<Wanted>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let time_of = |wanted: &Wanted| {
        let old = find(before, wanted.type_).filter(|old| old.status == wanted.status.as_str());
        old.map_or(Time(now), |old| old.last_transition_time.clone())
    };
    wanted
        .into_iter()
        .map(|wanted| Condition {
            last_transition_time: time_of(&wanted),
            type_: wanted.type_.to_owned(),
            status: wanted.status.as_str().to_owned(),
            reason: wanted.reason.to_owned(),
            message: wanted.message,
            observed_generation: generation,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(status: Truth, message: &str) -> Vec<Wanted> {
        vec![Wanted { type_: READY, status, reason: "AsExpected", message: message.to_owned() }]
    }

    #[test]
    fn the_time_of_a_condition_moves_with_its_value_and_with_nothing_else() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = update(&[], wanted(Truth::False, "0 of 3 nodes"), Some(1), at(10));
        let second = update(&first, wanted(Truth::False, "2 of 3 nodes"), Some(2), at(20));
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!((second[0].message.as_str(), second[0].observed_generation), ("2 of 3 nodes", Some(2)));
        let third = update(&second, wanted(Truth::True, "3 of 3 nodes"), Some(2), at(30));
        assert_eq!(third[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn a_condition_that_is_no_longer_wanted_is_dropped() {
        let stalled = Wanted {
            type_: STALLED,
            status: Truth::True,
            reason: "InvalidSpec",
            message: "spec.proxy".to_owned(),
        };
        let before = update(&[], vec![stalled], Some(1), Timestamp::UNIX_EPOCH);
        assert!(is_true(&before, STALLED));
        let after = update(&before, wanted(Truth::True, "well"), Some(2), Timestamp::UNIX_EPOCH);
        assert!(find(&after, STALLED).is_none() && is_true(&after, READY));
    }
}
