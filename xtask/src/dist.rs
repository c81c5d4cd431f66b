//! `cargo xtask dist`: what a site installs, in `<target>/dist`.
//!
//! * `situla`: one static program (glibc linked in), because the task enters containers whose libc is
//!   another one, and because it must start without a dynamic loader's half millisecond. It is linked
//!   at a fixed address: relocating a position-independent one touches forty pages before `main`, a
//!   tenth of a millisecond of every start. What ASLR of the program's own code would protect from,
//!   an image that takes over a decoder, gains the rights of the user whose programs the image
//!   brings anyway; stack, heap and mappings are still placed at random.
//! * `spank_situla.so`: the plugin. Its Slurm symbols exist only in the program that loads it and
//!   differ per program (srun, slurmstepd, slurmd), so they must stay lazily bound: full RELRO, the
//!   default, would resolve all of them at load time and fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::elf;
use crate::workspace::{Workspace, stdout_of};

/// One thing to build.
struct Build {
    package: &'static str,
    profile: &'static str,
    rustflags: &'static str,
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
        artifact: "situla",
        name: "situla",
        check: check_static,
    },
    Build {
        package: "situla-spank",
        profile: "plugin",
        rustflags: "-C relro-level=partial",
        artifact: "libspank_situla.so",
        name: "spank_situla.so",
        check: check_lazy,
    },
];

/// Builds, checks and copies both.
pub(crate) fn run() -> Result<String, String> {
    let workspace = Workspace::load()?;
    let triple = host_triple()?;
    let dist = workspace.target.join("dist");
    std::fs::create_dir_all(&dist).map_err(|error| format!("cannot create {}: {error}\n", dist.display()))?;
    let mut report = String::new();
    for build in &BUILDS {
        let installed = one(build, &workspace, &triple, &dist)?;
        report.push_str(&format!("dist: {}\n", installed.display()));
    }
    Ok(report)
}

fn one(build: &Build, workspace: &Workspace, triple: &str, dist: &Path) -> Result<PathBuf, String> {
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
    stdout_of(&mut command)?;

    let built = workspace.target.join(triple).join(build.profile).join(build.artifact);
    let bytes =
        std::fs::read(&built).map_err(|error| format!("cannot read {}: {error}\n", built.display()))?;
    let facts = elf::facts(&bytes).ok_or_else(|| format!("{} is no ELF file\n", built.display()))?;
    (build.check)(facts).map_err(|why| format!("{} {why}\n", built.display()))?;

    // Written beside and renamed: a running program of the same name stays what it was.
    let (new, name) = (dist.join(format!(".{}.new", build.name)), dist.join(build.name));
    let copied = std::fs::copy(&built, &new).and_then(|_| std::fs::rename(&new, &name));
    copied.map_err(|error| format!("cannot install {}: {error}\n", name.display()))?;
    Ok(name)
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
