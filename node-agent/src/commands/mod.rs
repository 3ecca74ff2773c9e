//! The verbs of the command line, one file each.

mod cleanup;
mod inspect;
mod load_modules;
mod plan;
mod report;
mod run;

use anyhow::Result;

use crate::cli::Command;

/// Carries out a verb; the result is the exit status.
pub fn execute(command: Command) -> Result<std::process::ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Cleanup(args) => cleanup::cleanup(&args),
        Command::LoadModules => load_modules::load_modules(),
    }
}
