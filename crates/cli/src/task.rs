//! The trampoline: what a task of Slurm becomes when the plugin sends it into a container.
//!
//! The plugin has put this program in place of the task's own, and left the options of the
//! container and the name of the task's program in variables. TaskProlog has run, on the host.

use std::ffi::OsString;
use std::process::ExitCode;

use situla_bindings::{BindRequest, BindSource, Origin, parse_pyxis_mounts};
use situla_engine::{Action, Personality, RunRequest, TASK_VARIABLES, prepare};

use crate::command_error::CommandError;
use crate::output::note;
use crate::{Context, end_as};

/// The program that the task is to run: set by the plugin, together with those below.
pub(crate) const PROGRAM: &str = TASK_VARIABLES[0];
const IMAGE: &str = TASK_VARIABLES[1];
const MOUNTS: &str = TASK_VARIABLES[2];
const WORKDIR: &str = TASK_VARIABLES[3];

/// Runs the task.
pub(crate) fn main(program: OsString, arguments: Vec<OsString>) -> ExitCode {
    match run(program, arguments) {
        Ok(code) => code,
        Err(error) => error.report(Some(&step_name())),
    }
}

fn run(program: OsString, arguments: Vec<OsString>) -> Result<ExitCode, CommandError> {
    let command: Vec<OsString> = std::iter::once(program).chain(arguments).collect();
    let context = Context::gather().inspect_err(|error| {
        let image = std::env::var(IMAGE).unwrap_or_default();
        error.record_before_host(&image, &command, Personality::Task);
    })?;
    let mut request = match request(&context, command.clone()) {
        Ok(request) => request,
        Err(error) => {
            let image = context.host.variable(IMAGE).unwrap_or_default();
            error.record(&context.host, image, &command, Personality::Task);
            return Err(error);
        }
    };
    request.progress = context.is_first_task();
    let failed = |error| CommandError::of_run(error, &context.host);
    let prepared = prepare(&request, &context.host, &context.site).map_err(failed)?;
    for warning in prepared.warnings() {
        note(&format!("situla: warning: {warning} ({})", step_name()));
    }
    prepared.run(None).map(end_as).map_err(failed)
}

/// What the plugin's variables ask for.
fn request(context: &Context, command: Vec<OsString>) -> Result<RunRequest, CommandError> {
    let variable = |name: &str| context.host.variable(name).map(str::to_owned);
    let image = variable(IMAGE).ok_or_else(|| CommandError::usage("the plugin has named no image", ""))?;
    let script = command.first().and_then(|program| batch_script(program, context));
    let mut request = RunRequest::new(Personality::Task, image, Action::Exec(command));
    if let Some(mounts) = variable(MOUNTS) {
        request.binds = parse_pyxis_mounts(&mounts, &context.host.cwd, "--container-mounts")
            .map_err(|error| CommandError::other(&error, "bad-option", None))?;
    }
    request.workdir = variable(WORKDIR);
    request.binds.extend(script);
    Ok(request)
}

/// A batch script lies in the spool directory of slurmd, which the image does not have.
fn batch_script(program: &OsString, context: &Context) -> Option<BindRequest> {
    let step = context.host.allocation.as_ref()?.step?;
    let path = std::path::PathBuf::from(program);
    (step == situla_engine::StepId::Batch && path.is_absolute() && path.is_file()).then(|| BindRequest {
        source: BindSource::Host(path.clone()),
        destination: path,
        read_only: true,
        recursive: false,
        no_exec: false,
        propagation: situla_bindings::Propagation::default(),
        optional: false,
        no_follow: false,
        origin: Origin::Default,
        reason: "the batch script".to_owned(),
    })
}

/// Job, step and node, for messages.
pub(crate) fn step_name() -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "?".to_owned());
    let step = match variable("SLURM_STEP_ID").as_str() {
        "4294967291" => "batch".to_owned(),
        "4294967290" => "interactive".to_owned(),
        other => other.to_owned(),
    };
    format!("job {}, step {step}, node {}", variable("SLURM_JOB_ID"), variable("SLURMD_NODENAME"))
}

/// [`step_name`] where this process is a task of a step.
pub(crate) fn in_step() -> Option<String> {
    std::env::var_os("SLURM_STEP_ID").map(|_| step_name())
}
