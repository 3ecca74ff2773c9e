//! `plan`: what would be programmed.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::{Result, anyhow};
use jiff::Timestamp;

use super::report;
use crate::{
    bring_up,
    cli::{Output, PlanArgs},
    dataplane::expected::Expected,
    model::tracker::Model,
    watch,
};

/// Prints what `run` would program.
pub fn plan(args: &PlanArgs) -> Result<ExitCode> {
    let changes = match watch::load(&args.source.manifests, args.source.node_name.clone()) {
        Ok(changes) => changes,
        Err(errors) => {
            for error in &errors {
                eprintln!("{error}");
            }
            return Err(anyhow!("{} problem(s) in {}", errors.len(), args.source.manifests.display()));
        }
    };
    let mut model = Model::new(Timestamp::now());
    for change in changes {
        model.apply(change);
    }
    let expected = expected(&mut model, &BTreeSet::new())?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&expected)?),
        Output::Text => {
            print!("{}", report::expected(&expected)?);
            println!("\n{} elements in the sets of table inet fairlead", expected.elements.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a model says the kernel should hold.
pub(super) fn expected(model: &mut Model, known: &BTreeSet<crate::dataplane::ServerKey>) -> Result<Expected> {
    let rows = model.take_changes().rows;
    let settings = bring_up::settings(model)
        .ok_or_else(|| anyhow!("no configuration: neither a ServiceNetwork nor a Node is known"))?;
    let rows = rows.iter().filter_map(|(name, row)| Some((name, row.as_ref()?)));
    Ok(Expected::of(rows, &settings, known))
}
