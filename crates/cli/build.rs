//! Puts the functions that run before a payload does one after the other into the program
//! (`start-order.txt`, made by `scripts/start-order`).

fn main() {
    const ORDER: &str = "start-order.txt";
    println!("cargo:rerun-if-changed={ORDER}");
    println!("cargo:rerun-if-changed=build.rs");
    // What `cargo xtask dist` builds, by the linker of the pinned toolchain (LLD), which has this option. Names change with
    // the code; one that is gone is passed over.
    if std::env::var_os("CARGO_FEATURE_OWN_START").is_some() {
        let place = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={place}/{ORDER}");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}
