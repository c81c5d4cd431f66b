//! `situla exec`, `run`, `shell` and `plan`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use situla_engine::{Action, EngineError, Listener, PLAN_SCHEMA, Personality, RunRequest, prepare};

use crate::command_error::CommandError;
use crate::commands::instance;
use crate::events::{EventOptions, EventWriter};
use crate::output::{data, note};
use crate::run_options::{ImageAndArguments, ImageAndCommand, RunOptions};
use crate::{Context, end_as};

/// What is said of the run itself.
#[derive(Args, Debug)]
struct Saying {
    /// Show no progress while an image is fetched
    #[arg(short, long)]
    quiet: bool,
}

/// Run a command in a container.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    events: EventOptions,
    #[command(flatten)]
    what: ImageAndCommand,
}

/// Run the image's own command.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    events: EventOptions,
    #[command(flatten)]
    what: ImageAndArguments,
}

/// Open a shell in a container.
#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    events: EventOptions,
    /// The shell to use
    #[arg(short, long, value_name = "PATH")]
    shell: Option<OsString>,
    /// The image: a .sif or .sqsh file, a directory, or docker:// or oras://REGISTRY/NAME:TAG
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Print what `exec` would do, as JSON, and do nothing.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    what: ImageAndArguments,
}

/// A run, whichever command asked for it.
#[derive(Debug)]
pub(crate) struct RunCommand {
    pub(crate) personality: Personality,
    pub(crate) options: RunOptions,
    pub(crate) image: String,
    pub(crate) action: Action,
    /// Whether a fetch shows nothing.
    pub(crate) quiet: bool,
    /// Whether a program watches the run.
    pub(crate) events: EventOptions,
}

impl From<ExecArgs> for RunCommand {
    fn from(arguments: ExecArgs) -> Self {
        let ExecArgs { options, saying, events, what } = arguments;
        let action = Action::Exec(what.command);
        RunCommand {
            personality: Personality::Native,
            options,
            image: what.image,
            action,
            quiet: saying.quiet,
            events,
        }
    }
}

impl From<RunArgs> for RunCommand {
    fn from(arguments: RunArgs) -> Self {
        let RunArgs { options, saying, events, what } = arguments;
        let (image, arguments) = what.split();
        let action = Action::Run(arguments);
        RunCommand { personality: Personality::Native, options, image, action, quiet: saying.quiet, events }
    }
}

impl From<ShellArgs> for RunCommand {
    fn from(arguments: ShellArgs) -> Self {
        let ShellArgs { options, saying, events, shell, image } = arguments;
        let action = Action::Shell(shell);
        RunCommand { personality: Personality::Native, options, image, action, quiet: saying.quiet, events }
    }
}

impl From<PlanArgs> for RunCommand {
    fn from(arguments: PlanArgs) -> Self {
        let PlanArgs { options, saying, what } = arguments;
        let (image, mut arguments) = what.split();
        if arguments.first().is_some_and(|first| first == "--") {
            arguments.remove(0);
        }
        // Without a command it is the image's own that would run.
        let action = if arguments.is_empty() { Action::Run(arguments) } else { Action::Exec(arguments) };
        RunCommand {
            personality: Personality::Native,
            options,
            image,
            action,
            quiet: saying.quiet,
            events: EventOptions::default(),
        }
    }
}

/// The facts about the host, and the request that the options make.
fn asked(command: RunCommand) -> Result<(Context, RunRequest), CommandError> {
    let RunCommand { personality, options, image, action, quiet, .. } = command;
    let context = Context::gather()
        .inspect_err(|error| error.record_before_host(&image, action.words(), personality))?;
    let variable = |name: &str| context.host.variable(name).map(str::to_owned);
    let made = options.request(personality, image.clone(), action.clone(), &context.host.cwd, &variable);
    let mut request =
        made.inspect_err(|error| error.record(&context.host, &image, action.words(), personality))?;
    request.progress = !quiet && context.is_first_task();
    Ok((context, request))
}

/// Runs a command in a container and ends as it does.
pub(crate) fn run(command: RunCommand) -> Result<ExitCode, CommandError> {
    let Some(mut writer) = command.events.open()? else { return run_heard(command, None) };
    // Whoever reads events reads of errors there, and only there.
    run_heard(RunCommand { quiet: true, ..command }, Some(&mut writer)).or_else(|error| {
        writer.error(&error);
        Ok(error.end_told())
    })
}

fn run_heard(command: RunCommand, events: Option<&mut EventWriter>) -> Result<ExitCode, CommandError> {
    if command.image.starts_with(instance::PREFIX) {
        return instance::enter(command, events);
    }
    let (context, request) = asked(command)?;
    let failed = |error| CommandError::of_run(error, &context.host);
    let prepared = prepare(&request, &context.host, &context.site).map_err(failed)?;
    if events.is_none() {
        for warning in prepared.warnings() {
            note(&format!("warning: {warning}"));
        }
    }
    prepared.run(events.map(|events| events as &mut dyn Listener)).map(end_as).map_err(failed)
}

/// Prints the Plan. What the policy denies has none: then its verdict is printed, as the Plan would hold it.
pub(crate) fn plan(command: RunCommand) -> Result<ExitCode, CommandError> {
    let (context, request) = asked(command)?;
    let (printed, denied) = match situla_engine::plan(&request, &context.host, &context.site) {
        Ok(plan) => (serde_json::to_value(&plan), None),
        Err(EngineError::Denied(verdict)) => {
            let image = json!({ "requested": request.image });
            let printed = json!({ "schema": PLAN_SCHEMA, "image": image, "verdict": verdict });
            (Ok(printed), Some(EngineError::Denied(verdict)))
        }
        Err(error) => return Err(CommandError::engine(error)),
    };
    let text = printed.and_then(|value| serde_json::to_string_pretty(&value));
    let text = text.map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    data(&format!("{text}\n"))?;
    denied.map_or(Ok(ExitCode::SUCCESS), |error| Err(CommandError::engine(error)))
}
