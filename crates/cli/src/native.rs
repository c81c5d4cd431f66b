//! Our own command line.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};
use situla_engine::Personality;

use crate::command_error::CommandError;
use crate::commands;
use crate::commands::run::RunCommand;
use crate::events::EventOptions;
use crate::task::in_step;

/// Containers with Slurm: run images in place, inside the allocation you already have.
#[derive(Debug, Parser)]
#[command(name = "situla", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a container
    Exec(commands::run::ExecArgs),
    /// Run the image's own command
    Run(commands::run::RunArgs),
    /// Open a shell in a container
    Shell(commands::run::ShellArgs),
    /// Start, enter, list and end containers that stay
    #[command(subcommand)]
    Instance(commands::instance::InstanceCommand),
    /// Print what `exec` would do, as JSON, and do nothing
    Plan(commands::run::PlanArgs),
    /// Show what an environment definition file (EDF) says, with all that it inherits, as JSON
    Environment(commands::environment::EnvironmentArgs),
    /// Fetch an image from a registry into your store, or to a file
    Pull(commands::pull::PullArgs),
    /// Send an image to a registry
    Push(commands::push::PushArgs),
    /// Convert an image, an OCI layout or a directory to a .sqsh or .sif file
    Convert(commands::convert::ConvertArgs),
    /// Log in to a registry: the login is checked, then kept in Docker's config.json
    Login(commands::login::LoginArgs),
    /// Forget the login for a registry
    Logout(commands::login::LogoutArgs),
    /// List the images in your store and the site's
    Images(commands::images::ImagesArgs),
    /// Remove images from your store
    Rm(commands::rm::RmArgs),
    /// Remove images from your store that were not used for long
    Prune(commands::prune::PruneArgs),
    /// List and remove images that were extracted on this node
    #[command(subcommand)]
    Cache(commands::cache::CacheCommand),
    /// List and remove containers whose files are kept on this node (--container-name)
    #[command(subcommand)]
    Container(commands::container::ContainerCommand),
    /// Show what an image is and how it wants to be run
    Inspect(commands::inspect::InspectArgs),
    /// List, add, delete and dump the objects in a SIF file
    #[command(subcommand)]
    Sif(commands::sif::SifCommand),
    /// Install, check and remove the program and Slurm's plugin, for administrators
    #[command(subcommand)]
    Site(commands::site::SiteCommand),
    /// List the records of runs
    Runs(commands::runs::RunsArgs),
    /// Show the record of one step on one node
    Show(commands::runs::ShowArgs),
    /// Print a completion script for a shell
    Completion(commands::manual::CompletionArgs),
    /// Print the manual page
    Manual(commands::manual::ManualArgs),
    /// Started by the plugin when a task was killed: ends the step if the task was lost with its container
    #[command(hide = true)]
    TaskKilled,
    /// Started by the plugin after that: takes away what the task was fetching or extracting
    #[command(hide = true)]
    TaskLeavings,
    /// Started by the plugin in srun, sbatch and salloc: says what makes no sense in the options of a container
    #[command(hide = true)]
    TaskCheck,
}

/// Parses the arguments of one command, without the description of all others, which takes longer
/// to build than a container's Plan. `None` where they are wrong or ask for help: the whole command
/// line knows better what to say then.
fn parse_alone<T: clap::Args>(name: &'static str, arguments: &[OsString]) -> Option<T> {
    // Taking the description apart takes a third as long as making it, and this process ends or becomes another
    // program soon.
    let mut command = ManuallyDrop::new(T::augment_args(clap::Command::new(name)).no_binary_name(true));
    let matches = ManuallyDrop::new(command.try_get_matches_from_mut(arguments).ok()?);
    T::from_arg_matches(&matches).ok()
}

/// How a front end names the commands that start containers: exec, run, shell.
type Starts<E, R, S, C> = (fn(E) -> C, fn(R) -> C, fn(S) -> C);

/// Parses the commands that start containers, where every fraction of a millisecond counts, into the
/// commands of a front end.
pub(crate) fn parse_start<E: clap::Args, R: clap::Args, S: clap::Args, C>(
    arguments: &[OsString],
    (exec, run, shell): Starts<E, R, S, C>,
) -> Option<C> {
    let (name, rest) = arguments.split_first()?;
    match name.to_str()? {
        "exec" => parse_alone("exec", rest).map(exec),
        "run" => parse_alone("run", rest).map(run),
        "shell" => parse_alone("shell", rest).map(shell),
        _ => None,
    }
}

/// What starts containers here.
const STARTS: Starts<commands::run::ExecArgs, commands::run::RunArgs, commands::run::ShellArgs, Command> =
    (Command::Exec, Command::Run, Command::Shell);

/// Runs the command line.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    if let Some(command) = parse_start(&arguments, STARTS) {
        return finish(command);
    }
    let words = arguments.clone();
    let parsed = Cli::try_parse_from(std::iter::once(OsString::from("situla")).chain(arguments));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let unknown = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(name)) if error.kind() == ErrorKind::UnknownArgument => Some(name),
                _ => None,
            };
            let unknown = unknown.filter(|_| in_step().is_some()).map(|name| {
                let refused = CommandError::usage(format!("unknown option {name}"), "see situla --help");
                refused.record_early(Personality::Native);
                refused
            });
            if error.use_stderr()
                && let Ok(Some(mut events)) = EventOptions::of_unparsed(&words).open()
            {
                let refused = unknown.unwrap_or_else(|| {
                    let told = error.to_string();
                    let told = told.lines().next().unwrap_or_default().trim_start_matches("error: ");
                    CommandError::usage(told, "see situla --help")
                });
                events.error(&refused);
                return refused.end_told();
            }
            if let (Some(refused), Some(step)) = (unknown, in_step()) {
                return refused.report(Some(&step));
            }
            // Help and version are data; everything else goes to standard error with status 2.
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(2));
        }
    };
    finish(cli.command)
}

fn finish(command: Command) -> ExitCode {
    run(command).unwrap_or_else(|error| error.report(in_step().as_deref()))
}

fn run(command: Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Exec(arguments) => commands::run::run(arguments.into()),
        Command::Run(arguments) => commands::run::run(arguments.into()),
        Command::Shell(arguments) => commands::run::run(arguments.into()),
        Command::Instance(command) => commands::instance::instance(command, Personality::Native, false),
        Command::Plan(arguments) => commands::run::plan(RunCommand::from(arguments)),
        Command::Pull(arguments) => commands::pull::pull(&arguments),
        Command::Push(arguments) => commands::push::push(&arguments),
        Command::Convert(arguments) => commands::convert::convert(&arguments),
        Command::Login(arguments) => commands::login::login(&arguments),
        Command::Logout(arguments) => commands::login::logout(&arguments),
        Command::Images(arguments) => commands::images::images(&arguments),
        Command::Rm(arguments) => commands::rm::rm(&arguments),
        Command::Prune(arguments) => commands::prune::prune(&arguments),
        Command::Cache(command) => commands::cache::cache(command),
        Command::Container(command) => commands::container::container(command),
        Command::Inspect(arguments) => commands::inspect::inspect(&arguments),
        Command::Sif(command) => commands::sif::sif(command),
        Command::Site(command) => commands::site::site(command),
        Command::Runs(arguments) => commands::runs::runs(&arguments),
        Command::Show(arguments) => commands::runs::show(&arguments),
        Command::Completion(arguments) => commands::manual::completion(&arguments, command_tree()),
        Command::Manual(arguments) => commands::manual::manual(&arguments, &command_tree()),
        Command::Environment(arguments) => commands::environment::environment(&arguments),
        Command::TaskKilled => commands::task_killed::task_killed(),
        Command::TaskLeavings => commands::task_killed::task_leavings(),
        Command::TaskCheck => crate::task::check(),
    }
}

/// The tree of commands, for completion and manual.
pub(crate) fn command_tree() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::{Cli, STARTS, parse_start};

    #[test]
    fn a_command_means_the_same_parsed_alone() {
        let same = [
            "exec i true",
            "exec --bind /a:/b -B /c --env A=1 i sh -c x --bind",
            "exec --pwd /x i -- true",
            "exec i true -- --help",
            "run i",
            "run --cleanenv i a -b",
            "shell i",
            "shell -s /bin/dash i",
            "run --pid i -c x --bind y -- z",
        ];
        for line in same {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let whole = Cli::try_parse_from(std::iter::once("situla".into()).chain(words.clone()));
            let alone = parse_start(&words, STARTS).map(|command| format!("{command:?}"));
            assert_eq!(alone, whole.ok().map(|cli| format!("{:?}", cli.command)), "{line}");
            assert!(alone.is_some(), "{line}");
        }
        for line in ["exec", "exec i", "exec --help", "exec --no-such i true", "plan i", "help exec", ""] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(parse_start(&words, STARTS).is_none(), "{line}");
        }
    }

    #[test]
    fn what_follows_the_image_is_no_option_of_ours() {
        for (line, want) in [
            ("run i -c x", r#"["i", "-c", "x"]"#),
            ("run -c i --help", r#"["i", "--help"]"#),
            ("run i -- x", r#"["i", "--", "x"]"#),
            ("instance start i n -p 1 --pid", r#"["i", "n", "-p", "1", "--pid"]"#),
            ("instance run -p i n", r#"["i", "n"]"#),
        ] {
            let words = std::iter::once("situla").chain(line.split(' '));
            let parsed = format!("{:?}", Cli::try_parse_from(words).unwrap().command);
            assert!(parsed.contains(&format!("words: {want}")), "{line}: {parsed}");
        }
        for line in ["instance start i", "run --frobnicate i", "run"] {
            assert!(Cli::try_parse_from(std::iter::once("situla").chain(line.split(' '))).is_err(), "{line}");
        }
    }

    #[test]
    fn the_command_tree_is_sound() {
        super::command_tree().debug_assert();
    }
}
