//! The cli tier.

use std::process::ExitCode;

fn main() -> ExitCode {
    situla_tests::tier::run(Vec::new())
}
