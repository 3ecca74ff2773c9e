//! What is asked of a cluster's supervisor: a line of JSON each way, over a socket in its folder.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::network::{Place, Subnet};
use super::node::{Kind, Spec};

/// The socket, in the state folder.
pub const SOCKET: &str = "socket";
/// The description, in the state folder.
pub const DESCRIPTION: &str = "cluster.json";

/// A running cluster, as its folder tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// The cluster's id, unlike any other's on this host, now or before.
    pub id: String,
    /// The supervisor's process.
    pub pid: u32,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The program kubectl.
    pub kubectl: PathBuf,
    /// The subnet of the nodes.
    pub subnet: Subnet,
    /// The API server.
    pub api_server: String,
    /// The namespace of the control plane, which is the nodes' router, by its path.
    pub router: String,
    /// The namespace of the client outside, by its path.
    pub client: String,
    /// The images that are on every node, by their short names; none before the first node is.
    pub images: BTreeMap<String, String>,
    /// The nodes, by name.
    pub nodes: BTreeMap<String, NodeState>,
}

/// A node of a [`Description`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    /// What it is made of.
    pub kind: Kind,
    /// Its addresses.
    pub place: Place,
    /// Whether it is on.
    pub running: bool,
}

impl Description {
    /// Reads the description in a state folder; none when no cluster is up there.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(DESCRIPTION);
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let read = serde_json::from_str(&text);
                read.map(Some).with_context(|| format!("failed to read {}", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", file.display())),
        }
    }
}

/// What a supervisor is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Fails if a program of the control plane has ended that was not stopped.
    Check,
    /// Ends the API server.
    StopApiServer,
    /// Starts the API server, and answers once it serves.
    StartApiServer,
    /// Makes a kubeconfig `<file>.kubeconfig` for a user, of a group or of none; answers with its path.
    Kubeconfig {
        /// The name of the file, without `.kubeconfig`.
        file: String,
        /// The user.
        user: String,
        /// The group.
        group: Option<String>,
    },
    /// Adds a node, and answers once it is Ready.
    AddNode(Spec),
    /// Switches a node on, and answers once it is Ready.
    StartNode(String),
    /// Switches a node off.
    StopNode(String),
    /// Removes a node for good.
    RemoveNode(String),
    /// Runs a command on a node; answers with how it ended and what it printed.
    RunOnNode {
        /// The node.
        name: String,
        /// The command.
        argv: Vec<String>,
        /// How long it may take.
        limit: Duration,
    },
}

type Answer = std::result::Result<serde_json::Value, String>;

/// Asks the supervisor of a folder, and waits for its answer however long that takes.
pub fn ask<T: DeserializeOwned>(folder: &Path, request: &Request) -> Result<T> {
    let socket = folder.join(SOCKET);
    let mut stream = UnixStream::connect(&socket).with_context(|| {
        format!("failed to reach the cluster at {}: see `rig cluster status`", socket.display())
    })?;
    send(&mut stream, request)?;
    let answer: Answer = receive(&stream)?.context("the cluster's supervisor ended")?;
    let value = answer.map_err(|error| anyhow!("{error}"))?;
    serde_json::from_value(value).context("failed to read what the cluster's supervisor answers")
}

/// Answers one request of a client.
pub fn answer(
    mut stream: &UnixStream,
    handle: impl FnOnce(Request) -> Result<serde_json::Value>,
) -> Result<()> {
    let Some(request) = receive(stream)? else { return Ok(()) };
    let answer: Answer = handle(request).map_err(|error| format!("{error:#}"));
    send(&mut stream, &answer)
}

fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).context("failed to write to the cluster's socket")
}

fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<Option<T>> {
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    if read.context("failed to read from the cluster's socket")? == 0 {
        return Ok(None);
    }
    if !line.ends_with('\n') {
        bail!("the line from the cluster's socket is cut off");
    }
    serde_json::from_str(&line).context("failed to understand a line of the cluster's socket").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_and_an_error_come_back_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let handle = |request| match request {
                    Request::Kubeconfig { file, .. } => Ok(serde_json::json!(format!("/{file}"))),
                    other => bail!("not {other:?}"),
                };
                answer(&stream.unwrap(), handle).unwrap();
            }
        });
        let kubeconfig = Request::Kubeconfig { file: "alice".into(), user: "alice".into(), group: None };
        assert_eq!(ask::<String>(folder.path(), &kubeconfig).unwrap(), "/alice");
        let refused = ask::<()>(folder.path(), &Request::StopApiServer).unwrap_err();
        assert_eq!(refused.to_string(), "not StopApiServer");
        server.join().unwrap();
    }
}
