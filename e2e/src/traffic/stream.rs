//! A stream of requests in the background, and what became of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Client, Conn, Outcome, Protocol};

/// A request that was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it was sent, from the start of the stream.
    #[serde(rename = "atMillis", with = "millis")]
    pub at: Duration,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of the requests of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How many were sent.
    pub sent: u64,
    /// How many were answered.
    pub ok: u64,
    /// Those that were not.
    pub failures: Vec<Failure>,
    /// How many each server answered.
    pub by_server: BTreeMap<String, u64>,
    /// The longest an answered one took: a packet lost and sent again shows here, not among the failures.
    #[serde(rename = "slowestMillis", with = "millis")]
    pub slowest: Duration,
}

impl Report {
    fn add(&mut self, at: Duration, took: Duration, outcome: Outcome) {
        self.sent += 1;
        match outcome {
            Outcome::Answer { server, .. } => {
                self.ok += 1;
                self.slowest = self.slowest.max(took);
                *self.by_server.entry(server).or_default() += 1;
            }
            outcome => self.failures.push(Failure { at, outcome }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} answered (slowest {} ms)", self.sent, self.ok, self.slowest.as_millis())?;
        for Failure { at, outcome } in self.failures.iter().take(10) {
            write!(f, "; at {:.2} s {outcome}", at.as_secs_f32())?;
        }
        match self.failures.len() {
            0..=10 => Ok(()),
            more => write!(f, "; and {} more", more - 10),
        }
    }
}

/// Requests being sent, one at a time: a request that hangs delays those behind it. Ends when it goes out of scope.
#[derive(Debug)]
pub struct RequestStream {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stopped: AtomicBool,
    report: Mutex<Report>,
}

impl State {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestStream {
    /// Asks `client`, each time on a new connection.
    pub(super) fn of_requests(client: Client, protocol: Protocol, to: SocketAddr, per_second: u32) -> Self {
        Self::start(per_second, move || (client.ask(protocol, to), true))
    }

    /// Asks on one connection, until that fails once: what came later would answer an earlier question.
    pub(super) fn on_one_connection(
        client: Client,
        protocol: Protocol,
        to: SocketAddr,
        per_second: u32,
    ) -> Self {
        let mut conn: Option<Conn> = None;
        Self::start(per_second, move || {
            let outcome = match &mut conn {
                Some(conn) => conn.ask(),
                None => match client.connect(protocol, to) {
                    Ok(new) => conn.insert(new).ask(),
                    Err(outcome) => outcome,
                },
            };
            let goes_on = outcome.server().is_some();
            (outcome, goes_on)
        })
    }

    /// Calls `ask` at its pace until it says that there is no more, or the stream is stopped.
    fn start(per_second: u32, mut ask: impl FnMut() -> (Outcome, bool) + Send + 'static) -> Self {
        let state = Arc::new(State::default());
        let pace = Duration::from_secs(1) / per_second.max(1);
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut goes_on = true;
            while goes_on && !shared.stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                let (outcome, more) = ask();
                goes_on = more;
                shared.report().add(sent - start, sent.elapsed(), outcome);
                thread::sleep(pace.saturating_sub(sent.elapsed()));
            }
        });
        Self { state, thread: Some(thread) }
    }

    /// What has become of the requests so far.
    pub fn so_far(&self) -> Report {
        self.state.report().clone()
    }

    /// Whether it has ended by itself: the connection it held broke.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the stream after the request under way.
    pub fn stop(mut self) -> Report {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // a thread that panicked has said so already
            let _ = thread.join();
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.end();
    }
}

/// Durations in JSON: whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_report_counts_answers_by_server_and_keeps_failures_with_their_time() {
        let mut report = Report::default();
        let answer =
            |server: &str| Outcome::Answer { server: server.into(), saw_source: [10, 0, 0, 1].into() };
        let ms = Duration::from_millis;
        report.add(ms(0), ms(3), answer("pod1"));
        report.add(ms(20), ms(2), answer("pod2"));
        report.add(ms(40), ms(900), Outcome::TimedOut);
        report.add(ms(60), ms(1), answer("pod1"));
        assert_eq!((report.sent, report.ok, report.slowest), (4, 3, ms(3)));
        assert_eq!(report.by_server, BTreeMap::from([("pod1".into(), 2), ("pod2".into(), 1)]));
        assert_eq!(report.failures, [Failure { at: ms(40), outcome: Outcome::TimedOut }]);
        assert_eq!(report.to_string(), "4 sent, 3 answered (slowest 3 ms); at 0.04 s timed out");
    }

    #[test]
    fn a_report_survives_the_way_out_of_a_pod() {
        let mut report = Report::default();
        let answer = Outcome::Answer { server: "pod1".into(), saw_source: [10, 0, 0, 1].into() };
        report.add(Duration::ZERO, Duration::from_millis(3), answer);
        report.add(Duration::from_millis(40), Duration::from_millis(1), Outcome::Other("no".into()));
        let line = serde_json::to_string(&report).unwrap();
        assert_eq!(
            line,
            r#"{"sent":2,"ok":1,"failures":[{"atMillis":40,"outcome":{"other":"no"}}],"byServer":{"pod1":1},"slowestMillis":3}"#
        );
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }

    #[test]
    fn a_held_connection_is_asked_until_it_breaks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            for _ in 0..2 {
                connection.read_exact(&mut [0; "who\n".len()]).unwrap();
                connection.write_all(b"server 127.0.0.1 1\n").unwrap();
            }
            connection.read_exact(&mut [0; "who\n".len()]).unwrap();
        });
        let stream = Client::here().hold(Protocol::Tcp, to, 100);
        crate::eventually("the stream ends", Duration::from_secs(20), || stream.has_ended()).unwrap();
        let report = stream.stop();
        assert_eq!((report.sent, report.ok), (3, 2));
        assert_eq!(report.failures.first().map(|failure| &failure.outcome), Some(&Outcome::Reset));
    }
}
