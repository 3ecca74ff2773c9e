//! `traffic`: the rig's servers and clients as a program, for pods. Also what holds a pod's namespaces (`pause`).
//!
//! Reports are JSON, a line each; of a stream, a line of all so far every second, so that a log's last line tells.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use fairlead_e2e::traffic::{Client, Protocol, RequestStream, Server};
use rustix::event::{Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

const SECOND: Duration = Duration::from_secs(1);

/// Serves and asks `who`, over TCP, UDP and SCTP.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answers `who` (and HTTP's GET) with its name, on all addresses
    Serve {
        /// What it answers with [default: the host's name, which is the pod's]
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        tcp: Vec<u16>,
        #[arg(long)]
        udp: Vec<u16>,
        #[arg(long)]
        sctp: Vec<u16>,
        /// Seconds it goes on serving after SIGTERM
        #[arg(long, default_value_t = 0)]
        linger: u64,
    },
    /// Asks once, and prints what became of it; fails when there was no answer
    Ask {
        protocol: Transport,
        to: SocketAddr,
        /// Seconds each step may take
        #[arg(long, default_value_t = 4)]
        patience: u64,
    },
    /// Asks again and again, each time on a new connection
    Requests(Stream),
    /// Asks again and again on one connection, until that breaks
    Hold(Stream),
    /// Does nothing until it is told to end
    Pause,
}

#[derive(clap::Args)]
struct Stream {
    protocol: Transport,
    to: SocketAddr,
    #[arg(long, default_value_t = 20)]
    per_second: u32,
    /// Seconds after which it ends by itself [default: when it is told to]
    #[arg(long = "for")]
    length: Option<u64>,
    /// Seconds each step may take
    #[arg(long, default_value_t = 4)]
    patience: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
            Transport::Sctp => Self::Sctp,
        }
    }
}

fn main() -> ExitCode {
    let done = Args::parse().verb.run();
    done.unwrap_or_else(|error| {
        eprintln!("traffic: error: {error:#}");
        ExitCode::FAILURE
    })
}

impl Verb {
    fn run(self) -> Result<ExitCode> {
        let end = End::on_signals()?;
        match self {
            Self::Serve { name, tcp, udp, sctp, linger } => {
                let host = rustix::system::uname();
                let name = name.unwrap_or_else(|| host.nodename().to_string_lossy().into_owned());
                let _servers =
                    serve(&name, &[(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, sctp)])?;
                while !end.within(SECOND) {}
                thread::sleep(Duration::from_secs(linger));
            }
            Self::Ask { protocol, to, patience } => {
                let outcome = Client::here().limit(Duration::from_secs(patience)).ask(protocol.into(), to);
                println!("{}", serde_json::to_string(&outcome)?);
                if outcome.server().is_none() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Self::Requests(stream) => {
                let running = stream.client().requests(stream.protocol.into(), stream.to, stream.per_second);
                stream.report(running, &end)?;
            }
            Self::Hold(stream) => {
                let running = stream.client().hold(stream.protocol.into(), stream.to, stream.per_second);
                stream.report(running, &end)?;
            }
            Self::Pause => while !end.within(60 * SECOND) {},
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn serve(name: &str, wanted: &[(Protocol, Vec<u16>)]) -> Result<Vec<Server>> {
    let each = wanted.iter().flat_map(|(protocol, ports)| ports.iter().map(|port| (*protocol, *port)));
    let servers: Vec<_> =
        each.map(|(protocol, port)| Server::here(name, protocol, port)).collect::<Result<_>>()?;
    ensure!(!servers.is_empty(), "nothing to serve: name a port with --tcp, --udp or --sctp");
    Ok(servers)
}

impl Stream {
    fn client(&self) -> Client {
        Client::here().limit(Duration::from_secs(self.patience))
    }

    /// Prints what has become of `running` every second, and at its end.
    fn report(&self, running: RequestStream, end: &End) -> Result<()> {
        let start = Instant::now();
        let length = self.length.map(Duration::from_secs);
        while !running.has_ended() {
            let left = length.map_or(SECOND, |length| length.saturating_sub(start.elapsed()));
            if left.is_zero() || end.within(left.min(SECOND)) {
                break;
            }
            println!("{}", serde_json::to_string(&running.so_far())?);
        }
        println!("{}", serde_json::to_string(&running.stop())?);
        Ok(())
    }
}

/// Whether this program was told to end.
struct End(Arc<AtomicBool>);

impl End {
    /// A pod's first process gets no signal that it does not handle.
    fn on_signals() -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&told)).context("failed to handle signals")?;
        }
        Ok(Self(told))
    }

    /// Waits that long, or until it was told to end.
    fn within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.0.load(Ordering::Relaxed) {
                return true;
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            // Ends early on a signal, if this thread is the one that handled it. An idle pod costs an emulated node
            // next to nothing this way.
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [], Some(&left));
        }
    }
}
