//! Durations as users write and revisions store them: `24h`, `5m30s`, `90s`.
//!
//! A subset of Go's syntax, so that CEL's `duration()` reads the same value: whole hours, minutes
//! and seconds, each at most once and in this order. Also the limits of a duration field, from
//! which both its CEL rules and its check without a cluster are made.

use std::time::Duration;

use kube::core::Rule;
use serde::{Deserialize, Deserializer, Serializer, de, ser};

/// What a duration looks like, for the schema, CEL and `parse`. The number of digits keeps the sum
/// far from the 292 years at which `duration()` itself fails with a message about Go.
pub(crate) const PATTERN: &str =
    r"^([0-9]{1,5}h([0-9]{1,7}m)?([0-9]{1,7}s)?|[0-9]{1,7}m([0-9]{1,7}s)?|[0-9]{1,7}s)$";

/// The longest text that `PATTERN` takes.
pub(crate) const MAX_LENGTH: usize = 6 + 8 + 8;

/// Unit, its seconds, and how many digits may stand before it.
const UNITS: [(char, u64, usize); 3] = [('h', 3600, 5), ('m', 60, 7), ('s', 1, 7)];

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration in hours, minutes and seconds, such as 24h, 5m30s or 90s")]
pub struct InvalidDuration;

/// Reads a duration.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let (mut rest, mut total) = (text, 0);
    for (unit, seconds, digits) in UNITS {
        let Some((number, tail)) = rest.split_once(unit) else { continue };
        if number.len() > digits || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidDuration);
        }
        total += number.parse::<u64>().map_err(|_| InvalidDuration)? * seconds;
        rest = tail;
    }
    if text.is_empty() || !rest.is_empty() {
        return Err(InvalidDuration);
    }
    Ok(Duration::from_secs(total))
}

/// Writes a duration in the largest units that leave none of it out. Parts of a second are cut.
pub fn format(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds, _) in UNITS {
        let number = rest / seconds;
        rest %= seconds;
        if number > 0 {
            text.push_str(&number.to_string());
            text.push(unit);
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// For `#[serde(with = "duration")]`: a stored duration reads back as it was, or is not stored.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let text = format(*duration);
    if parse(&text) != Ok(*duration) {
        return Err(ser::Error::custom(format!(
            "{duration:?} is not a duration of whole seconds below 100000h"
        )));
    }
    serializer.serialize_str(&text)
}

/// For `#[serde(with = "duration")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(|problem| de::Error::custom(format!("{text:?} {problem}")))
}

/// The least and the greatest value of a duration field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    min: Duration,
    max: Duration,
}

impl Limits {
    /// Limits in seconds, both included.
    pub(crate) const fn seconds(min: u64, max: u64) -> Self {
        Self { min: Duration::from_secs(min), max: Duration::from_secs(max) }
    }

    /// Reads a duration within these limits, or says what to write instead.
    pub(crate) fn parse(self, text: &str) -> Result<Duration, String> {
        let duration = parse(text).map_err(|problem| problem.to_string())?;
        if (self.min..=self.max).contains(&duration) { Ok(duration) } else { Err(self.range_message()) }
    }

    /// The rule that the text is a duration, in words that the schema's pattern cannot give.
    pub(crate) fn format_rule() -> Rule {
        Rule::new(format!("self.matches('{PATTERN}')")).message(InvalidDuration.to_string().as_str())
    }

    /// The rule that the duration is within the limits. Silent where the text is no duration:
    /// the API server evaluates every rule, and `duration()` would fail with words of its own.
    pub(crate) fn range_rule(self) -> Rule {
        let (min, max) = (format(self.min), format(self.max));
        Rule::new(format!(
            "!self.matches('{PATTERN}') || (duration(self) >= duration('{min}') && duration(self) <= duration('{max}'))"
        ))
        .message(self.range_message().as_str())
    }

    fn range_message(self) -> String {
        format!("must be between {} and {}", format(self.min), format(self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_hours_minutes_and_seconds() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("5m", 300),
            ("5m30s", 330),
            ("24h", 86_400),
            ("1h5s", 3605),
            ("007m", 420),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in
            ["", "0", "90", "s", "1d", "1.5h", "-1s", "+1s", " 1s", "1s ", "1s2m", "1s2s", "500ms", "1H"]
        {
            assert_eq!(parse(text), Err(InvalidDuration), "{text:?}");
        }
    }

    #[test]
    fn writes_the_largest_units() {
        for (seconds, text) in [(0, "0s"), (90, "1m30s"), (300, "5m"), (3605, "1h5s"), (86_400, "24h")] {
            assert_eq!(format(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn stores_no_duration_that_it_could_not_read_back() {
        let store = |duration| serialize(&duration, serde_json::value::Serializer);
        assert_eq!(store(Duration::from_secs(90)).unwrap(), "1m30s");
        assert!(store(Duration::from_millis(90_500)).is_err());
        assert!(store(Duration::MAX).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in 0..360_000_000u64) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn what_is_read_is_what_the_pattern_takes(text in "[0-9]{0,8}[hms]?[0-9]{0,8}[hms]?[0-9]{0,8}[hms]?") {
            let pattern = serde_json::json!({ "pattern": PATTERN, "maxLength": MAX_LENGTH });
            let taken = jsonschema::is_valid(&pattern, &serde_json::json!(text));
            prop_assert_eq!(parse(&text).is_ok(), taken, "{:?}", text);
        }
    }
}
