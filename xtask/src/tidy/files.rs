//! What holds for every file.

use std::path::Path;

use super::Finding;

/// Lines of a Rust file before it needs a reason.
const MAX_LINES: usize = 800;

/// The plugin has fewer lines of code, since it runs in Slurm's own processes: without tests, comments and empty lines.
const MAX_PLUGIN_LINES: usize = 1500;

/// Where they are.
const PLUGIN: &str = "crates/spank/src";

/// How a longer file explains itself, in its module documentation.
const LONG_MARK: &str = "//! Long on purpose:";

/// Directories in which trees of anybody may be, so that their names say nothing about this machine.
const COMMON_PARENTS: &[&str] = &[
    "/",
    "/home",
    "/root",
    "/tmp",
    "/var",
    "/var/tmp",
    "/opt",
    "/srv",
    "/mnt",
    "/usr",
    "/usr/src",
    "/usr/local",
];

/// Checks that a long file says why.
pub(super) fn check_length(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    let rust = file.extension().is_some_and(|extension| extension == "rs");
    if rust && lines > MAX_LINES && !text.lines().any(|line| line.starts_with(LONG_MARK)) {
        findings.push(format!("{}: {lines} lines: split it, or say why with {LONG_MARK:?}", file.display()));
    }
}

/// Checks that the plugin is small, by the names and texts of `files`.
pub(super) fn check_plugin<'a>(
    files: impl Iterator<Item = (&'a Path, &'a str)>,
    findings: &mut Vec<Finding>,
) {
    let lines: usize =
        files.filter(|(file, _)| file.starts_with(PLUGIN)).map(|(_, text)| lines_of_code(text)).sum();
    if lines >= MAX_PLUGIN_LINES {
        findings.push(format!("{PLUGIN}: {lines} lines of code, not fewer than {MAX_PLUGIN_LINES}"));
    }
}

/// How many lines are code, where the tests are the end of a file.
fn lines_of_code(text: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().take_while(|line| *line != "#[cfg(test)]").filter(is_code).count()
}

/// Checks that a file does not name directories of the machine it was written on.
pub(super) fn check_paths(file: &Path, text: &str, root: &Path, findings: &mut Vec<Finding>) {
    let parent =
        root.parent().filter(|parent| !COMMON_PARENTS.iter().any(|common| *parent == Path::new(common)));
    for dir in [Some(root), parent].into_iter().flatten().filter_map(Path::to_str) {
        if let Some(line) = text.lines().position(|line| names(line, dir)) {
            findings.push(format!("{}:{}: names {dir}, a path of this machine", file.display(), line + 1));
            return;
        }
    }
}

/// Tells whether a line names a directory or something below it: neither `/x/dir` nor `/dirs`
/// name `/dir`.
fn names(line: &str, dir: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '}' | ')');
    line.match_indices(dir).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + dir.len()..].chars().next();
        !before.is_some_and(part) && after.is_none_or(|c| c == '/' || !part(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_need_a_reason() {
        let long = "x\n".repeat(MAX_LINES + 1);
        let table = [
            ("a.rs", long.clone(), 1),
            ("a.rs", format!("{LONG_MARK} one table\n{long}"), 0),
            ("a.rs", "x\n".repeat(MAX_LINES), 0),
            ("a.md", long, 0),
        ];
        for (name, text, want) in table {
            let mut findings = Vec::new();
            check_length(Path::new(name), &text, &mut findings);
            assert_eq!(findings.len(), want, "{name}");
        }
    }

    #[test]
    fn the_plugin_is_counted_as_one() {
        let half = "x\n".repeat(MAX_PLUGIN_LINES / 2 - 1);
        let rest = format!("{half}\n// why\n    /// what\n#[cfg(test)]\nmod tests {{\n    x\n}}\n");
        let table = [
            (vec![("crates/spank/src/a.rs", half.clone()), ("crates/spank/src/b.rs", rest.clone())], 0),
            (vec![("crates/spank/src/a.rs", format!("x\nx\n{half}")), ("crates/spank/src/b.rs", rest)], 1),
            (vec![("crates/spank/src/a.rs", half.clone()), ("crates/sys/src/b.rs", half.repeat(2))], 0),
        ];
        for (files, want) in table {
            let mut findings = Vec::new();
            check_plugin(files.iter().map(|(name, text)| (Path::new(*name), text.as_str())), &mut findings);
            assert_eq!(findings.len(), want, "{findings:?}");
        }
    }

    #[test]
    fn paths_of_the_machine_are_found() {
        let root = Path::new("/build-area/tree");
        let table = [
            ("cd /build-area/tree/crates", 1),
            ("see /build-area/other", 1),
            ("\"/build-area\"", 1),
            ("x/build-area/y", 0),
            ("/build-areas/y", 0),
            ("${DIR}/build-area/y", 0),
            ("nothing", 0),
        ];
        for (text, want) in table {
            let mut findings = Vec::new();
            check_paths(Path::new("f"), text, root, &mut findings);
            assert_eq!(findings.len(), want, "{text}");
        }
        // Below a common directory only the tree itself counts.
        let mut findings = Vec::new();
        check_paths(Path::new("f"), "/tmp/x", Path::new("/tmp/tree"), &mut findings);
        assert!(findings.is_empty());
        check_paths(Path::new("f"), "/tmp/tree/x", Path::new("/tmp/tree"), &mut findings);
        assert_eq!(findings.len(), 1);
    }
}
