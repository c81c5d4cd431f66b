//! The cluster tier on isolated nodes: their own hostname, /tmp, /dev/shm and network.

use std::process::ExitCode;

use situla_tests::cases;
use situla_tests::cluster::Variant;

fn main() -> ExitCode {
    cases::run_on_cluster(Variant::Isolated)
}
