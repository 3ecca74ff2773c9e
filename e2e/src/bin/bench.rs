//! `bench`: builds agent and benchmark as they are released, runs them in the machine, and writes down
//! what they measured and where. Boots the machine through `rig`, which is built beside it
//! (`cargo build -p fairlead-e2e --bins`).

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use fairlead_e2e::process::output_of;
use fairlead_e2e::{say, suite};
use serde::Deserialize;

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");
const CRATE: &str = "fairlead-node-agent";
const BENCHMARK: &str = "dataplane";

/// Measures the dataplane on a real IPVS kernel and writes e2e/bench/RESULTS.md and results.jsonl.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Seconds it may take, once the machine is up
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Runs on this host: needs root and a kernel with ip_vs
    #[arg(long)]
    host: bool,
    /// Arguments of the benchmark, after `--`; nothing is written down then
    #[arg(last = true)]
    benchmark: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    say("building agent and benchmark, optimised: this takes minutes when nothing is built yet");
    let agent = built(&["build", "--release", "-p", CRATE, "--bins"], CRATE)?;
    let benchmark = built(&["bench", "--no-run", "-p", CRATE, "--bench", BENCHMARK], BENCHMARK)?;
    let script = format!(
        "set -e; uname -sr; export FAIRLEAD_AGENT='{}' TMPDIR=/run; exec '{}' \"$@\"",
        agent.display(),
        benchmark.display()
    );
    let mut command = if args.host {
        Command::new("sh")
    } else {
        let rig = std::env::current_exe()?.with_file_name("rig");
        let mut command = Command::new(rig);
        command.args(["machine", "run", "--timeout", &args.timeout.to_string(), "--", "sh"]);
        command
    };
    command.args(["-c", &script, BENCHMARK]).args(&args.benchmark);
    let output = Output::of(&mut command)?;
    if args.benchmark.is_empty() {
        let folder = Path::new(FOLDER).join("bench");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("results.jsonl"), &output.json)?;
        fs::write(folder.join("RESULTS.md"), page(args.host, &output)?)?;
        say(format_args!("written to {}", folder.join("RESULTS.md").display()));
    }
    Ok(())
}

/// The program that cargo built.
fn built(args: &[&str], name: &str) -> Result<PathBuf> {
    let messages = suite::cargo(args)?;
    program(&messages, name)?.with_context(|| format!("cargo built no program {name}"))
}

fn program(messages: &str, name: &str) -> Result<Option<PathBuf>> {
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("failed to read a message of cargo")?;
        if message.target.is_some_and(|target| target.name == name) && message.executable.is_some() {
            return Ok(message.executable);
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// What the benchmark printed, shown as it came.
#[derive(Default)]
struct Output {
    kernel: String,
    json: String,
    markdown: String,
}

impl Output {
    fn of(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("failed to start the benchmark")?;
        let stdout = child.stdout.take().context("a child without a standard output")?;
        let mut output = Self::default();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            output.take(&line);
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("the benchmark failed ({status})");
        }
        Ok(output)
    }

    fn take(&mut self, line: &str) {
        let to = match line.chars().next() {
            Some('{') => &mut self.json,
            Some('|') => &mut self.markdown,
            Some(_) if self.kernel.is_empty() => &mut self.kernel,
            _ => return,
        };
        to.push_str(line);
        to.push('\n');
    }
}

fn page(host: bool, output: &Output) -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("failed to read /proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let date = output_of(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let place =
        if host { "this host" } else { "the rig's QEMU machine; `make bench` says KVM or TCG (emulation)" };
    let mut page = String::from("# Benchmarks\n\n");
    writeln!(page, "Written by `make bench` on {}. The same numbers as JSON: results.jsonl.\n", date.trim())?;
    writeln!(page, "- CPU: {}, {cores} cores", model.trim_start_matches([' ', '\t', ':']))?;
    writeln!(page, "- kernel: {}, in {place}", output.kernel.trim())?;
    writeln!(page, "- state directory in memory: the cost of a disk's fsync is not in these numbers\n")?;
    page.push_str(&output.markdown);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_by_how_they_begin() {
        let mut output = Output::default();
        for line in ["Linux 6.1.0", "{\"value\":1}", "", "| a | b |"] {
            output.take(line);
        }
        assert_eq!(output.kernel, "Linux 6.1.0\n");
        assert_eq!(output.json, "{\"value\":1}\n");
        assert_eq!(output.markdown, "| a | b |\n");
    }

    #[test]
    fn the_program_is_taken_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"dataplane"},"executable":"/t/dataplane-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(program(messages, "dataplane").unwrap(), Some("/t/dataplane-1".into()));
        assert_eq!(program(messages, "other").unwrap(), None);
    }
}
