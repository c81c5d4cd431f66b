//! The privileged tier: the kernel, real Apptainer and a real registry as judges.

use std::process::ExitCode;

fn main() -> ExitCode {
    situla_tests::cases::run_privileged()
}
