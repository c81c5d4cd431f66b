//! The cluster tier on loopback nodes.

use std::process::ExitCode;

use situla_tests::cases;
use situla_tests::cluster::Variant;

fn main() -> ExitCode {
    cases::run_on_cluster(Variant::Loopback)
}
