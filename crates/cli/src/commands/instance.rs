//! `situla instance`: containers with a name that stay.
//!
//! Apptainer's command line has the same commands with the same options; what they print differs.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use situla_engine::{
    Action, Condition, Entering, InstanceError, InstanceName, InstanceState, Instances, Listed, Listener,
    Personality, RunRequest, Stop, Usage, find, parse_signal, start, stop, usage,
};

use crate::command_error::CommandError;
use crate::commands::run::RunCommand;
use crate::events::{EventOptions, EventWriter};
use crate::output::{data, note, size, table};
use crate::run_options::RunOptions;
use crate::{Context, end_as};

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// What the image of a command is called where it is an instance.
pub(crate) const PREFIX: &str = "instance://";

/// Start, enter, list and end containers that stay.
#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Start an instance: the image's start script, or a container that waits to be entered
    Start(StartArgs),
    /// Start an instance that runs the image's own command
    Run(StartArgs),
    /// Run a command in an instance
    Exec(ExecArgs),
    /// List your instances on this host
    List(ListArgs),
    /// End instances
    Stop(StopArgs),
    /// Show what an instance uses
    Stats(StatsArgs),
}

/// Start an instance.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    options: RunOptions,
    /// Write the number of its first process to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Show no progress while an image is fetched
    #[arg(short, long)]
    quiet: bool,
    /// The image (a .sif or .sqsh file, a directory, or docker:// or oras://REGISTRY/NAME:TAG), a name for the instance
    /// (letters, digits, dots, hyphens and underscores), and arguments for its command
    #[arg(value_names = ["IMAGE", "NAME", "ARGUMENT"], trailing_var_arg = true, required = true, num_args = 2..)]
    words: Vec<OsString>,
}

/// Run a command in an instance.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// Working directory inside the container
    #[arg(long, visible_alias = "pwd", value_name = "DIR")]
    cwd: Option<String>,
    /// Keep the host's variables outside
    #[arg(short = 'e', long)]
    cleanenv: bool,
    /// Set variables: NAME=VALUE, comma-separated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Take the values of variables letter by letter
    #[arg(long)]
    no_eval: bool,
    /// Keep this descriptor open for the command; inside a step of Slurm others are closed (repeatable)
    #[arg(long, value_name = "N")]
    keep_fd: Vec<i32>,
    /// Record this run also outside of Slurm
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    events: EventOptions,
    /// The instance
    #[arg(value_name = "NAME")]
    name: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// List instances.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    /// Show where the output of each goes
    #[arg(short, long)]
    logs: bool,
    /// Only names that match; * and ? stand for any letters and for any one
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,
}

/// End instances.
#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    /// End all of them
    #[arg(short, long, conflicts_with = "name")]
    all: bool,
    /// Kill at once
    #[arg(short = 'F', long)]
    force: bool,
    /// The signal that its processes get (default: what the image names, else TERM; by Apptainer's command line INT)
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// How many seconds they may take before they are killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86400))]
    timeout: u64,
    /// The instance, or a pattern of names
    #[arg(value_name = "NAME", required_unless_present = "all")]
    name: Option<String>,
}

/// Show what an instance uses.
#[derive(Args, Debug)]
pub(crate) struct StatsArgs {
    /// Print JSON, a line for each look
    #[arg(short, long)]
    json: bool,
    /// Look once
    #[arg(long)]
    no_stream: bool,
    /// The instance
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs one of the commands, with the manners of a front end.
pub(crate) fn instance(
    command: InstanceCommand,
    personality: Personality,
    quiet: bool,
) -> Result<ExitCode, CommandError> {
    match command {
        InstanceCommand::Start(arguments) => start_one(arguments, Action::Start, personality, quiet),
        InstanceCommand::Run(arguments) => start_one(arguments, Action::Run, personality, quiet),
        InstanceCommand::Exec(arguments) => super::run::run(arguments.into_command(personality)),
        InstanceCommand::List(arguments) => show_list(&arguments, personality),
        InstanceCommand::Stop(arguments) => stop_some(&arguments, personality, quiet),
        InstanceCommand::Stats(arguments) => show_usage(&arguments, personality),
    }
}

impl ExecArgs {
    fn into_command(self, personality: Personality) -> RunCommand {
        let ExecArgs { cwd, cleanenv, env, no_eval, keep_fd, record, events, name, command } = self;
        let options = RunOptions::for_entering(cwd, cleanenv, env, no_eval, keep_fd, record);
        let image = format!("{PREFIX}{name}");
        RunCommand { personality, options, image, action: Action::Exec(command), quiet: true, events }
    }
}

fn failed(error: InstanceError) -> CommandError {
    CommandError::instance(error)
}

fn place(context: &Context) -> Result<Instances, CommandError> {
    let directory = context.host.instances.clone().ok_or(InstanceError::NoPlace).map_err(failed)?;
    Ok(Instances::new(directory))
}

fn parse_name(text: &str) -> Result<InstanceName, CommandError> {
    let text = text.strip_prefix(PREFIX).unwrap_or(text);
    InstanceName::parse(text).ok_or_else(|| failed(InstanceError::Name { text: text.to_owned() }))
}

fn start_one(
    arguments: StartArgs,
    action: fn(Vec<OsString>) -> Action,
    personality: Personality,
    quiet: bool,
) -> Result<ExitCode, CommandError> {
    let StartArgs { options, pid_file, quiet: own_quiet, words } = arguments;
    let mut words = words.into_iter();
    let mut text = || words.next().unwrap_or_default().to_string_lossy().into_owned();
    let (image, name) = (text(), text());
    let arguments: Vec<OsString> = words.collect();
    let quiet = quiet || own_quiet;
    let context = Context::gather()?;
    let action = action(arguments);
    let made = parse_name(&name).and_then(|name| {
        let variable = |name: &str| context.host.variable(name).map(str::to_owned);
        let made = options.request(personality, image.clone(), action.clone(), &context.host.cwd, &variable);
        made.map(|request| (name, request))
    });
    let (name, mut request) =
        made.inspect_err(|error| error.record(&context.host, &image, action.words(), personality))?;
    request.progress = !quiet && context.is_first_task();
    let mut warn = |warning: &str| note(&format!("warning: {warning}"));
    let state = start(request, &name, &context.host, &context.site, &mut warn).map_err(failed)?;
    if let Some(path) = pid_file
        && let Err(error) = write_pid(&path, state.pid())
    {
        // A script that wants the number cannot end what it does not know.
        let how = Stop { signal: parse_signal("TERM").map_err(failed)?, limit: Duration::from_secs(10) };
        stop(&place(&context)?, &state, &how).map_err(failed)?;
        let message = format!("cannot write {}: {error}", path.display());
        return Err(CommandError::refused("setup-failed", message, "name a file in a directory of your own"));
    }
    if !quiet {
        match personality {
            Personality::Apptainer => note("INFO:    instance started successfully"),
            _ => note(&format!("instance {} runs; its first process is {}", state.name, state.pid())),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_pid(path: &Path, pid: i32) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(path)?;
    writeln!(file, "{pid}")
}

/// Runs a command in the instance that its image names, and ends as it does.
pub(crate) fn enter(command: RunCommand, events: Option<&mut EventWriter>) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let RunCommand { personality, options, image, action, .. } = command;
    let request = |name: &str| -> Result<(InstanceName, RunRequest), CommandError> {
        let name = parse_name(name)?;
        if let Some(option) = options.only_for_new() {
            let message = format!("--{option} makes a container, and {name} is one already");
            return Err(CommandError::usage(message, "give it to `instance start`"));
        }
        // What a profile of the site sets for new containers is no business of one that stands.
        let variable = |name: &str| {
            let (_, key) = name.split_once('_')?;
            let counts = ["CLEANENV", "NO_EVAL", "CWD", "TARGET_CWD", "PWD", "TARGET_PWD"].contains(&key);
            counts.then(|| context.host.variable(name).map(str::to_owned)).flatten()
        };
        let made =
            options.request(personality, image.clone(), action.clone(), &context.host.cwd, &variable)?;
        Ok((name, made))
    };
    let entered = request(&image).and_then(|(name, request)| {
        Entering::prepare(request, &name, &context.host, &context.site).map_err(failed)
    });
    let entering =
        entered.inspect_err(|error| error.record(&context.host, &image, action.words(), personality))?;
    if events.is_none() {
        for warning in entering.warnings() {
            note(&format!("warning: {warning}"));
        }
    }
    entering.run(events.map(|events| events as &mut dyn Listener)).map(end_as).map_err(CommandError::engine)
}

fn show_list(arguments: &ListArgs, personality: Personality) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let pattern = arguments.pattern.as_deref().unwrap_or("*");
    let mut found = place(&context)?.list().map_err(failed)?;
    found.retain(|listed| matches(pattern, &listed.state.name));
    let text = match (personality, arguments.json) {
        (Personality::Apptainer, true) => {
            let running = found.iter().filter(|listed| listed.condition == Condition::Running);
            let instances: Vec<Value> = running.map(|listed| apptainers_json(&listed.state)).collect();
            pretty(&json!({ "instances": instances }))?
        }
        (Personality::Apptainer, false) => apptainers_table(&found, arguments.logs),
        (_, true) => {
            let instances: Vec<Value> = found.iter().map(own_json).collect();
            pretty(&json!({ "schema": SCHEMA, "host": context.host.hostname, "instances": instances }))?
        }
        (_, false) => own_table(&found, arguments.logs),
    };
    data(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn pretty(value: &Value) -> Result<String, CommandError> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| format!("{text}\n")).map_err(|error| CommandError::other(&error, "setup-failed", None))
}

/// As Apptainer has it.
fn apptainers_json(state: &InstanceState) -> Value {
    json!({
        "instance": state.name,
        "pid": state.pid(),
        "img": state.image_path.to_string_lossy(),
        // There is no network of an instance's own that could have one.
        "ip": "",
        "logErrPath": state.log_err.to_string_lossy(),
        "logOutPath": state.log_out.to_string_lossy(),
    })
}

fn own_json(listed: &Listed) -> Value {
    let state = &listed.state;
    json!({
        "name": state.name,
        "state": condition(listed.condition),
        "pid": state.pid(),
        "holder_pid": state.holder_pid(),
        "image": state.image,
        "image_path": state.image_path.to_string_lossy(),
        "started": state.started,
        "step": state.step,
        "log_out": state.log_out.to_string_lossy(),
        "log_err": state.log_err.to_string_lossy(),
    })
}

fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Running => "running",
        Condition::Ended => "killed",
        Condition::Elsewhere => "elsewhere",
    }
}

fn apptainers_table(found: &[Listed], logs: bool) -> String {
    let header: &[&str] =
        if logs { &["INSTANCE NAME", "PID", "LOGS"] } else { &["INSTANCE NAME", "PID", "IP", "IMAGE"] };
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(|text| (*text).to_owned()).collect()];
    for Listed { state, .. } in found.iter().filter(|listed| listed.condition == Condition::Running) {
        let pid = state.pid().to_string();
        if logs {
            rows.push(vec![state.name.clone(), pid, state.log_err.display().to_string()]);
            rows.push(vec![String::new(), String::new(), state.log_out.display().to_string()]);
        } else {
            rows.push(vec![state.name.clone(), pid, String::new(), state.image_path.display().to_string()]);
        }
    }
    table(&rows)
}

fn own_table(found: &[Listed], logs: bool) -> String {
    let last: &[&str] = if logs { &["OUTPUT", "ERRORS"] } else { &["IMAGE"] };
    let header = ["NAME", "STATE", "PID", "AGE", "STEP"].iter().chain(last);
    let mut rows: Vec<Vec<String>> = vec![header.map(|text| (*text).to_owned()).collect()];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for Listed { state, condition: is } in found {
        let mut row = vec![
            state.name.clone(),
            condition(*is).to_owned(),
            state.pid().to_string(),
            age(now.saturating_sub(state.started)),
            state.step.clone().unwrap_or_else(|| "-".to_owned()),
        ];
        if logs {
            row.extend([&state.log_out, &state.log_err].map(|path| path.display().to_string()));
        } else {
            row.push(state.image.clone());
        }
        rows.push(row);
    }
    table(&rows)
}

/// A time as people read it.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

fn stop_some(arguments: &StopArgs, personality: Personality, quiet: bool) -> Result<ExitCode, CommandError> {
    let asked = if arguments.force { Some("KILL") } else { arguments.signal.as_deref() };
    let asked = asked.map(parse_signal).transpose().map_err(failed)?;
    let how = |state: &InstanceState| -> Result<Stop, CommandError> {
        let default = match (personality, state.stop_signal.as_deref()) {
            (Personality::Apptainer, _) => "INT",
            (_, Some(signal)) => signal,
            (_, None) => "TERM",
        };
        let signal = asked.map_or_else(|| parse_signal(default), Ok).map_err(failed)?;
        Ok(Stop { signal, limit: Duration::from_secs(arguments.timeout) })
    };
    let context = Context::gather()?;
    let instances = place(&context)?;
    let pattern = arguments.name.as_deref().unwrap_or("*");
    let pattern = pattern.strip_prefix(PREFIX).unwrap_or(pattern);
    let states: Vec<InstanceState> = if pattern.contains(['*', '?']) {
        let listed = instances.list().map_err(failed)?;
        let running = listed.into_iter().filter(|listed| listed.condition == Condition::Running);
        running.map(|listed| listed.state).filter(|state| matches(pattern, &state.name)).collect()
    } else {
        vec![find(&instances, &parse_name(pattern)?, &context.host).map_err(failed)?]
    };
    if states.is_empty() && !arguments.all {
        let message = format!("there is no instance whose name matches {pattern}");
        return Err(CommandError::refused("bad-option", message, "see `situla instance list`"));
    }
    let mut errors = Vec::new();
    for state in states {
        if !quiet && personality == Personality::Apptainer {
            let image = state.image_path.display();
            note(&format!("INFO:    Stopping {} instance of {image} (PID={})", state.name, state.pid()));
        }
        // The others are ended all the same.
        errors.extend(how(&state).and_then(|how| stop(&instances, &state, &how).map_err(failed)).err());
    }
    CommandError::all(errors).map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Time between two looks.
const BETWEEN: Duration = Duration::from_secs(1);

/// Time between the two looks that one answer needs.
const WITHIN: Duration = Duration::from_millis(200);

fn show_usage(arguments: &StatsArgs, personality: Personality) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let state = find(&place(&context)?, &parse_name(&arguments.name)?, &context.host).map_err(failed)?;
    let apptainer = personality == Personality::Apptainer;
    let name = if apptainer { "INSTANCE NAME" } else { "NAME" };
    let header = [name, "CPU USAGE", "CPU TIME", "MEM USAGE / LIMIT", "PIDS", "SOURCE"].map(str::to_owned);
    let mut before = (usage(&state).map_err(failed)?, Instant::now());
    let mut shows_header = !arguments.json;
    loop {
        std::thread::sleep(if arguments.no_stream { WITHIN } else { BETWEEN });
        let now = match usage(&state) {
            // It has ended while somebody was looking.
            Err(InstanceError::Silent { .. }) if !arguments.no_stream => return Ok(ExitCode::SUCCESS),
            other => (other.map_err(failed)?, Instant::now()),
        };
        let percent = percent(&before.0, &now.0, now.1 - before.1);
        if arguments.json {
            let mut value = serde_json::to_value(now.0).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.insert("schema".to_owned(), SCHEMA.into());
                fields.insert("name".to_owned(), state.name.clone().into());
                fields.insert("cpu_percent".to_owned(), percent.into());
            }
            data(&format!("{value}\n"))?;
        } else {
            let row = shown_usage(&state.name, &now.0, percent);
            // Columns of one width, look after look.
            let both = table(&[header.to_vec(), row.to_vec()]);
            let skipped = usize::from(!shows_header);
            let lines: Vec<&str> = both.lines().skip(skipped).collect();
            data(&format!("{}\n", lines.join("\n")))?;
            shows_header = false;
        }
        if arguments.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// Percent of one processor, with one decimal.
fn percent(before: &Usage, now: &Usage, between: Duration) -> f64 {
    let used = Duration::from_nanos(now.cpu_ns.saturating_sub(before.cpu_ns)).as_secs_f64();
    (used / between.as_secs_f64().max(1e-3) * 1000.0).round() / 10.0
}

fn shown_usage(name: &str, usage: &Usage, percent: f64) -> [String; 6] {
    let limit = usage.memory_limit_bytes.map_or_else(|| "-".to_owned(), size);
    let source = serde_json::to_value(usage.source).unwrap_or_default();
    [
        name.to_owned(),
        format!("{percent:>5.1}%"),
        format!("{:>8.2} s", Duration::from_nanos(usage.cpu_ns).as_secs_f64()),
        format!("{:>10} / {limit}", size(usage.memory_bytes)),
        format!("{:>4}", usage.n_processes),
        source.as_str().unwrap_or_default().to_owned(),
    ]
}

/// Whether a name matches a pattern in which `*` stands for any letters and `?` for any one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut star, mut seen) = (0, None, 0);
    let mut index = 0;
    while index < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                (star, seen) = (Some(at), index);
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[index] => {
                at += 1;
                index += 1;
            }
            _ => match star {
                // The last star takes one letter more.
                Some(place) => {
                    seen += 1;
                    (at, index) = (place + 1, seen);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, want) in [
            ("*", "", true),
            ("*", "web", true),
            ("web", "web", true),
            ("web", "web1", false),
            ("web?", "web1", true),
            ("web?", "web", false),
            ("*b*1", "web-b-1", true),
            ("*b*2", "web-b-1", false),
            ("a*a*a", "aaaa", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn ages_and_shares_are_short() {
        for (seconds, text) in [(0, "0 s"), (61, "1 min"), (7200, "2 h"), (200_000, "2 d")] {
            assert_eq!(age(seconds), text);
        }
        let usage = |cpu_ns| Usage {
            source: situla_engine::UsageSource::Processes,
            cpu_ns,
            memory_bytes: 0,
            memory_limit_bytes: None,
            n_processes: 1,
            n_without_pss: 0,
        };
        assert!((percent(&usage(0), &usage(500_000_000), Duration::from_secs(1)) - 50.0).abs() < 0.01);
        assert!(percent(&usage(5), &usage(0), Duration::ZERO).abs() < 0.01, "processes have gone");
    }
}
