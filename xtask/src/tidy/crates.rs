//! Which crate may depend on what, and where `unsafe` may be.

use toml::Table;

use super::{Finding, read};
use crate::workspace::Workspace;

/// The tiers, from top to bottom, each with its crates without the `situla-` prefix. A crate depends on
/// crates of lower tiers only. ARCHITECTURE.md shows the same table to people.
const TIERS: &[(&str, &[&str])] = &[
    ("dev", &["xtask", "tests"]),
    ("edges", &["situla", "spank"]),
    ("compose", &["engine", "registry"]),
    ("services", &["image", "bindings", "records", "runtime"]),
    ("formats", &["squashfs", "sif", "fuse", "sys"]),
    ("pure", &["oci", "slurm", "edf", "policy", "plan"]),
];

/// Edges allowed within a tier: the Plan holds the policy's verdict and the allocation it was made for.
const SAME_TIER: &[(&str, &str)] = &[("plan", "policy"), ("plan", "slurm")];

/// Crates in whose process nothing may start threads of its own: a threaded process cannot unshare
/// its user namespace, and slurmstepd's children must stay async-signal-safe.
const THREADLESS: &[&str] = &["sys", "runtime", "fuse", "spank"];

/// What would.
const THREADED: &[&str] = &["tokio", "rayon", "rayon-core", "async-std", "smol"];

/// Crates that may hold `unsafe`.
const UNSAFE: &[&str] = &["sys", "spank"];

/// Packages in Cargo.lock, members included. Each is code that runs with our users' rights and that
/// somebody has to follow; raising the cap is a decision, so it is made here.
const MAX_LOCKED: usize = 170;

fn short(package: &str) -> &str {
    package.strip_prefix("situla-").unwrap_or(package)
}

fn tier(name: &str) -> Option<usize> {
    TIERS.iter().position(|(_, crates)| crates.contains(&name))
}

/// Checks that edges go down.
pub(super) fn check_tiers(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for (package, member) in &workspace.members {
        let from = short(package);
        let Some(from_tier) = tier(from) else {
            findings.push(format!("crate {from} is in no tier: add it to xtask and ARCHITECTURE.md"));
            continue;
        };
        for to in member.depends_on.iter().map(|package| short(package)) {
            let allowed =
                tier(to).is_none_or(|to_tier| to_tier > from_tier) || SAME_TIER.contains(&(from, to));
            if !allowed {
                findings.push(format!("crate {from} must not depend on {to}: edges go to a lower tier"));
            }
        }
    }
}

/// Checks that nothing threaded gets into the crates that cannot have it.
pub(super) fn check_unreachable(workspace: &Workspace, findings: &mut Vec<Finding>) {
    for package in workspace.members.keys().filter(|package| THREADLESS.contains(&short(package))) {
        let reachable = workspace.reachable(package);
        for threaded in THREADED.iter().filter(|name| reachable.contains(*name)) {
            findings
                .push(format!("crate {} must not reach {threaded}: it runs single-threaded", short(package)));
        }
    }
}

/// Checks that `unsafe` is forbidden everywhere else.
pub(super) fn check_unsafe(workspace: &Workspace, findings: &mut Vec<Finding>) -> Result<(), String> {
    let root = parse(&read(&workspace.root.join("Cargo.toml"))?)?;
    let inherited = root.get("workspace").and_then(|table| table.get("lints"));
    if !forbids_unsafe(inherited) {
        findings.push("the workspace lints do not forbid unsafe_code".to_owned());
    }
    for (package, member) in &workspace.members {
        let name = short(package);
        let manifest = parse(&read(&member.manifest)?)?;
        let lints = manifest.get("lints");
        let inherits =
            lints.and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) == Some(true);
        if UNSAFE.contains(&name) {
            let documented =
                lints.and_then(|lints| lints.get("clippy")?.get("undocumented_unsafe_blocks")?.as_str());
            if documented != Some("deny") {
                findings
                    .push(format!("crate {name} may hold unsafe and must deny undocumented_unsafe_blocks"));
            }
        } else if !inherits && !forbids_unsafe(lints) {
            findings.push(format!("crate {name} must forbid unsafe_code: inherit the workspace lints"));
        }
    }
    Ok(())
}

fn forbids_unsafe(lints: Option<&toml::Value>) -> bool {
    lints.and_then(|lints| lints.get("rust")?.get("unsafe_code")?.as_str()) == Some("forbid")
}

fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| format!("a manifest is no TOML: {error}\n"))
}

/// Checks the number of locked packages.
pub(super) fn check_lock(lock: &str, findings: &mut Vec<Finding>) -> Result<(), String> {
    let lock = parse(lock)?;
    let count = lock.get("package").and_then(toml::Value::as_array).map_or(0, Vec::len);
    if count > MAX_LOCKED {
        findings.push(format!("Cargo.lock has {count} packages, more than {MAX_LOCKED}"));
    }
    Ok(())
}

/// Checks that ARCHITECTURE.md lists the same crates in the same tiers: rows of a table that begin
/// with the crate's name in backticks, the tier in the second column.
pub(super) fn check_architecture(text: &str, workspace: &Workspace, findings: &mut Vec<Finding>) {
    let mut listed = Vec::new();
    for line in text.lines() {
        let mut cells = line.trim().strip_prefix('|').unwrap_or_default().split('|').map(str::trim);
        let (Some(name), Some(shown)) = (cells.next(), cells.next()) else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).map(short) else {
            continue;
        };
        // Other tables may begin with code too; only rows about tiers or crates are ours.
        let is_tier = TIERS.iter().any(|(tier, _)| *tier == shown);
        if !is_tier && tier(name).is_none() {
            continue;
        }
        listed.push(name);
        let ours = tier(name).map(|tier| TIERS[tier].0);
        if ours != Some(shown) {
            let ours = ours.unwrap_or("no tier");
            findings.push(format!("ARCHITECTURE.md puts crate {name} into {shown}, xtask into {ours}"));
        }
    }
    for package in workspace.members.keys().map(|package| short(package)) {
        if !listed.contains(&package) {
            findings.push(format!("ARCHITECTURE.md does not list crate {package}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    #[test]
    fn crates_of_the_tree_are_in_exactly_one_tier() {
        let mut all: Vec<&str> = TIERS.iter().flat_map(|(_, crates)| crates.iter().copied()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for name in THREADLESS.iter().chain(UNSAFE) {
            assert!(all.contains(name), "{name}");
        }
    }

    #[test]
    fn broken_rules_are_found() {
        let mut workspace = Workspace::load().expect("this workspace");
        let mut findings = Vec::new();
        check_tiers(&workspace, &mut findings);
        check_unreachable(&workspace, &mut findings);
        assert_eq!(findings, Vec::<String>::new(), "the tree itself is tidy");

        let oci = workspace.members.get_mut("situla-oci").expect("a member");
        oci.depends_on.insert("situla-engine".to_owned());
        oci.depends_on.insert("situla-plan".to_owned());
        let stranger = workspace.members.remove("situla-sif").expect("a member");
        workspace.members.insert("situla-utils".to_owned(), stranger);
        check_tiers(&workspace, &mut findings);
        assert_eq!(findings.len(), 3, "{findings:?}");
    }

    #[test]
    fn locks_are_counted() {
        let lock = |n: usize| "[[package]]\nname = \"x\"\n".repeat(n);
        let mut findings = Vec::new();
        check_lock(&lock(MAX_LOCKED), &mut findings).expect("well formed");
        assert!(findings.is_empty());
        check_lock(&lock(MAX_LOCKED + 1), &mut findings).expect("well formed");
        assert_eq!(findings.len(), 1);
        assert!(check_lock("not toml", &mut findings).is_err());
    }

    #[test]
    fn the_table_for_people_must_agree() {
        let workspace = Workspace::load().expect("this workspace");
        let mut table = String::from("| crate | tier | what |\n|---|---|---|\n");
        for package in workspace.members.keys() {
            let name = short(package);
            let tier = tier(name).map_or("none", |tier| TIERS[tier].0);
            table.push_str(&format!("| `{name}` | {tier} | text |\n"));
        }
        let mut findings = Vec::new();
        check_architecture(&format!("{table}| `--flag` | other | table |\n"), &workspace, &mut findings);
        assert_eq!(findings, Vec::<String>::new());
        check_architecture(&table.replace("| `oci` | pure", "| `oci` | formats"), &workspace, &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
        check_architecture("no table", &workspace, &mut findings);
        assert_eq!(findings.len(), 1 + workspace.members.len());
    }
}
