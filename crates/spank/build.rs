//! Tells the compiler which Slurm the plugin is for, and the linker to bind late.

fn main() {
    println!("cargo:rerun-if-env-changed=SITULA_SLURM_VERSION");
    // Debian 12's Slurm, unless the builder says otherwise; the micro version does not matter.
    let version = std::env::var("SITULA_SLURM_VERSION").unwrap_or_else(|_| "22.05.0".to_owned());
    println!("cargo:rustc-env=SITULA_SLURM_VERSION={version}");
    // Slurm's symbols are in the process that loads the plugin. Binding them at load time would
    // make every command of Slurm fail should one be missing in a later release.
    println!("cargo:rustc-link-arg=-Wl,-z,lazy");
    // The unit tests call none of them, and have no Slurm to load them from.
    println!("cargo:rustc-link-arg=-Wl,--unresolved-symbols=ignore-in-object-files");
}
