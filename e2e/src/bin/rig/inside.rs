//! `rig inside`: what the rig runs of itself in the places it makes.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use fairlead_e2e::cluster::image::store::Import;
use fairlead_e2e::cluster::node::{namespace, prepare::Preparation};

#[derive(Args)]
pub struct Step {
    #[command(subcommand)]
    step: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// Starts process 1 of a namespace node, in namespaces that are there
    Enter,
    /// Process 1 of a namespace node
    Init,
    /// Runs commands in a namespace node
    Serve,
    /// Makes this place a node, as standard input says
    Prepare,
    /// Imports images into containerd's content, as standard input says
    Import,
}

impl Step {
    pub fn run(self) -> Result<ExitCode> {
        match self.step {
            Kind::Enter => namespace::enter(),
            Kind::Init => namespace::init(),
            Kind::Serve => namespace::serve(),
            Kind::Prepare => read::<Preparation>()?.run().map(|()| ExitCode::SUCCESS),
            Kind::Import => read::<Import>()?.inside().map(|()| ExitCode::SUCCESS),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>() -> Result<T> {
    serde_json::from_reader(std::io::stdin()).context("failed to understand what is to be done")
}
