//! Requests, counted by who answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use fairlead_e2e::traffic::{Client, Outcome, Protocol};

/// What became of a number of requests, each on a connection of its own.
#[derive(Debug, Default)]
pub struct Tally {
    by_server: BTreeMap<String, u32>,
    sources: BTreeSet<IpAddr>,
    failures: Vec<String>,
}

impl Tally {
    /// Sends `count` requests.
    pub fn of(count: u32, client: &Client, protocol: Protocol, to: SocketAddr) -> Self {
        let mut tally = Self::default();
        for _ in 0..count {
            tally.add(client.ask(protocol, to));
        }
        tally
    }

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answer { server, saw_source } => {
                *self.by_server.entry(server).or_default() += 1;
                self.sources.insert(saw_source);
            }
            other => self.failures.push(other.to_string()),
        }
    }

    /// Whether every request was answered, and by all of `servers` and no other.
    pub fn is_from(&self, servers: &[&str]) -> bool {
        self.servers() == servers.iter().copied().collect() && self.failures.is_empty()
    }

    /// Those that answered.
    pub fn servers(&self) -> BTreeSet<&str> {
        self.by_server.keys().map(String::as_str).collect()
    }

    /// The addresses the servers saw, in words.
    pub fn sources(&self) -> String {
        self.sources.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
    }

    /// How many requests went unanswered.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> =
            self.by_server.iter().map(|(server, count)| format!("{server} {count}x")).collect();
        if !self.failures.is_empty() {
            parts.push(format!("unanswered {}x ({})", self.failures.len(), self.failures.join(", ")));
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(outcomes: &[Option<&str>]) -> Tally {
        let mut tally = Tally::default();
        for outcome in outcomes {
            tally.add(match outcome {
                Some(server) => {
                    Outcome::Answer { server: (*server).to_owned(), saw_source: [10, 0, 0, 1].into() }
                }
                None => Outcome::TimedOut,
            });
        }
        tally
    }

    #[test]
    fn answers_are_counted_by_server() {
        let tally = tally(&[Some("pod1"), Some("pod3"), Some("pod1")]);
        assert_eq!(tally.to_string(), "pod1 2x, pod3 1x");
        assert!(tally.is_from(&["pod3", "pod1"]));
        assert!(!tally.is_from(&["pod1"]));
        assert!(!tally.is_from(&["pod1", "pod2", "pod3"]));
    }

    #[test]
    fn an_unanswered_request_spoils_the_tally() {
        let tally = tally(&[Some("pod1"), None]);
        assert!(!tally.is_from(&["pod1"]));
        assert_eq!(tally.to_string(), "pod1 1x, unanswered 1x (timed out)");
    }
}
