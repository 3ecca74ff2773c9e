//! The verbs of `rig cluster`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use fairlead_e2e::cluster::{Cluster, Cut, lifecycle, programs};
use fairlead_e2e::{packages, say};

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
    /// Makes the programs ready, and starts nothing
    Build,
    /// Brings a cluster up, which runs until it is taken down
    Up,
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
    /// Takes the API server away, and brings it back
    #[command(subcommand)]
    ApiServer(ApiServerVerb),
    /// Owns a cluster, in the foreground, until SIGTERM or SIGINT
    #[command(hide = true)]
    Serve,
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
            programs::ensure()?;
        }
        Verb::Up => up(&folder)?,
        Verb::Down => down(&folder)?,
        Verb::Status => status(&attach()?)?,
        Verb::Kubectl { arguments } => {
            let error = attach()?.kubectl_command().args(arguments).exec();
            return Err(error).context("failed to start kubectl");
        }
        Verb::Exec { place, command } => return exec(&attach()?, place, &command),
        Verb::ApiServer(verb) => api_server(&attach()?, &verb)?,
        Verb::Serve => lifecycle::serve(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(folder: &Path) -> Result<()> {
    packages::ensure(&[packages::TOOLS])?;
    let start = Instant::now();
    let cluster = lifecycle::up(folder, &std::env::current_exe()?)?;
    say(format_args!("cluster up after {:.1} s", start.elapsed().as_secs_f32()));
    status(&cluster)
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
    // what does not fit an exit code is a failure all the same
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
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
