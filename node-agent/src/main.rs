//! `fairlead-node-agent`: see `cli` for the verbs.

use std::process::ExitCode;

use clap::Parser;
use fairlead_node_agent::{
    cli::{Cli, LogFormat},
    commands, memory,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    memory::prepare();
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {:?} is no filter: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    match commands::execute(cli.command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
