//! `webhooks export`: prints the webhooks as a file declares them.

use std::process::ExitCode;

use anyhow::Result;

use super::file::{as_json, as_toml};
use crate::cli::{Common, print, print_json, print_stderr, read};
use crate::domain::declared::Existing;
use crate::store::Store;

/// Exit code 1 if a webhook is left out.
pub(super) fn run(reveal: bool, common: &Common) -> Result<ExitCode> {
    let known = Store::new(&read(&common.settings.0)?)?.declared()?;
    let whole: Vec<&Existing> = known.iter().filter(|known| known.flaw.is_none()).collect();
    if common.output.json {
        print_json(&as_json(&whole, reveal))?;
    } else {
        print(as_toml(&whole, reveal).trim_end())?;
    }
    for Existing { id, flaw, .. } in &known {
        if let Some(flaw) = flaw {
            print_stderr(&format!("{id} is left out: {flaw}"));
        }
    }
    Ok(if whole.len() == known.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
