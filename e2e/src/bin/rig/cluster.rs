//! The verbs of `rig cluster`.

use std::iter;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, Cut, lifecycle};
use fairlead_e2e::{say, suite};

/// The machine nodes that the tests of a cluster are given.
const TEST_NODES: usize = 3;

/// Brings a real cluster up on this host, and works with it. Needs root.
#[derive(Args)]
pub struct Verbs {
    /// The cluster's folder, removed when it is taken down [default: run/cluster in the cache]
    #[arg(long, global = true, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Makes programs, images and disks ready, and starts nothing
    Build,
    /// Brings a cluster up, which runs until it is taken down
    Up {
        /// Nodes that are machines, with Debian's kernel and IPVS
        #[arg(long, default_value_t = 0)]
        machines: usize,
        /// Nodes that are namespaces, on this host's kernel
        #[arg(long, default_value_t = 0)]
        namespaces: usize,
    },
    /// Brings three machine nodes up, runs the tests of a real cluster there, and takes all down
    Test {
        /// Runs only the tests whose names contain this
        filter: Option<String>,
        /// Runs them on the cluster that is up, and leaves it up
        #[arg(long)]
        here: bool,
    },
    /// Takes the cluster down, also after its supervisor was killed, and checks that nothing is left
    Down,
    /// Tells what is up and how to use it
    Status,
    /// Runs kubectl as the administrator
    Kubectl {
        /// The arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a command in one of the cluster's network namespaces
    Exec {
        place: Place,
        /// The command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Adds nodes, switches them off and on, runs commands there
    #[command(subcommand)]
    Node(NodeVerb),
    /// Takes the API server away, and brings it back
    #[command(subcommand)]
    ApiServer(ApiServerVerb),
    /// Owns a cluster, in the foreground, until SIGTERM or SIGINT
    #[command(hide = true)]
    Serve,
}

#[derive(Subcommand)]
enum NodeVerb {
    /// Adds a node, and waits until it is Ready
    Add {
        name: String,
        #[arg(long)]
        kind: Kind,
    },
    /// Switches a node off, as a power cut does
    Stop { name: String },
    /// Switches a node on again, and waits until it is Ready
    Start { name: String },
    /// Removes a node for good
    Remove { name: String },
    /// Runs a command as root on a node
    Run {
        name: String,
        /// Seconds it may take
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// The command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Subcommand)]
enum ApiServerVerb {
    /// Drops its packets: it is away as behind a dead link
    Cut {
        /// Drops those of this host too
        #[arg(long)]
        everyone: bool,
    },
    /// Ends `cut`
    Restore,
    /// Ends it: connections are refused
    Stop,
    /// Starts it again
    Start,
}

#[derive(Clone, Copy, ValueEnum)]
enum Place {
    /// The control plane's, which is the nodes' router
    Router,
    /// The client's, outside the nodes' subnet
    Client,
}

/// Runs a verb.
pub fn run(verbs: Verbs) -> Result<ExitCode> {
    let folder = verbs.state.map_or_else(lifecycle::default_folder, Ok)?;
    let attach = || Cluster::attach(&folder);
    match verbs.verb {
        Verb::Build => {
            lifecycle::prepare(&[Kind::Machine, Kind::Namespace], &std::env::current_exe()?)?;
        }
        Verb::Up { machines, namespaces } => up(&folder, machines, namespaces)?,
        Verb::Test { filter, here } => return test(&folder, filter.as_deref(), here),
        Verb::Down => down(&folder)?,
        Verb::Status => status(&attach()?)?,
        Verb::Kubectl { arguments } => {
            let error = attach()?.kubectl_command().args(arguments).exec();
            return Err(error).context("failed to start kubectl");
        }
        Verb::Exec { place, command } => return exec(&attach()?, place, &command),
        Verb::Node(verb) => return node(&attach()?, verb),
        Verb::ApiServer(verb) => api_server(&attach()?, &verb)?,
        Verb::Serve => lifecycle::serve(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(folder: &Path, machines: usize, namespaces: usize) -> Result<()> {
    let kinds = iter::repeat_n(Kind::Machine, machines).chain(iter::repeat_n(Kind::Namespace, namespaces));
    let rig = std::env::current_exe()?;
    lifecycle::prepare(&kinds.clone().collect::<Vec<_>>(), &rig)?;
    let start = Instant::now();
    let cluster = lifecycle::up(folder, &rig)?;
    say(format_args!("control plane up after {:.1} s", start.elapsed().as_secs_f32()));
    let specs: Vec<_> = kinds.zip(1..).map(|(kind, n)| Spec::new(&format!("node{n}"), kind)).collect();
    cluster.add_nodes(&specs)?;
    say(format_args!("cluster up after {:.1} s", start.elapsed().as_secs_f32()));
    status(&cluster)
}

fn test(folder: &Path, filter: Option<&str>, here: bool) -> Result<ExitCode> {
    if !here {
        up(folder, TEST_NODES, 0)?;
    }
    let status = suite::test_cluster(folder, filter);
    if !here {
        down(folder)?;
    }
    Ok(exit_code(status?.code()))
}

fn down(folder: &Path) -> Result<()> {
    let start = Instant::now();
    if lifecycle::down(folder)? {
        say(format_args!("cluster down after {:.1} s: nothing is left", start.elapsed().as_secs_f32()));
    } else {
        say(format_args!("no cluster in {}", folder.display()));
    }
    Ok(())
}

fn status(cluster: &Cluster) -> Result<()> {
    let described = cluster.describe()?;
    println!("API server  {}, from here and from the nodes", described.api_server);
    println!("kubectl     KUBECONFIG={} {}", described.kubeconfig.display(), described.kubectl.display());
    println!("logs        {}", cluster.logs().display());
    for (name, node) in described.nodes {
        let [v4, v6] = node.place.address().both();
        println!(
            "node        {name}: {}, {v4}, {v6}, {}",
            node.kind,
            if node.running { "on" } else { "off" }
        );
    }
    cluster.check()
}

fn exec(cluster: &Cluster, place: Place, command: &[String]) -> Result<ExitCode> {
    let namespace = match place {
        Place::Router => cluster.router()?,
        Place::Client => cluster.client()?,
    };
    let [program, arguments @ ..] = command else { anyhow::bail!("an empty command") };
    end_of(cluster.command_in(&namespace, program).args(arguments))
}

/// Runs a command to its end, which is the rig's.
fn end_of(command: &mut Command) -> Result<ExitCode> {
    let status =
        command.status().with_context(|| format!("failed to start {}", command.get_program().display()))?;
    Ok(exit_code(status.code()))
}

/// What does not fit an exit code is a failure all the same.
fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn node(cluster: &Cluster, verb: NodeVerb) -> Result<ExitCode> {
    match verb {
        NodeVerb::Add { name, kind } => cluster.add_node(&Spec::new(&name, kind))?,
        NodeVerb::Stop { name } => cluster.stop_node(&name)?,
        NodeVerb::Start { name } => cluster.start_node(&name)?,
        NodeVerb::Remove { name } => cluster.remove_node(&name)?,
        NodeVerb::Run { name, timeout, command } => {
            let words: Vec<_> = command.iter().map(String::as_str).collect();
            let ran = cluster.run_on(&name, &words, Duration::from_secs(timeout))?;
            print!("{}", ran.stdout);
            eprint!("{}", ran.stderr);
            return Ok(exit_code(Some(ran.status.0)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn api_server(cluster: &Cluster, verb: &ApiServerVerb) -> Result<()> {
    match verb {
        ApiServerVerb::Cut { everyone: true } => cluster.cut_off_api_server(Cut::Everyone),
        ApiServerVerb::Cut { everyone: false } => cluster.cut_off_api_server(Cut::Nodes),
        ApiServerVerb::Restore => cluster.restore_api_server(),
        ApiServerVerb::Stop => cluster.stop_api_server(),
        ApiServerVerb::Start => cluster.start_api_server(),
    }
}
