//! `load-modules`: the kernel modules that the agent will need, loaded by somebody who may.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    error::chain,
    preflight::{
        kernel_version,
        modules::{Loader, Presence},
    },
};

/// Loads all modules and prints what came of each. That one is missing is no failure: a pod whose init
/// container fails never starts, and the agent could not tell what is missing.
pub fn load_modules() -> Result<ExitCode> {
    let release = kernel_version::release().context("failed to read the kernel's release")?;
    for (module, result) in Loader::of_host(&release).load_all() {
        match result {
            Ok(Presence::Already) => println!("{module}: there already"),
            Ok(Presence::Loaded) => println!("{module}: loaded"),
            Err(problem) => println!("{module}: missing: {}", chain(&problem)),
        }
    }
    Ok(ExitCode::SUCCESS)
}
