//! Apptainer's command line, for the field's scripts.
//!
//! Options come before the image, everything behind it belongs to the command; failures of the
//! engine are one `FATAL:` line and status 255, wrong usage is status 1. An option that Apptainer has
//! and that is not supported here is refused by name, never ignored.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use situla_engine::{Action, Personality};

use crate::command_error::CommandError;
use crate::commands;
use crate::commands::run::RunCommand;
use crate::output::{data, note};
use crate::run_options::{ImageAndArguments, ImageAndCommand, RunOptions};
use crate::task::in_step;

/// Run application containers (Situla, speaking Apptainer's command line).
#[derive(Debug, Parser)]
#[command(name = "apptainer", disable_version_flag = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options before the command.
#[derive(Args, Debug)]
struct Global {
    /// Print debugging information
    #[arg(short, long)]
    debug: bool,
    /// Print without colour
    #[arg(long)]
    nocolor: bool,
    /// Print no informational messages
    #[arg(short, long)]
    quiet: bool,
    /// Print only errors
    #[arg(short, long)]
    silent: bool,
    /// Print more
    #[arg(short, long)]
    verbose: bool,
    /// Print the version
    #[arg(long)]
    version: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command within a container
    Exec(ExecArgs),
    /// Run the user-defined default command within a container
    Run(RunArgs),
    /// Run a shell within a container
    Shell(ShellArgs),
    /// Show the version
    Version,
}

#[derive(Args, Debug)]
struct ExecArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    what: ImageAndCommand,
}

#[derive(Args, Debug)]
struct RunArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    what: ImageAndArguments,
}

#[derive(Args, Debug)]
struct ShellArgs {
    #[command(flatten)]
    options: RunOptions,
    /// Path to the program to use as shell
    #[arg(short, long, value_name = "PATH")]
    shell: Option<OsString>,
    #[command(flatten)]
    what: ImageAndArguments,
}

/// Options of Apptainer's run commands that are not supported here (yet).
const UNSUPPORTED: [&str; 62] = [
    "--app",
    "--scratch",
    "--workdir",
    "--contain",
    "--containall",
    "--compat",
    "--env-file",
    "--no-env",
    "--no-umask",
    "--overlay",
    "--writable",
    "--writable-tmpfs",
    "--underlay",
    "--unsquash",
    "--disable-cache",
    "--tmpdir",
    "--pid",
    "--no-pid",
    "--no-init",
    "--ipc",
    "--uts",
    "--net",
    "--hostname",
    "--network",
    "--network-args",
    "--netns-path",
    "--dns",
    "--fakeroot",
    "--nv",
    "--nvccli",
    "--rocm",
    "--compat32",
    "--intel-hpu",
    "--device",
    "--cdi-dirs",
    "--containlibs",
    "--fusemount",
    "--security",
    "--add-caps",
    "--drop-caps",
    "--keep-privs",
    "--no-privs",
    "--allow-setuid",
    "--apply-cgroups",
    "--blkio-weight",
    "--blkio-weight-device",
    "--cpu-shares",
    "--cpus",
    "--cpuset-cpus",
    "--cpuset-mems",
    "--memory",
    "--memory-reservation",
    "--memory-swap",
    "--oom-kill-disable",
    "--pids-limit",
    "--passphrase",
    "--pem-path",
    "--docker-login",
    "--docker-host",
    "--authfile",
    "--runscript-timeout",
    "--config",
];

/// The version that scripts compare with: the Apptainer whose behaviour is followed.
const VERSION: &str = "1.4.5";

/// Runs the command line.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let parsed = Cli::try_parse_from(std::iter::once(OsString::from("apptainer")).chain(arguments));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    run(cli).unwrap_or_else(|error| error.report_fatal(in_step().as_deref()))
}

fn run(cli: Cli) -> Result<ExitCode, CommandError> {
    if cli.global.version {
        data(&format!("apptainer version {VERSION}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (options, image, action) = match cli.command {
        Some(Command::Exec(ExecArgs { options, what })) => (options, what.image, Action::Exec(what.command)),
        Some(Command::Run(RunArgs { options, what })) => (options, what.image, Action::Run(what.arguments)),
        Some(Command::Shell(ShellArgs { options, shell, what })) => {
            if !what.arguments.is_empty() {
                note("WARNING: Parameters to shell command are ignored");
            }
            (options, what.image, Action::Shell(shell))
        }
        Some(Command::Version) => {
            data(&format!("{VERSION}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        None => return Err(CommandError::usage("which command?", "see apptainer --help")),
    };
    commands::run::run(RunCommand { personality: Personality::Apptainer, options, image, action })
}

/// Reports wrong usage: help and version are data, the rest is Apptainer's status 1.
fn usage(error: &clap::Error) -> ExitCode {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) if error.kind() == ErrorKind::UnknownArgument => Some(name.as_str()),
        _ => None,
    };
    let step = in_step();
    let refused = match unknown {
        Some(name) if UNSUPPORTED.contains(&name) => {
            let version = env!("CARGO_PKG_VERSION");
            let message = format!("the option {name} of Apptainer is not supported by Situla {version}");
            Some(CommandError::usage(message, "leave it out, or use Apptainer for this image"))
        }
        Some(name) if step.is_some() => {
            Some(CommandError::usage(format!("unknown option {name}"), "see apptainer --help"))
        }
        _ => None,
    };
    if let Some(refused) = refused {
        refused.record_early();
        return refused.report_fatal(step.as_deref());
    }
    let _ = error.print();
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let words =
            ["apptainer", "-q", "exec", "-B", "/a", "--pwd", "/x", "i.sif", "ls", "-l", "--bind", "x"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Some(Command::Exec(arguments)) = cli.command else { panic!("exec") };
        assert_eq!(arguments.what.image, "i.sif");
        assert_eq!(arguments.what.command, ["ls", "-l", "--bind", "x"]);
    }

    #[test]
    fn options_of_apptainer_are_refused_by_name() {
        for name in UNSUPPORTED {
            let error = Cli::try_parse_from(["apptainer", "exec", name, "i.sif", "true"]).unwrap_err();
            assert_eq!(
                error.get(ContextKind::InvalidArg),
                Some(&ContextValue::String(name.to_owned())),
                "{name}"
            );
        }
    }
}
