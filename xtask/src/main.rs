//! Project chores that need more than a line of shell: `cargo xtask tidy` and `cargo xtask dist`.

mod dist;
mod elf;
mod tidy;
mod workspace;

use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  tidy    check the rules of the project that no compiler checks
  dist    build the static binary and the SPANK plugin into <target>/dist
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["tidy"] => tidy::run(),
        ["dist"] => dist::run(),
        ["help" | "--help" | "-h"] => Ok(USAGE.to_owned()),
        _ => Err(USAGE.to_owned()),
    };
    // A closed pipe is no failure of the chore.
    match result {
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}
