//! What is printed with a failed test: the state of the kernel in its nodes, and what its programs said.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::Namespace;

/// What says how a node's dataplane stands. `ipvsadm` would load ip_vs on a kernel that lacks it until then.
const COMMANDS: &[&str] = &[
    "nft list ruleset",
    "ipvsadm -Ln",
    "ipvsadm -Lnc",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "ip addr",
    "conntrack -L",
    "conntrack -L -f ipv6",
];

/// The end of a log that is shown; agents log a line per object at most.
const LOG_LINES: usize = 200;

/// The state of the nodes, then the ends of the logs.
pub fn report(nodes: &[&Namespace], logs: &Path) -> String {
    let mut report = String::new();
    for node in nodes {
        for command in COMMANDS {
            let printed = node.output(command).unwrap_or_else(|error| format!("({error:#})"));
            section(&mut report, &format!("{} # {command}", node.name()), &printed);
        }
    }
    let mut files: Vec<_> =
        fs::read_dir(logs).into_iter().flatten().filter_map(Result::ok).map(|e| e.path()).collect();
    files.sort();
    for file in files {
        let text = fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        section(&mut report, &name, tail(&text.unwrap_or_else(|error| format!("({error})"))));
    }
    report
}

fn section(report: &mut String, title: &str, body: &str) {
    // writing to a String does not fail
    let _ = writeln!(report, "---- {title}\n{}", body.trim_end());
}

fn tail(text: &str) -> &str {
    match text.trim_end().rmatch_indices('\n').nth(LOG_LINES - 1) {
        Some((at, _)) => text.get(at + 1..).unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_is_shown() {
        let lines: Vec<_> = (1..=250).map(|n| format!("line {n}")).collect();
        let text = lines.join("\n") + "\n";
        assert!(tail(&text).starts_with("line 51\n"));
        assert!(tail(&text).ends_with("line 250\n"));
        assert_eq!(tail("line 1\nline 2\n"), "line 1\nline 2\n");
    }
}
