//! The agent under test, as an operator of the node sees it: a process, two HTTP ports, and what `ipvsadm` says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_e2e::ns::{Namespace, Process, Topology};

/// `/readyz` and `/metrics` are here.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// The agent's start on a slow machine, modules loaded for the first time.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The agent's program, with the folders it is run with on node1.
#[derive(Debug)]
pub struct Agent<'a> {
    topology: &'a Topology,
    program: PathBuf,
    manifests: PathBuf,
    state: PathBuf,
}

impl<'a> Agent<'a> {
    /// Prepares to run `program`.
    pub fn new(topology: &'a Topology, program: &Path, manifests: &Path) -> Result<Self> {
        let state = topology.scratch("state")?;
        Ok(Self { topology, program: program.to_owned(), manifests: manifests.to_owned(), state })
    }

    /// Starts it.
    pub fn start(&self) -> Result<Process> {
        let mut command = self.topology.node1.command(&self.program);
        command.arg("run").arg("--manifests").arg(&self.manifests).arg("--state-dir").arg(&self.state);
        // The rest are its defaults; the state directory of a real node is /var/lib/fairlead.
        self.topology.start("agent", &mut command)
    }

    /// Waits until `/readyz` says yes; returns how long that took.
    pub fn wait_ready(&self, process: &mut Process) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let answer = self.get("/readyz");
            if answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
                return Ok(start.elapsed());
            }
            if !process.is_running()? {
                bail!("the agent has ended; its log:\n{}", process.log());
            }
            if start.elapsed() > START_LIMIT {
                let said = answer
                    .map_or_else(|error| format!("{error:#}"), |(status, body)| format!("{status} {body}"));
                bail!("the agent is not ready after {} s: {said}", START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        match self.get("/metrics")? {
            (200, body) => Ok(body),
            (status, body) => bail!("/metrics answered {status}: {body}"),
        }
    }

    /// Whether anybody answers on the agent's port.
    pub fn answers(&self) -> bool {
        self.get("/readyz").is_ok()
    }

    /// Runs `inspect`; fails when it finds a difference.
    pub fn inspect(&self) -> Result<String> {
        let mut command = self.topology.node1.command(&self.program);
        let output = command.arg("inspect").arg("--state-dir").arg(&self.state).output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("inspect ended with {}:\n{}{}", output.status, said(&output.stdout), said(&output.stderr));
        }
        Ok(said(&output.stdout))
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        self.topology.node1.run(|| get(METRICS, path))?
    }
}

/// A virtual server as `ipvsadm` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Its scheduler.
    pub scheduler: String,
    /// Its real servers with their weights.
    pub backends: Vec<(SocketAddr, u32)>,
    /// The lines themselves.
    pub text: String,
}

impl VirtualServer {
    /// Reads the TCP virtual server of an address.
    pub fn tcp(node: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::parse(&node.output(&format!("ipvsadm -Ln -t {address}"))?)
    }

    /// The connections it has scheduled since it was made.
    pub fn connections(node: &Namespace, address: SocketAddr) -> Result<u64> {
        let printed = node.output(&format!("ipvsadm -Ln --stats --exact -t {address}"))?;
        let line = printed.lines().find(|line| line.starts_with("TCP"));
        let count = line.and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
        count.with_context(|| format!("ipvsadm prints no count of connections:\n{printed}"))
    }

    fn parse(printed: &str) -> Result<Self> {
        let mut lines = printed.lines().skip_while(|line| !line.starts_with("TCP"));
        let head =
            lines.next().with_context(|| format!("ipvsadm lists no such virtual server:\n{printed}"))?;
        let scheduler = head.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let mut text = head.trim_end().to_owned();
        let mut backends = Vec::new();
        for line in lines {
            let mut words = line.split_whitespace().skip(1);
            let (address, weight) = (words.next(), words.nth(1));
            let backend = address.and_then(|address| Some((address.parse().ok()?, weight?.parse().ok()?)));
            backends
                .push(backend.with_context(|| format!("ipvsadm prints a line that is no backend: {line}"))?);
            text = text + "\n" + line.trim_end();
        }
        Ok(Self { scheduler, backends, text })
    }

    /// The weight of a backend, if it is there.
    pub fn weight(&self, backend: SocketAddr) -> Option<u32> {
        self.backends.iter().find(|(address, _)| *address == backend).map(|(_, weight)| *weight)
    }
}

/// A GET over HTTP/1.1 from the namespace of the calling thread: the status and the body.
fn get(to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("failed to read the answer to GET {path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer without a body")?;
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("an HTTP answer without a status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_server_is_read_from_ipvsadms_lines() {
        let printed = "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  [fd00:96::10]:80 sh
  -> [fd00:244:1::2]:8080         Masq    1      0          3
  -> [fd00:244:2::2]:8080         Masq    0      1          0
";
        let server = VirtualServer::parse(printed).unwrap();
        assert_eq!(server.scheduler, "sh");
        assert_eq!(server.weight("[fd00:244:1::2]:8080".parse().unwrap()), Some(1));
        assert_eq!(server.weight("[fd00:244:2::2]:8080".parse().unwrap()), Some(0));
        assert_eq!(server.weight("[fd00:244:1::3]:8080".parse().unwrap()), None);
    }

    #[test]
    fn no_virtual_server_is_an_error() {
        assert!(VirtualServer::parse("Prot LocalAddress:Port Scheduler Flags\n").is_err());
    }
}
