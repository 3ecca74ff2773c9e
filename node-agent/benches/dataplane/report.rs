//! Numbers, as JSON lines while they come and as a Markdown table at the end.

use std::{fmt, time::Duration};

use serde::Serialize;

/// One number.
#[derive(Serialize)]
struct Line {
    measure: &'static str,
    services: u32,
    statistic: &'static str,
    value: f64,
    unit: &'static str,
    samples: usize,
}

/// All numbers of a run.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Adds the median of a few long runs.
    pub fn median(&mut self, measure: &'static str, services: u32, times: &[Duration]) -> Duration {
        let median = quantile(times, 50);
        self.add(measure, services, "median", millis(median), "ms", times.len());
        median
    }

    /// Adds median, 99th percentile and maximum of many short runs.
    pub fn percentiles(&mut self, measure: &'static str, services: u32, times: &[Duration]) {
        for (statistic, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
            let value = millis(quantile(times, percent));
            self.add(measure, services, statistic, value, "ms", times.len());
        }
    }

    /// Adds one number.
    pub fn add(
        &mut self,
        measure: &'static str,
        services: u32,
        statistic: &'static str,
        value: f64,
        unit: &'static str,
        samples: usize,
    ) {
        let line = Line { measure, services, statistic, value, unit, samples };
        if let Ok(json) = serde_json::to_string(&line) {
            println!("{json}");
        }
        self.lines.push(line);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measure | services x 5 | statistic | value | samples |")?;
        writeln!(f, "|---|---:|---|---:|---:|")?;
        for Line { measure, services, statistic, value, unit, samples } in &self.lines {
            writeln!(f, "| {measure} | {services} | {statistic} | {value:.2} {unit} | {samples} |")?;
        }
        Ok(())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The smallest value that `percent` of all are not above.
fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
