//! Apptainer's command line, for the field's scripts.
//!
//! Options come before the image, everything behind it belongs to the command; failures of the
//! engine are one `FATAL:` line and status 255, wrong usage is status 1. An option that Apptainer has
//! and that is not supported here is refused by name, never ignored.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use situla_engine::{Action, Personality};
use situla_image::{OutputFormat, Owners, Scheme, Source, file_kind};
use situla_oci::Platform;

use crate::command_error::CommandError;
use crate::commands;
use crate::commands::apptainer_cache::{ApptainerCache, apptainer_cache};
use crate::commands::convert::{Conversion, OwnersChoice, parse_source, unpack_source};
use crate::commands::instance::InstanceCommand;
use crate::commands::pull::{Fetch, parse_reference};
use crate::commands::push::Pushing;
use crate::commands::run::RunCommand;
use crate::commands::sif::SifCommand;
use crate::commands::transfer::Transfer;
use crate::events::EventOptions;
use crate::native::parse_start;
use crate::output::{data, note};
use crate::progress::Show;
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
#[derive(Args, Debug, Default)]
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
    /// Manage containers running as services
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// Pull an image from a URI
    Pull(PullArgs),
    /// Upload an image to the provided URI
    Push(PushArgs),
    /// Build an Apptainer image
    Build(BuildArgs),
    /// Manage the images that were fetched
    #[command(subcommand)]
    Cache(ApptainerCache),
    /// Manipulate Singularity Image Format (SIF) images
    #[command(subcommand)]
    Sif(SifCommand),
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

#[derive(Args, Debug)]
struct PullArgs {
    /// Overwrite an image file if it exists
    #[arg(short = 'F', long)]
    force: bool,
    /// Download images to the specific directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Do not use or create a cache
    #[arg(long)]
    disable_cache: bool,
    /// Use http instead of https for docker://
    #[arg(long, visible_alias = "nohttps")]
    no_https: bool,
    /// Look for logins in this file first
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Architecture to pull
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Accept unsigned images (always so; accepted for compatibility)
    #[arg(short = 'U', long, visible_alias = "allow-unauthenticated")]
    allow_unsigned: bool,
    /// [output file] <URI>
    #[arg(value_name = "[OUTPUT] URI", required = true, num_args = 1..=2)]
    words: Vec<String>,
}

#[derive(Args, Debug)]
struct PushArgs {
    /// Use http instead of https for oras://
    #[arg(long, visible_alias = "nohttps")]
    no_https: bool,
    /// Look for logins in this file first
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Push unsigned images (always so; accepted for compatibility)
    #[arg(short = 'U', long)]
    allow_unsigned: bool,
    /// The image file
    #[arg(value_name = "IMAGE")]
    image: String,
    /// oras://REGISTRY/NAME[:TAG]
    #[arg(value_name = "URI")]
    uri: String,
}

#[derive(Args, Debug)]
struct BuildArgs {
    /// Overwrite an image file if it exists
    #[arg(short = 'F', long)]
    force: bool,
    /// Build a directory instead of an image file
    #[arg(short, long)]
    sandbox: bool,
    /// Use http instead of https for docker://
    #[arg(long, visible_alias = "nohttps")]
    no_https: bool,
    /// Look for logins in this file first
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Build without a cache (always so; accepted for compatibility)
    #[arg(long)]
    disable_cache: bool,
    /// Build as a fake root (never needed; accepted for compatibility)
    #[arg(short, long)]
    fakeroot: bool,
    /// The image to make
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// docker://REF, oras://REF, oci:DIR, oci-archive:FILE, docker-archive:FILE, a directory or an image file
    #[arg(value_name = "SOURCE")]
    source: String,
}

/// Options of Apptainer's `pull`, `push` and `build` that are not supported here (yet).
const UNSUPPORTED_BUILDING: [&str; 24] = [
    "--update",
    "--section",
    "--encrypt",
    "--fix-perms",
    "--mksquashfs-args",
    "--notest",
    "--build-arg",
    "--build-arg-file",
    "--warn-unused-build-args",
    "--buildkit-host",
    "--data",
    "--ignore-subuid",
    "--ignore-fakeroot-command",
    "--ignore-proot",
    "--ignore-userns",
    "--no-cleanup",
    "--library",
    "--reproducible",
    "--arch-variant",
    "--docker-username",
    "--docker-password",
    "--name",
    "--description",
    "--annotation",
];

/// Options of Apptainer's run commands that are not supported here (yet).
const UNSUPPORTED: [&str; 61] = [
    "-S",
    "-W",
    "-w",
    "--app",
    "--scratch",
    "--workdir",
    "--compat",
    "--env-file",
    "--no-env",
    "--no-umask",
    "--writable",
    "--underlay",
    "--unsquash",
    "--disable-cache",
    "--tmpdir",
    "--no-pid",
    "--no-init",
    "--network-args",
    "--netns-path",
    "--dns",
    "--nv",
    "--nvccli",
    "--rocm",
    "--compat32",
    "--intel-hpu",
    "--cdi-dirs",
    "--containlibs",
    "--fusemount",
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
    "--no-https",
    "--nohttps",
    "--no-nv",
    "--no-rocm",
    "--docker-username",
    "--docker-password",
    "--ignore-subuid",
    "--ignore-fakeroot-command",
    "--ignore-userns",
];

/// Options of Apptainer's `instance` commands that are not supported here.
const UNSUPPORTED_INSTANCE: [&str; 4] = ["--boot", "--dmtcp-launch", "--dmtcp-restart", "--user"];

/// The version that scripts compare with: the Apptainer whose behaviour is followed.
const VERSION: &str = "1.4.5";

/// Runs the command line.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    if let Some(command) = parse_start(&arguments, (Command::Exec, Command::Run, Command::Shell)) {
        return finish(Cli { global: Global::default(), command: Some(command) });
    }
    let parsed = Cli::try_parse_from(std::iter::once(OsString::from("apptainer")).chain(arguments));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    finish(cli)
}

fn finish(cli: Cli) -> ExitCode {
    run(cli).unwrap_or_else(|error| error.report_fatal(in_step().as_deref()))
}

fn run(cli: Cli) -> Result<ExitCode, CommandError> {
    if cli.global.version {
        data(&format!("apptainer version {VERSION}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (options, image, action) = match cli.command {
        Some(Command::Exec(ExecArgs { options, what })) => (options, what.image, Action::Exec(what.command)),
        Some(Command::Run(RunArgs { options, what })) => {
            let (image, arguments) = what.split();
            (options, image, Action::Run(arguments))
        }
        Some(Command::Shell(ShellArgs { options, shell, what })) => {
            let (image, arguments) = what.split();
            if !arguments.is_empty() {
                note("WARNING: Parameters to shell command are ignored");
            }
            (options, image, Action::Shell(shell))
        }
        Some(Command::Instance(command)) => {
            warn_of_ignored_variables();
            let quiet = cli.global.show() == Show::Nothing;
            return commands::instance::instance(command, Personality::Apptainer, quiet);
        }
        Some(Command::Pull(arguments)) => return pull(arguments, cli.global.show()),
        Some(Command::Push(arguments)) => return push(arguments, cli.global.show()),
        Some(Command::Build(arguments)) => return build(&arguments, cli.global.show()),
        Some(Command::Cache(command)) => return apptainer_cache(&command),
        Some(Command::Sif(command)) => return commands::sif::sif(command),
        Some(Command::Version) => {
            data(&format!("{VERSION}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        None => return Err(CommandError::usage("which command?", "see apptainer --help")),
    };
    warn_of_ignored_variables();
    let quiet = cli.global.show() == Show::Nothing;
    commands::run::run(RunCommand {
        personality: Personality::Apptainer,
        options,
        image,
        action,
        quiet,
        events: EventOptions::default(),
    })
}

impl Global {
    fn show(&self) -> Show {
        if self.quiet || self.silent { Show::Nothing } else { Show::Suitable }
    }
}

/// `apptainer pull`: always to a SIF file.
fn pull(arguments: PullArgs, show: Show) -> Result<ExitCode, CommandError> {
    let (output, uri) = match arguments.words.as_slice() {
        [output, uri] => (PathBuf::from(output), uri),
        [uri, ..] => (PathBuf::from(default_name(uri)), uri),
        [] => return Err(CommandError::usage("which image?", "see apptainer pull --help")),
    };
    if Scheme::split(uri).is_none() {
        return Err(CommandError::refused(
            "bad-option",
            format!("unable to pull {uri}: only docker:// and oras:// are supported"),
            "use docker://REGISTRY/NAME:TAG",
        ));
    }
    let dir = arguments.dir.or_else(|| variable("PULLDIR").map(PathBuf::from));
    let output = dir.unwrap_or_default().join(output);
    if !arguments.force && output.symlink_metadata().is_ok() {
        // Scripts look for these words.
        let message = format!("Image file already exists: {:?} - will not overwrite", output.display());
        return Err(CommandError::refused("bad-option", message, "use --force to replace it"));
    }
    let (scheme, image) = parse_reference(uri)?;
    let mut platform = Platform::native();
    if let Some(architecture) = arguments.arch.filter(|arch| *arch != platform.architecture) {
        platform = Platform { architecture, variant: None, ..platform };
    }
    let plain_http = arguments.no_https || is_set(&["NOHTTPS", "NO_HTTPS"]);
    let authfile = arguments.authfile.or_else(authfile);
    let transfer =
        Transfer { platform, overwrite: arguments.force, plain_http, authfile, show, ..Transfer::default() };
    if scheme == Scheme::Oras {
        Fetch { scheme, image, transfer }.sif_to_file(&output)?;
    } else if arguments.disable_cache || is_set(&["DISABLE_CACHE"]) {
        let source = Source::Registry(scheme, image);
        let (format, owners) = (OutputFormat::Sif, Owners::Keep);
        Conversion { source, target: &output, format, owners, transfer }.run()?;
    } else {
        Fetch { scheme, image, transfer }.to_file(&output, OutputFormat::Sif)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `apptainer push`: a SIF file as it is.
fn push(arguments: PushArgs, show: Show) -> Result<ExitCode, CommandError> {
    let uri = &arguments.uri;
    if !matches!(Scheme::split(uri), Some((Scheme::Oras, _))) {
        return Err(CommandError::refused(
            "bad-option",
            format!("unable to push to {uri}: only oras:// is supported"),
            "use oras://REGISTRY/NAME:TAG, or `situla push` for docker://",
        ));
    }
    let transfer = Transfer {
        plain_http: arguments.no_https || is_set(&["NOHTTPS", "NO_HTTPS"]),
        authfile: arguments.authfile.or_else(authfile),
        show,
        ..Transfer::default()
    };
    let (source, owners) = (arguments.image.as_str(), OwnersChoice::Keep);
    Pushing { source, target: uri, owners, transfer }.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The file with logins that the environment names.
fn authfile() -> Option<PathBuf> {
    variable("AUTH_FILE").map(PathBuf::from)
}

/// The file that `apptainer pull URI` makes: the last part of the name, and the tag.
fn default_name(uri: &str) -> String {
    let last = uri.rsplit('/').next().unwrap_or(uri);
    match last.split_once(':') {
        Some((name, tag)) => format!("{name}_{tag}.sif"),
        None => format!("{last}_latest.sif"),
    }
}

/// `apptainer build`: a SIF file from what is an image already, or a directory.
fn build(arguments: &BuildArgs, show: Show) -> Result<ExitCode, CommandError> {
    let target = arguments.image.as_path();
    if !arguments.force && target.symlink_metadata().is_ok() {
        let message = format!("build target '{}' already exists", target.display());
        return Err(CommandError::refused("bad-option", message, "use --force to replace it"));
    }
    if target.is_dir() {
        return Err(CommandError::refused(
            "bad-option",
            format!("build target '{}' is a directory", target.display()),
            "name a file, or another directory with --sandbox",
        ));
    }
    let source = parse_source(&arguments.source)?;
    if let Source::Path(path) = &source
        && path.is_file()
        && file_kind(path).is_err()
    {
        return Err(CommandError::refused(
            "bad-option",
            format!("{} is no image; definition files are not supported", path.display()),
            "build from docker://REF, oras://REF, a directory, or a .sif or .sqsh file",
        ));
    }
    let transfer = Transfer {
        overwrite: arguments.force,
        plain_http: arguments.no_https || is_set(&["NOHTTPS", "NO_HTTPS"]),
        authfile: arguments.authfile.clone().or_else(authfile),
        show,
        ..Transfer::default()
    };
    if arguments.sandbox {
        unpack_source(source, target, &transfer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let conversion = Conversion {
        source,
        target,
        format: OutputFormat::Sif,
        // An ordinary user's tree becomes root's, as it does in Apptainer.
        owners: if is_root() { Owners::Keep } else { Owners::Root },
        transfer,
    };
    conversion.run()?;
    Ok(ExitCode::SUCCESS)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a variable switches something on.
fn is_set(keys: &[&str]) -> bool {
    let value = keys.iter().find_map(|key| variable(key));
    value.is_some_and(|value| matches!(value.to_str(), Some("1" | "true" | "TRUE" | "yes" | "y")))
}

/// An option in `APPTAINER_X`, else in `SINGULARITY_X`.
fn variable(key: &str) -> Option<OsString> {
    ["APPTAINER", "SINGULARITY"].iter().find_map(|prefix| std::env::var_os(format!("{prefix}_{key}")))
}

/// Says which options that the environment sets have no effect here. A profile of the site may set
/// them for everybody, so they are no errors.
fn warn_of_ignored_variables() {
    /// What these options choose (where temporary files and caches are) does not exist in a run here.
    const WITHOUT_EFFECT: [&str; 2] = ["--tmpdir", "--disable-cache"];
    let options = UNSUPPORTED.iter().filter(|name| name.starts_with("--") && !WITHOUT_EFFECT.contains(name));
    for option in options {
        let key = option.trim_start_matches('-').replace('-', "_").to_ascii_uppercase();
        for name in [format!("APPTAINER_{key}"), format!("SINGULARITY_{key}")] {
            let value = std::env::var(&name).unwrap_or_default();
            if !matches!(value.as_str(), "" | "0" | "false" | "no") {
                note(&format!("WARNING: {name} is set, but Situla does not support {option}: ignored"));
            }
        }
    }
}

/// Reports wrong usage: help and version are data, the rest is Apptainer's status 1. What Situla does not
/// have is refused in one line that names it.
fn usage(error: &clap::Error) -> ExitCode {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => Some(name.as_str()),
        _ => None,
    };
    let refused = match error.kind() {
        ErrorKind::UnknownArgument => named(ContextKind::InvalidArg).map(refused_option),
        ErrorKind::InvalidSubcommand => named(ContextKind::InvalidSubcommand).map(|name| {
            let message = format!("there is no command {name} in Situla {}", env!("CARGO_PKG_VERSION"));
            CommandError::usage(message, "see apptainer --help, or use Apptainer for it")
        }),
        _ => None,
    };
    if let Some(refused) = refused {
        refused.record_early(Personality::Apptainer);
        return refused.report_fatal(in_step().as_deref());
    }
    let _ = error.print();
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn refused_option(name: &str) -> CommandError {
    if [&UNSUPPORTED[..], &UNSUPPORTED_BUILDING, &UNSUPPORTED_INSTANCE].concat().contains(&name) {
        let version = env!("CARGO_PKG_VERSION");
        let message = format!("the option {name} of Apptainer is not supported by Situla {version}");
        return CommandError::usage(message, "leave it out, or use Apptainer for this image");
    }
    CommandError::usage(format!("unknown option {name}"), "see apptainer --help")
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
    fn pull_takes_one_or_two_words() {
        for (words, n_words) in [
            (&["apptainer", "pull", "docker://a"][..], Some(1)),
            (&["apptainer", "pull", "--force", "x.sif", "docker://a"][..], Some(2)),
            (&["apptainer", "pull"][..], None),
            (&["apptainer", "pull", "a", "b", "c"][..], None),
        ] {
            let found = Cli::try_parse_from(words).ok().and_then(|cli| match cli.command {
                Some(Command::Pull(arguments)) => Some(arguments.words.len()),
                _ => None,
            });
            assert_eq!(found, n_words, "{words:?}");
        }
        for (uri, name) in [
            ("docker://alpine", "alpine_latest.sif"),
            ("docker://r.example:5000/a/tool:1.0", "tool_1.0.sif"),
            ("docker://a/tool@sha256:00ff", "tool@sha256_00ff.sif"),
        ] {
            assert_eq!(default_name(uri), name);
        }
    }

    #[test]
    fn options_of_apptainer_are_refused_by_name() {
        for name in UNSUPPORTED_BUILDING {
            for words in [["apptainer", "build", name, "x.sif"], ["apptainer", "pull", name, "docker://a"]] {
                let error = Cli::try_parse_from(words).unwrap_err();
                let expected = ContextValue::String(name.to_owned());
                assert_eq!(error.get(ContextKind::InvalidArg), Some(&expected), "{name}");
            }
        }
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
