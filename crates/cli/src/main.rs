//! The `situla` command and its personalities.
//!
//! Which front end speaks is decided by the name of the program (`apptainer`, `singularity`,
//! `run-singularity`) or by the Slurm plugin, which sends tasks here with variables of its own.
//! This is the edge: it reads the environment, prints, and chooses the exit status.

#![expect(
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    reason = "doc comments of options are help texts, in which brackets mark what may be left out"
)]

mod accounting;
mod apptainer;
mod command_error;
mod commands;
mod credentials;
#[cfg(test)]
mod docs;
mod environment_file;
mod events;
mod image_error;
mod interrupt;
mod native;
mod output;
mod progress;
mod proxy;
mod registries;
mod registry_access;
mod resources;
mod run_options;
mod site;
mod task;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use situla_engine::{EngineError, Exit, Host, Site};

use crate::command_error::CommandError;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().map(PathBuf::from).unwrap_or_default();
    let called = called.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let rest = arguments.into_iter().skip(1).collect::<Vec<_>>();
    if let Some(program) = std::env::var_os(task::PROGRAM) {
        return task::main(program, rest);
    }
    match called.as_str() {
        "apptainer" | "singularity" => apptainer::main(rest),
        "run-singularity" => {
            apptainer::main(["--quiet".into(), "run".into()].into_iter().chain(rest).collect())
        }
        _ => native::main(rest),
    }
}

/// The site's files, where the plugin says they are, or where this program looks for them.
fn load_site() -> Result<Site, EngineError> {
    let executable = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let named = std::env::var_os(task::CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from);
    Site::load(&executable, named.as_deref())
}

/// Facts about the host and the site's decisions, which every use case needs.
struct Context {
    host: Host,
    site: Site,
}

impl Context {
    fn gather() -> Result<Self, CommandError> {
        let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
        let mut site = load_site().map_err(CommandError::site)?;
        site.short_names = Some(registries::short_name);
        Ok(Context { host, site })
    }

    /// Whether this is the first task of a step, or in none: one voice is enough for all.
    fn is_first_task(&self) -> bool {
        let task = self.host.allocation.as_ref().and_then(|allocation| allocation.task);
        task.is_none_or(|task| task.proc_id.0 == 0)
    }
}

/// Ends as the payload did: with its status, or by its signal.
fn end_as(exit: Exit) -> ExitCode {
    match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Exit::Signal(signal) => {
            situla_engine::die_by(signal);
            // The signal did not kill: say what a shell would.
            ExitCode::from(u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX))
        }
    }
}
