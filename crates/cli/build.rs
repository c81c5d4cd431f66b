//! Puts the functions that run before a payload does one after the other into the program
//! (`start-order.txt`, made by `scripts/start-order`).

fn main() {
    const ORDER: &str = "start-order.txt";
    println!("cargo:rerun-if-changed={ORDER}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SITULA_START_ORDER");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    // Where the start is our own: see `situla-sys`. LLD, which the pinned toolchain links with there, has this option, and no
    // other linker. Names change with the code; one that is gone is passed over.
    let is_own_start = std::env::var_os("CARGO_FEATURE_OWN_START").is_some()
        && variable("CARGO_CFG_TARGET_ARCH") == "x86_64"
        && variable("CARGO_CFG_TARGET_ENV") == "gnu"
        && variable("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    if is_own_start && variable("SITULA_START_ORDER") != "off" {
        let place = variable("CARGO_MANIFEST_DIR");
        for argument in
            [format!("--symbol-ordering-file={place}/{ORDER}"), "--no-warn-symbol-ordering".into()]
        {
            println!("cargo:rustc-link-arg-bins=-Xlinker");
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
