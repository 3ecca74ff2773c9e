//! Looks whether another program answers on kube-proxy's ports. Must run before ours are bound.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::conflicts::Conflict;

/// A kube-proxy on this node answers at once; one that does not is as good as none for a client.
const PATIENCE: Duration = Duration::from_secs(1);
/// More than any answer we look at.
const ANSWER: usize = 4096;

/// Something to ask.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Where.
    pub address: SocketAddr,
    /// What for.
    pub path: &'static str,
}

/// What to ask on a node, with the ports that our own servers will take.
pub fn probes(metrics_port: u16, health_port: u16) -> Vec<Probe> {
    let localhost = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    localhost
        .into_iter()
        .flat_map(|ip| {
            [
                Probe { address: SocketAddr::new(ip, metrics_port), path: "/proxyMode" },
                Probe { address: SocketAddr::new(ip, health_port), path: "/healthz" },
            ]
        })
        .collect()
}

/// The ports on which somebody answers.
pub fn answers(probes: &[Probe]) -> Vec<Conflict> {
    probes.iter().filter_map(ask).collect()
}

fn ask(probe: &Probe) -> Option<Conflict> {
    let &Probe { address, path } = probe;
    // Refused, timed out, or no such family on this host: nobody is there.
    let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    let answer = match get(stream, path) {
        Some(body) if path == "/proxyMode" => format!("its proxy mode is {body}"),
        Some(body) if body.contains("\"lastUpdated\"") => "it reports the health of a proxy".to_owned(),
        // The port is taken whoever it is, and health checks of load balancers would be told by it.
        _ => "it does not answer like kube-proxy".to_owned(),
    };
    Some(Conflict::KubeProxyAnswers { address, answer })
}

/// The body of a small text answer, whatever its status (an unhealthy kube-proxy answers 503).
fn get(mut stream: TcpStream, path: &str) -> Option<String> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    // In one piece: a server that answers before it has read all resets the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let answer = String::from_utf8(read(stream)).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let body = body.trim();
    // "404 page not found" is an answer of something else.
    let plausible = head.starts_with("HTTP/") && !head.contains(" 404 ") && body.len() <= 1024;
    (plausible && !body.chars().any(char::is_control)).then(|| body.to_owned())
}

/// What the peer says until it ends, or has said enough, or for too long.
fn read(mut stream: TcpStream) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    while answer.len() < ANSWER && Instant::now() < deadline {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use rstest::rstest;

    use super::*;

    /// A server that gives one client this answer.
    fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[rstest]
    #[case("/proxyMode", "HTTP/1.0 200 OK\r\n\r\nnftables", "its proxy mode is nftables")]
    #[case(
        "/healthz",
        "HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n{\"lastUpdated\": \"2026-01-01 00:00:00\"}",
        "it reports the health of a proxy"
    )]
    #[case(
        "/proxyMode",
        "HTTP/1.0 404 Not Found\r\n\r\n404 page not found",
        "it does not answer like kube-proxy"
    )]
    #[case("/healthz", "SSH-2.0-OpenSSH_9.2\r\n", "it does not answer like kube-proxy")]
    fn whoever_answers_is_a_conflict(
        #[case] path: &'static str,
        #[case] says: &'static str,
        #[case] told: &str,
    ) {
        let address = server(says);
        let found = answers(&[Probe { address, path }]);
        assert_eq!(found, [Conflict::KubeProxyAnswers { address, answer: told.into() }]);
    }

    #[test]
    fn a_port_that_accepts_and_says_nothing_is_taken_and_holds_us_up_for_a_moment_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = answers(&[Probe { address, path: "/healthz" }]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_port_without_a_listener_is_free() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(answers(&[Probe { address, path: "/healthz" }]), []);
    }

    #[test]
    fn both_families_and_both_ports_are_asked() {
        let asked: Vec<_> = probes(10249, 10256).iter().map(|p| format!("{}{}", p.address, p.path)).collect();
        assert_eq!(
            asked,
            [
                "127.0.0.1:10249/proxyMode",
                "127.0.0.1:10256/healthz",
                "[::1]:10249/proxyMode",
                "[::1]:10256/healthz"
            ]
        );
    }
}
