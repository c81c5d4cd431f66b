//! `cargo xtask tidy`: the rules of the project that no compiler checks.
//!
//! Every check gives findings and never stops at the first. The tables at the top of each module
//! are the rules themselves; changing one is a change of design and gets a commit of its own.

mod crates;
mod files;

use std::path::PathBuf;

use crate::workspace::{Workspace, tracked_files};

/// One broken rule, as a line for people.
type Finding = String;

/// Runs all checks.
pub(crate) fn run() -> Result<String, String> {
    let workspace = Workspace::load()?;
    let files = tracked_files(&workspace.root)?;
    let mut findings = Vec::new();
    crates::check_tiers(&workspace, &mut findings);
    crates::check_unreachable(&workspace, &mut findings);
    crates::check_unsafe(&workspace, &mut findings)?;
    let lock = read(&workspace.root.join("Cargo.lock"))?;
    crates::check_lock(&lock, &mut findings)?;
    let mut note = String::new();
    match std::fs::read_to_string(workspace.root.join("ARCHITECTURE.md")) {
        Ok(text) => crates::check_architecture(&text, &workspace, &mut findings),
        Err(_) => note.push_str("tidy: ARCHITECTURE.md skipped: there is none yet\n"),
    }
    // A tracked file may be deleted in the working tree; binary files have no lines.
    let read =
        |file: &PathBuf| Some((file.clone(), std::fs::read_to_string(workspace.root.join(file)).ok()?));
    let texts: Vec<(PathBuf, String)> = files.iter().filter_map(read).collect();
    for (file, text) in &texts {
        files::check_length(file, text, &mut findings);
        files::check_paths(file, text, &workspace.root, &mut findings);
    }
    files::check_plugin(texts.iter().map(|(file, text)| (file.as_path(), text.as_str())), &mut findings);
    if findings.is_empty() {
        return Ok(format!(
            "{note}tidy: {} crates and {} files are fine\n",
            workspace.members.len(),
            files.len()
        ));
    }
    let lines: String = findings.iter().map(|finding| format!("tidy: {finding}\n")).collect();
    Err(format!("{note}{lines}tidy: {} findings\n", findings.len()))
}

fn read(path: &std::path::Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}\n", path.display()))
}
