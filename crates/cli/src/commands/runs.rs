//! `situla runs` and `situla show`: the records.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use situla_engine::Host;
use situla_records::{
    Event, EventKind, Exit, Journal, JournalError, Loaded, OutcomeClass, Record, RecordId, SCHEMA, list, load,
};

use crate::accounting::Accounting;
use crate::command_error::CommandError;
use crate::output::{data, harmless, note, table};

/// List the records of runs.
#[derive(Args, Debug)]
pub(crate) struct RunsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Directory of the records (default: the user's own)
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Only this job, or JOB.STEP
    #[arg(short, long, value_name = "[CLUSTER/]JOB[.STEP]")]
    job: Option<String>,
    /// At most so many, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Show the record of one step on one node.
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Directory of the records (default: the user's own)
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Name of the record, or [CLUSTER/]JOB[.STEP[.NODE]] for all that match
    #[arg(value_name = "ID")]
    id: String,
}

/// Lists records, oldest first.
pub(crate) fn runs(arguments: &RunsArgs) -> Result<ExitCode, CommandError> {
    let directory = directory(arguments.records.clone())?;
    let ids = ids(&directory, arguments.job.as_deref())?;
    let (found, n_hidden) = newest(&directory, &ids, arguments.limit);
    if arguments.json {
        return print_json(&found);
    }
    let mut rows =
        vec![["RECORD", "IMAGE", "TASKS", "OUTCOME", "EXIT", "COMMAND"].map(str::to_owned).to_vec()];
    for (id, record) in
        found.iter().flat_map(|loaded| loaded.records.iter().map(move |record| (&loaded.id, record)))
    {
        let start = record.start.as_ref();
        rows.push(vec![
            id.to_string(),
            start.map_or_else(|| "-".to_owned(), |start| start.image.reference.clone()),
            record.tasks.len().to_string(),
            record.outcome.class.to_string(),
            record.outcome.exit.map_or_else(|| "-".to_owned(), shown_exit),
            start.map_or_else(|| "-".to_owned(), |start| shortened(&start.argv.join(" "))),
        ]);
    }
    data(&table(&rows))?;
    if n_hidden > 0 {
        note(&format!("{n_hidden} older records are not shown; see --limit"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows records in full.
pub(crate) fn show(arguments: &ShowArgs) -> Result<ExitCode, CommandError> {
    let directory = directory(arguments.records.clone())?;
    let ids = match arguments.id.parse::<RecordId>() {
        Ok(id) if directory.join(id.relative_path()).exists() => vec![id],
        _ => ids(&directory, Some(&arguments.id))?,
    };
    if ids.is_empty() {
        let message = format!("there is no record {}", arguments.id);
        return Err(CommandError::usage(message, "`situla runs` lists what there is"));
    }
    let mut found: Vec<Loaded> = ids.iter().filter_map(|id| loaded(&directory, id)).collect();
    complete(&directory, &mut found);
    if found.is_empty() {
        let message = format!("no record {} can be read", arguments.id);
        return Err(CommandError::refused("setup-failed", message, ""));
    }
    if arguments.json {
        return print_json(&found);
    }
    for loaded in &found {
        for record in &loaded.records {
            data(&harmless(&described(&loaded.id, record)))?;
        }
        if loaded.unreadable > 0 {
            note(&format!("{}: {} lines of the journal cannot be read", loaded.id, loaded.unreadable));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of the records.
fn directory(asked: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    if let Some(asked) = asked {
        return Ok(asked);
    }
    let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
    host.records.ok_or_else(|| {
        CommandError::usage("your account has no home directory for records", "use --records DIR")
    })
}

/// The names of all records that match, oldest first.
fn ids(directory: &std::path::Path, wanted: Option<&str>) -> Result<Vec<RecordId>, CommandError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut entries = list(directory).map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    entries.sort_by_key(|entry| entry.modified);
    let matches = |id: &RecordId| {
        let Some(wanted) = wanted else { return true };
        let name = id.to_string();
        let stem = name.rsplit('/').next().unwrap_or(&name);
        // Job numbers repeat from cluster to cluster, so the cluster may be named as well.
        let begins = |name: &str| {
            name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        begins(stem) || begins(&name)
    };
    Ok(entries.into_iter().map(|entry| entry.id).filter(matches).collect())
}

/// Reads the newest `limit` runs of all records, and says how many records hold older ones.
fn newest(directory: &std::path::Path, ids: &[RecordId], limit: usize) -> (Vec<Loaded>, usize) {
    let mut found: Vec<Loaded> = Vec::new();
    let (mut n_runs, mut n_read) = (0, 0);
    for id in ids.iter().rev() {
        if n_runs >= limit {
            break;
        }
        n_read += 1;
        let Some(mut one) = loaded(directory, id) else { continue };
        let too_many = (n_runs + one.records.len()).saturating_sub(limit);
        one.records.drain(..too_many.min(one.records.len()));
        n_runs += one.records.len();
        found.push(one);
    }
    found.reverse();
    complete(directory, &mut found);
    (found, ids.len() - n_read)
}

/// Reads a record; one that cannot be read is named.
fn loaded(directory: &std::path::Path, id: &RecordId) -> Option<Loaded> {
    load(directory, id)
        .map_err(|error| note(&format!("situla: {id} is passed over: {}", unreadable(&error))))
        .ok()
}

/// Why a record cannot be read, and what helps.
fn unreadable(error: &JournalError) -> String {
    match (error, std::error::Error::source(error)) {
        (JournalError::NewerSchema { .. }, _) => format!("{error}; use the version of Situla that wrote it"),
        (_, Some(cause)) => format!("{error}: {cause}"),
        (_, None) => error.to_string(),
    }
}

/// Whether only Slurm knows why a run ended: its end was not seen, or Slurm ended it.
fn needs_slurm(id: &RecordId, record: &Record) -> bool {
    id.parts().is_some() && matches!(record.outcome.class, OutcomeClass::Incomplete | OutcomeClass::Cancelled)
}

/// Asks Slurm's accounting why it ended steps, and adds the answers to the journals, so that it is asked once. All of a
/// cluster together: one question takes as long as hundreds.
fn complete(directory: &std::path::Path, found: &mut [Loaded]) {
    let mut jobs: BTreeMap<Option<String>, BTreeSet<u32>> = BTreeMap::new();
    for loaded in found.iter() {
        if let Some((job, _, _)) = loaded.id.parts()
            && loaded.records.iter().any(|record| needs_slurm(&loaded.id, record))
        {
            jobs.entry(loaded.id.cluster().map(str::to_owned)).or_default().insert(job);
        }
    }
    for (cluster, jobs) in jobs {
        let jobs: Vec<u32> = jobs.into_iter().collect();
        let accounting = Accounting::ask(cluster.as_deref(), &jobs);
        for loaded in found.iter_mut().filter(|loaded| loaded.id.cluster() == cluster.as_deref()) {
            add_causes(directory, loaded, &accounting);
        }
    }
}

/// Adds to a record what accounting knows of it.
fn add_causes(directory: &std::path::Path, loaded: &mut Loaded, accounting: &Accounting) {
    let Some((job, step, _)) = loaded.id.parts() else { return };
    let answers = loaded.records.iter().filter(|record| needs_slurm(&loaded.id, record));
    let answers = answers.filter_map(|record| {
        let (cause, evidence) =
            accounting.cause(job, step, record.started_ns.unwrap_or(0) / 1_000_000_000)?;
        // Of a job that goes on it may be asked again, and say the same.
        let is_new = record.outcome.message.as_ref() != Some(&evidence);
        is_new.then(|| (record.run.clone(), EventKind::Observed { cause, evidence }))
    });
    let answers: Vec<(String, EventKind)> = answers.collect();
    if answers.is_empty() {
        return;
    }
    let Ok(journal) = Journal::open(directory, &loaded.id) else { return };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    for (run, kind) in answers {
        // What cannot be written is shown the next time all the same.
        let _ = journal.append(&Event { schema: SCHEMA, run, time_ns, kind });
    }
    if let Ok(completed) = load(directory, &loaded.id) {
        // Older runs may have been left out.
        let n_shown = loaded.records.len();
        let n_older = completed.records.len().saturating_sub(n_shown);
        *loaded = completed;
        loaded.records.drain(..n_older);
    }
}

fn print_json(found: &[Loaded]) -> Result<ExitCode, CommandError> {
    let mut values = Vec::new();
    for loaded in found {
        for record in &loaded.records {
            let mut value = serde_json::to_value(record)
                .map_err(|error| CommandError::other(&error, "setup-failed", None))?;
            value["id"] = loaded.id.to_string().into();
            value["unreadable"] = loaded.unreadable.into();
            values.push(value);
        }
    }
    let text = serde_json::to_string_pretty(&values)
        .map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    data(&format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn shown_exit(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("{code}:0"),
        Exit::Signal(signal) => format!("0:{signal}"),
    }
}

fn shortened(text: &str) -> String {
    const WIDTH: usize = 40;
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A record in words.
fn described(id: &RecordId, record: &Record) -> String {
    let mut lines = vec![format!("{id} (run {})", record.run)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    if let Some(start) = &record.start {
        line("command", start.argv.join(" "));
        line("image", start.image.reference.clone());
        if let Some(digest) = &start.image.manifest_digest {
            line("manifest", digest.clone());
        }
        line("rootfs", start.image.rootfs_digest.clone());
        if let Some(container) = &start.container {
            let name = container.name.as_deref().unwrap_or("for this step");
            line("container", format!("{name} ({}, made by {})", container.scope, container.made_by));
        }
        let who = &start.identity;
        let place = who.node.as_deref().unwrap_or(&who.host);
        line("user", format!("{} ({}) on {place}", who.user.as_deref().unwrap_or("?"), who.uid));
        if who.restarts > 0 {
            line("restarts", who.restarts.to_string());
        }
        line("engine", start.engine.clone());
        // Those of the first task that ran go on from the Plan to the payload.
        let first =
            record.tasks.iter().filter(|task| !task.phases.is_empty()).min_by_key(|task| task.started_ns);
        let phases = first.map_or(&start.phases, |task| &task.phases).iter().map(|phase| {
            let microseconds = phase.end_ns.saturating_sub(phase.start_ns) / 1000;
            format!("{} {microseconds} us", phase.name)
        });
        line("phases", phases.collect::<Vec<_>>().join(", "));
    }
    let outcome = &record.outcome;
    let message = outcome.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    line("outcome", format!("{}{message}", outcome.class));
    for task in &record.tasks {
        let exit =
            task.exit.map_or_else(|| "no end seen".to_owned(), |exit| format!("exit {}", shown_exit(exit)));
        let signals = task.signals.iter().map(|seen| format!(", signal {} received", seen.signal));
        let signals: String = signals.collect();
        line(&format!("task {}", task.task.rank), format!("{exit} ({}){signals}", task.class));
    }
    for file in &record.saved {
        line("saved", format!("{} {}", file.path, file.rootfs_digest));
    }
    for error in &record.errors {
        let of = error.task.map(|task| format!(" (task {})", task.rank)).unwrap_or_default();
        line("error", format!("{}: {}{of}", error.class.name(), error.message));
    }
    lines.push(String::new());
    lines.join("\n")
}
