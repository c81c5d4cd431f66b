//! Holds the documentation against the program, and against itself.

use std::fs;
use std::path::{Path, PathBuf};

use situla_records::EngineClass;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// All pages below `directory`, relative to the root, but not what tools leave there.
fn pages_below(directory: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{directory}/{name}");
        if entry.file_type().unwrap().is_dir() {
            pages_below(&path, found);
        } else if name.ends_with(".md") {
            found.push(path.into());
        }
    }
}

fn documentation() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).to_vec();
    pages_below("docs", &mut pages);
    pages
}

/// The targets of the links of a page, without those to other hosts and to places within the page.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| target.split_once('#').map_or(target, |(path, _)| path))
        .collect()
}

#[test]
fn the_reference_of_commands_is_current() {
    let made = crate::commands::manual::markdown(&crate::native::command_tree());
    let committed = page("docs/reference/commands.md");
    assert!(
        committed == made,
        "docs/reference/commands.md is not what the program says; make it anew with\n\n    \
         cargo run -q -p situla -- manual --markdown > docs/reference/commands.md\n"
    );
}

#[test]
fn every_class_of_failure_is_explained() {
    for path in ["docs/administrators/troubleshooting.md", "docs/formats/record.md"] {
        let text = page(path);
        for class in EngineClass::all() {
            let row = format!("| `engine-{}` |", class.name());
            assert!(text.contains(&row), "{path} has no row that begins with {row}");
        }
    }
}

#[test]
fn links_lead_to_files() {
    for path in documentation() {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let directory = root().join(path.parent().unwrap_or(Path::new("")));
        for link in links(&text) {
            assert!(
                directory.join(link).exists(),
                "{} links to {link}, which does not exist",
                path.display()
            );
        }
    }
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let contents = page("docs/SUMMARY.md");
    let listed = links(&contents);
    let mut pages = Vec::new();
    pages_below("docs", &mut pages);
    assert!(pages.len() > 10, "the pages were found");
    for path in pages {
        let path = path.strip_prefix("docs").unwrap().to_str().unwrap().to_owned();
        assert!(
            path == "SUMMARY.md" || listed.contains(&path.as_str()),
            "docs/SUMMARY.md does not list {path}"
        );
    }
}

#[test]
fn links_are_found() {
    assert_eq!(links("a [b](c.md#d) [e](https://f) [g](#h) [i](../j.md)"), ["c.md", "../j.md"]);
}
