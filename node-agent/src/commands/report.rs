//! Tables for people.

use std::fmt::{self, Write as _};

use crate::dataplane::expected::{Expected, ExpectedPort};

/// What should be programmed, as a table.
pub fn expected(expected: &Expected) -> Result<String, fmt::Error> {
    let mut rows =
        vec![["SERVICE PORT", "VIRTUAL SERVER", "SCHEDULER", "REAL SERVERS"].map(str::to_owned).to_vec()];
    for port in &expected.service_ports {
        port_rows(port, &mut rows);
    }
    let mut text = table(&rows)?;
    if expected.service_ports.is_empty() {
        text.push_str("(no Service is to be programmed)\n");
    }
    Ok(text)
}

fn port_rows(port: &ExpectedPort, rows: &mut Vec<Vec<String>>) {
    let mut name = port.service_port.clone();
    for server in &port.virtual_servers {
        for (index, backend) in server.backends.iter().enumerate() {
            let (key, scheduler) = if index == 0 {
                (server.virtual_server.clone(), server.scheduler.clone())
            } else {
                Default::default()
            };
            rows.push(vec![std::mem::take(&mut name), key, scheduler, backend.to_string()]);
        }
    }
    for rejected in &port.rejected {
        rows.push(vec![std::mem::take(&mut name), rejected.clone(), "-".into(), "none: rejected".into()]);
    }
    if let Some(error) = &port.error {
        rows.push(vec![
            std::mem::take(&mut name),
            "-".into(),
            "-".into(),
            format!("not programmed: {error}"),
        ]);
    }
}

/// Columns aligned by spaces; the last is not padded.
pub fn table(rows: &[Vec<String>]) -> Result<String, fmt::Error> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if index + 1 == row.len() {
                writeln!(text, "{cell}")?;
            } else {
                write!(text, "{cell:<width$}   ")?;
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "b"], ["long", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows).unwrap(), "a      b\nlong   x\n");
    }
}
