//! The command-line tier: the program without Slurm, as an ordinary user.

use std::process::ExitCode;

fn main() -> ExitCode {
    situla_tests::cases::run_command_line()
}
