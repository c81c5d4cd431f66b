//! The workspace as `cargo metadata` and git see it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who depends on whom, in the words of the manifests.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Where it is.
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    pub(crate) target: PathBuf,
    /// The members by package name.
    pub(crate) members: BTreeMap<String, Member>,
    /// All packages by id: their names.
    names: BTreeMap<String, String>,
    /// Resolved edges for building (no dev-dependencies), by id.
    edges: BTreeMap<String, BTreeSet<String>>,
}

/// One crate of the workspace.
#[derive(Debug)]
pub(crate) struct Member {
    id: String,
    /// Its Cargo.toml.
    pub(crate) manifest: PathBuf,
    /// Members it depends on, to build and run (not for tests).
    pub(crate) depends_on: BTreeSet<String>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self, String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["metadata", "--format-version", "1", "--locked"]);
        let text = stdout_of(&mut command)?;
        let metadata: Value =
            serde_json::from_str(&text).map_err(|e| format!("cargo metadata is no JSON: {e}\n"))?;
        Self::from_metadata(&metadata).ok_or_else(|| "cargo metadata has an unknown form\n".to_owned())
    }

    fn from_metadata(metadata: &Value) -> Option<Self> {
        let texts = |value: &Value| -> Option<BTreeSet<String>> {
            value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let member_ids = texts(&metadata["workspace_members"])?;
        let mut names = BTreeMap::new();
        let mut manifests = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            let id = package["id"].as_str()?.to_owned();
            manifests.insert(id.clone(), PathBuf::from(package["manifest_path"].as_str()?));
            names.insert(id, package["name"].as_str()?.to_owned());
        }
        let mut edges = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            let mut targets = BTreeSet::new();
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                if kinds.iter().any(|kind| kind["kind"] != "dev") {
                    targets.insert(dependency["pkg"].as_str()?.to_owned());
                }
            }
            edges.insert(node["id"].as_str()?.to_owned(), targets);
        }
        let mut members = BTreeMap::new();
        for id in &member_ids {
            let depends_on = edges.get(id)?.intersection(&member_ids).filter_map(|id| names.get(id)).cloned();
            let member = Member {
                id: id.clone(),
                manifest: manifests.get(id)?.clone(),
                depends_on: depends_on.collect(),
            };
            members.insert(names.get(id)?.clone(), member);
        }
        Some(Self {
            root: metadata["workspace_root"].as_str()?.into(),
            target: metadata["target_directory"].as_str()?.into(),
            members,
            names,
            edges,
        })
    }

    /// Gives the names of all packages that get built into a member.
    pub(crate) fn reachable(&self, member: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&str> =
            self.members.get(member).map(|member| member.id.as_str()).into_iter().collect();
        while let Some(id) = open.pop() {
            for next in self.edges.get(id).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        seen.into_iter().filter_map(|id| self.names.get(id)).map(String::as_str).collect()
    }
}

/// Lists the files that git tracks, relative to the root.
pub(crate) fn tracked_files(root: &Path) -> Result<Vec<PathBuf>, String> {
    let text = stdout_of(Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]))?;
    Ok(text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

/// Runs a command and gives its standard output; its standard error passes through.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {shown}: {error}\n"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}\n", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{shown}: output is not text\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_edges_are_followed_and_test_edges_are_not() {
        let metadata = serde_json::json!({
            "workspace_root": "/w", "target_directory": "/t", "workspace_members": ["a 1", "b 1"],
            "packages": [
                { "id": "a 1", "name": "a", "manifest_path": "/w/a/Cargo.toml" },
                { "id": "b 1", "name": "b", "manifest_path": "/w/b/Cargo.toml" },
                { "id": "x 1", "name": "x", "manifest_path": "/r/x/Cargo.toml" },
                { "id": "y 1", "name": "y", "manifest_path": "/r/y/Cargo.toml" },
            ],
            "resolve": { "nodes": [
                { "id": "a 1", "deps": [
                    { "pkg": "b 1", "dep_kinds": [{ "kind": null }, { "kind": "dev" }] },
                    { "pkg": "y 1", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "b 1", "deps": [{ "pkg": "x 1", "dep_kinds": [{ "kind": "build" }] }] },
                { "id": "x 1", "deps": [] },
                { "id": "y 1", "deps": [] },
            ] },
        });
        let workspace = Workspace::from_metadata(&metadata).expect("well formed");
        assert_eq!(workspace.members["a"].depends_on, ["b".to_owned()].into());
        assert_eq!(workspace.reachable("a"), ["b", "x"].into());
        assert_eq!(workspace.reachable("b"), ["x"].into());
        assert!(Workspace::from_metadata(&serde_json::json!({})).is_none());
    }
}
