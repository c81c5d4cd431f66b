//! `cargo xtask dist`: what a site installs, in `<target>/dist`.
//!
//! * `situla`: one static program (glibc linked in), because the task enters containers whose libc is
//!   another one, and because it must start without a dynamic loader's half millisecond. It is linked
//!   at a fixed address: relocating a position-independent one touches forty pages before `main`, a
//!   tenth of a millisecond of every start. What ASLR of the program's own code would protect from,
//!   an image that takes over a decoder, gains the rights of the user whose programs the image
//!   brings anyway; stack, heap and mappings are still placed at random. Where the C library is of a
//!   known release, its start asks the processor nothing (`crates/sys/src/start.rs`).
//! * `spank_situla.so`: the plugin. Its Slurm symbols exist only in the program that loads it and
//!   differ per program (srun, slurmstepd, slurmd), so they must stay lazily bound: full RELRO, the
//!   default, would resolve all of them at load time and fail.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::elf;
use crate::workspace::{Workspace, stdout_of};

/// One thing to build.
struct Build {
    package: &'static str,
    profile: &'static str,
    rustflags: &'static str,
    /// Features that need a C library of a release in [`KNOWN_GLIBC`].
    features_with_known_glibc: &'static str,
    /// What cargo calls the result.
    artifact: &'static str,
    /// What a site calls it.
    name: &'static str,
    check: fn(elf::Facts) -> Result<(), &'static str>,
}

const BUILDS: [Build; 2] = [
    Build {
        package: "situla",
        profile: "release",
        rustflags: "-C target-feature=+crt-static -C relocation-model=static",
        features_with_known_glibc: "own-start",
        artifact: "situla",
        name: "situla",
        check: check_static,
    },
    Build {
        package: "situla-spank",
        profile: "plugin",
        rustflags: "-C relro-level=partial",
        features_with_known_glibc: "",
        artifact: "libspank_situla.so",
        name: "spank_situla.so",
        check: check_lazy,
    },
];

/// Releases of glibc whose start `crates/sys/src/start.rs` repeats. With another one the program starts as every
/// static program does, which costs most of a millisecond under a hypervisor.
const KNOWN_GLIBC: [&str; 1] = ["glibc 2.36"];

/// The name of a function in the same object as glibc's start, as a table of symbols has it.
const START_OF_GLIBC: &[u8] = b"\0__libc_start_call_main\0";

/// Builds, checks and copies both.
pub(crate) fn run() -> Result<String, String> {
    let workspace = Workspace::load()?;
    let triple = host_triple()?;
    let dist = workspace.target.join("dist");
    std::fs::create_dir_all(&dist).map_err(|error| format!("cannot create {}: {error}\n", dist.display()))?;
    // The static library comes from the same package as the running one.
    let glibc = stdout_of(Command::new("getconf").arg("GNU_LIBC_VERSION")).unwrap_or_default();
    // The start is written for one processor.
    let known = triple.starts_with("x86_64-") && KNOWN_GLIBC.contains(&glibc.trim());
    let mut report = String::new();
    if !known {
        report
            .push_str(&format!("dist: the C library is `{}`: it starts the program itself\n", glibc.trim()));
    }
    for build in &BUILDS {
        let installed = one(build, &workspace, &triple, &dist, known)?;
        report.push_str(&format!("dist: {}\n", installed.display()));
        if known && !build.features_with_known_glibc.is_empty() {
            report.push_str(&start_order(&workspace, &installed)?);
        }
    }
    Ok(report)
}

fn one(
    build: &Build,
    workspace: &Workspace,
    triple: &str,
    dist: &Path,
    known_glibc: bool,
) -> Result<PathBuf, String> {
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(&workspace.root)
        .args(["build", "--locked", "--package", build.package, "--profile", build.profile])
        // Naming the target keeps the flags away from build scripts and procedural macros.
        .args(["--target", triple])
        .env(&variable, build.rustflags)
        // Either of these would win over the variable above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if known_glibc {
        command.args(["--features", build.features_with_known_glibc]);
    }
    stdout_of(&mut command).map_err(|why| match build.features_with_known_glibc {
        "" => why,
        _ => format!(
            "{why}if it was the linker, and that is not LLD: SITULA_START_ORDER=off cargo xtask dist\n"
        ),
    })?;

    let built = workspace.target.join(triple).join(build.profile).join(build.artifact);
    let bytes =
        std::fs::read(&built).map_err(|error| format!("cannot read {}: {error}\n", built.display()))?;
    let facts = elf::facts(&bytes).ok_or_else(|| format!("{} is no ELF file\n", built.display()))?;
    (build.check)(facts).map_err(|why| format!("{} {why}\n", built.display()))?;
    let is_own_start = known_glibc && !build.features_with_known_glibc.is_empty();
    if is_own_start && bytes.windows(START_OF_GLIBC.len()).any(|window| window == START_OF_GLIBC) {
        return Err(format!("{} still starts through the C library's own code\n", built.display()));
    }

    // Written beside and renamed: a running program of the same name stays what it was.
    let (new, name) = (dist.join(format!(".{}.new", build.name)), dist.join(build.name));
    let copied = std::fs::copy(&built, &new).and_then(|_| std::fs::rename(&new, &name));
    copied.map_err(|error| format!("cannot install {}: {error}\n", name.display()))?;
    Ok(name)
}

/// How many of the names by which the linker was to put functions together still mean one (`scripts/start-order`).
fn start_order(workspace: &Workspace, program: &Path) -> Result<String, String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}\n", path.display()))
    };
    let order = read(&workspace.root.join("crates/cli/start-order.txt"))?;
    let program = read(program)?;
    let (found, all) = names_in(&order, &program);
    let advice = if found * 10 < all * 9 { "; scripts/start-order writes a new one" } else { "" };
    Ok(format!("dist: {found} of {all} names in the order of the start still mean a function{advice}\n"))
}

/// Of the names in an order, one a line: those that a table of symbols has, and all.
fn names_in(order: &[u8], program: &[u8]) -> (usize, usize) {
    let names: HashSet<&[u8]> = order
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .collect();
    let found: HashSet<&[u8]> =
        program.split(|&byte| byte == 0).filter(|word| names.contains(word)).collect();
    (found.len(), names.len())
}

fn check_static(facts: elf::Facts) -> Result<(), &'static str> {
    match facts.interpreter || facts.needs_libraries {
        true => Err("is not static: it names a dynamic loader or shared libraries"),
        false => Ok(()),
    }
}

fn check_lazy(facts: elf::Facts) -> Result<(), &'static str> {
    match facts.binds_now {
        true => Err("binds its symbols when loaded: Slurm's would be missing in some programs"),
        false => Ok(()),
    }
}

fn host_triple() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = stdout_of(Command::new(rustc).arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).ok_or_else(|| "rustc -vV names no host\n".to_owned())
}

#[cfg(test)]
mod tests {
    use super::names_in;

    #[test]
    fn a_name_of_the_order_counts_where_the_program_has_it_whole() {
        let program = b"\x7fELF\0main\0open\0open\0_ZN4core3fmt\0";
        let order = b"# made by a script\nmain\nopen\nclose\ncore\n";
        assert_eq!(names_in(order, program), (2, 4));
        assert_eq!(names_in(b"", program), (0, 0));
    }
}
