//! Why Slurm ended a step, as its accounting tells by sacct(1).
//!
//! A job that is requeued has a row for each time that it ran, and so have its steps, under the same numbers. Of which of
//! these a record is, the times tell: a node's clock need not agree with that of Slurm's controller, but between two runs
//! of a job more time goes by than clocks differ.
//!
//! Nothing here fails: where accounting is not there, or does not know, there is no answer.

use std::process::{Command, Stdio};

use situla_records::Cause;

/// What accounting knows of jobs.
#[derive(Debug, Default)]
pub(crate) struct Accounting {
    runs: Vec<JobRun>,
}

/// A job, as it ran once.
#[derive(Debug)]
struct JobRun {
    job: u32,
    state: String,
    /// In seconds since 1970; absent until it has begun, or ended.
    start: Option<u64>,
    end: Option<u64>,
    steps: Vec<Step>,
}

/// One step of it.
#[derive(Debug)]
struct Step {
    name: String,
    state: String,
    end: Option<u64>,
}

impl Accounting {
    /// Asks for jobs of one cluster, as the records name it. Each question costs a connection to the database, whose answer is
    /// the same however many jobs it is about.
    pub(crate) fn ask(cluster: Option<&str>, jobs: &[u32]) -> Self {
        /// A command line has an end (`MAX_ARG_STRLEN`, execve(2)).
        const AT_ONCE: usize = 1000;
        let mut all = Self::default();
        for some in jobs.chunks(AT_ONCE) {
            all.runs.extend(Self::ask_once(cluster, some).into_iter().flat_map(|known| known.runs));
        }
        all
    }

    fn ask_once(cluster: Option<&str>, jobs: &[u32]) -> Option<Self> {
        let mut command = Command::new("sacct");
        // The raw numbers are those of records also for tasks of arrays and components of heterogeneous jobs.
        command.args(["--noheader", "--parsable2", "--duplicates", "--format=JobIDRaw,State,Start,End"]);
        let numbers: Vec<String> = jobs.iter().map(u32::to_string).collect();
        command.args(["--jobs", &numbers.join(",")]).env("SLURM_TIME_FORMAT", "%s");
        // Numbers repeat from cluster to cluster.
        command.args(cluster.map(|name| format!("--clusters={name}")));
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Reads the rows: each of the job is followed by those of its steps.
    fn parse(text: &str) -> Self {
        let mut runs: Vec<JobRun> = Vec::new();
        for line in text.lines() {
            let mut fields = line.split('|');
            let (Some(id), Some(state)) = (fields.next(), fields.next()) else { continue };
            let (state, mut time) = (state.trim().to_owned(), || fields.next()?.parse().ok());
            let (start, end) = (time(), time());
            let (number, step) = match id.split_once('.') {
                Some((number, step)) => (number, Some(step)),
                None => (id, None),
            };
            let Ok(number) = number.parse() else { continue };
            match (step, runs.last_mut()) {
                (None, _) => runs.push(JobRun { job: number, state, start, end, steps: Vec::new() }),
                (Some(step), Some(run)) if run.job == number => {
                    run.steps.push(Step { name: step.to_owned(), state, end });
                }
                (Some(_), _) => {}
            }
        }
        Self { runs }
    }

    /// The cause behind the end of a step of `job` that began at a time, in seconds since 1970, with the states that say so.
    pub(crate) fn cause(&self, job: u32, step: &str, begun: u64) -> Option<(Cause, String)> {
        let distance = |run: &&JobRun| {
            let start = run.start.unwrap_or(u64::MAX);
            start.saturating_sub(begun).max(begun.saturating_sub(run.end.unwrap_or(u64::MAX)))
        };
        let run = self.runs.iter().filter(|run| run.job == job).min_by_key(distance)?;
        let step = run.steps.iter().find(|known| known.name == step)?;
        // Seconds that begin between the two ends.
        let with_job = step.end.zip(run.end).is_some_and(|(step, job)| step + 1 >= job);
        cause_of(&run.state, &step.state, with_job)
    }
}

/// The cause behind the states of a job and its step. A step that ends with its job is itself shown as cancelled, so the
/// job's state tells why. `with_job` says that both ended at one time: then the script of a batch job is shown as failed
/// where the job was taken off its nodes.
fn cause_of(job: &str, step: &str, with_job: bool) -> Option<(Cause, String)> {
    let cause = |state: &str| match state.split_whitespace().next() {
        Some("TIMEOUT" | "DEADLINE") => Some(Cause::TimeLimit),
        Some("CANCELLED") => Some(Cause::Cancelled),
        Some("OUT_OF_MEMORY") => Some(Cause::Oom),
        Some("PREEMPTED") => Some(Cause::Preempted),
        Some("REQUEUED") => Some(Cause::Requeued),
        Some("NODE_FAIL") => Some(Cause::NodeFail),
        _ => None,
    };
    let evidence = format!("sacct: job {job}, step {step}");
    let taken_off = [Cause::Preempted, Cause::Requeued, Cause::NodeFail];
    match (cause(step), cause(job)) {
        (Some(Cause::Oom), _) => Some((Cause::Oom, evidence)),
        (Some(_), Some(Cause::TimeLimit)) => Some((Cause::TimeLimit, evidence)),
        // Somebody has ended the step alone, or it had a limit of its own, before its job was taken off.
        (Some(own), Some(cause)) if taken_off.contains(&cause) && !with_job && is_own_end(own, step) => {
            Some((own, evidence))
        }
        (Some(_), Some(cause)) if taken_off.contains(&cause) => Some((cause, evidence)),
        (None, Some(cause)) if taken_off.contains(&cause) && with_job && step == "FAILED" => {
            Some((cause, evidence))
        }
        // So is a step shown whose task died by a signal that nobody sent on purpose: `by UID` is missing then.
        (Some(Cause::Cancelled), None) if !step.contains(" by ") => None,
        (Some(cause), _) => Some((cause, evidence)),
        // A step that ran to its end has a state of its own, whatever happened to its job later.
        (None, _) => None,
    }
}

/// Whether the state of a step tells of an end that its job's had nothing to do with.
fn is_own_end(cause: Cause, state: &str) -> bool {
    cause == Cause::TimeLimit || cause == Cause::Cancelled && state.contains(" by ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_end_explains_a_cancelled_step() {
        let found = |job: &str, step: &str| cause_of(job, step, false).map(|(cause, _)| cause);
        for (job, step, cause) in [
            ("TIMEOUT", "CANCELLED", Some(Cause::TimeLimit)),
            ("DEADLINE", "CANCELLED", Some(Cause::TimeLimit)),
            ("CANCELLED by 1001", "CANCELLED by 1001", Some(Cause::Cancelled)),
            ("CANCELLED by 0", "CANCELLED", Some(Cause::Cancelled)),
            ("FAILED", "CANCELLED by 1001", Some(Cause::Cancelled)),
            ("COMPLETED", "CANCELLED by 1001", Some(Cause::Cancelled)),
            ("FAILED", "CANCELLED", None),
            ("COMPLETED", "CANCELLED", None),
            ("OUT_OF_MEMORY", "OUT_OF_MEMORY", Some(Cause::Oom)),
            ("PREEMPTED", "OUT_OF_MEMORY", Some(Cause::Oom)),
            ("PREEMPTED", "CANCELLED", Some(Cause::Preempted)),
            ("REQUEUED", "CANCELLED", Some(Cause::Requeued)),
            ("NODE_FAIL", "CANCELLED", Some(Cause::NodeFail)),
            ("PREEMPTED", "CANCELLED by 1001", Some(Cause::Cancelled)),
            ("REQUEUED", "TIMEOUT", Some(Cause::TimeLimit)),
            ("NODE_FAIL", "NODE_FAIL", Some(Cause::NodeFail)),
            ("PREEMPTED", "COMPLETED", None),
            ("TIMEOUT", "COMPLETED", None),
            ("RUNNING", "RUNNING", None),
            ("", "", None),
        ] {
            assert_eq!(found(job, step), cause, "{job}, {step}");
        }
        for (job, step, cause) in [
            ("PREEMPTED", "FAILED", Some(Cause::Preempted)),
            ("REQUEUED", "FAILED", Some(Cause::Requeued)),
            ("NODE_FAIL", "FAILED", Some(Cause::NodeFail)),
            ("PREEMPTED", "COMPLETED", None),
            ("FAILED", "FAILED", None),
            ("TIMEOUT", "FAILED", None),
        ] {
            let found = cause_of(job, step, true).map(|(cause, _)| cause);
            assert_eq!(found, cause, "{job}, {step}, at one time");
            if step == "FAILED" {
                assert_eq!(cause_of(job, step, false), None, "{job}, {step}, one after the other");
            }
        }
    }

    /// As sacct 22.05 prints it of a job that was preempted, was requeued, and runs again.
    const REQUEUED: &str = "7|PREEMPTED|1000|1010
7.batch|FAILED|1000|1010
7.extern|COMPLETED|1000|1010
7.0|CANCELLED|1001|1015
7.1|FAILED|1001|1004
7|REQUEUED|1100|1110
7.batch|FAILED|1100|1109
7.0|CANCELLED|1101|1110
7|RUNNING|1200|Unknown
7.batch|RUNNING|1200|Unknown
7.0|RUNNING|1201|Unknown
";

    #[test]
    fn a_record_is_of_the_run_in_whose_time_it_began() {
        let accounting = Accounting::parse(REQUEUED);
        let cause = |begun| accounting.cause(7, "0", begun).map(|(cause, _)| cause);
        for (begun, wanted) in [
            (1002, Some(Cause::Preempted)),
            // Clocks that differ.
            (998, Some(Cause::Preempted)),
            (1012, Some(Cause::Preempted)),
            (1098, Some(Cause::Requeued)),
            (1105, Some(Cause::Requeued)),
            (1198, None),
            (5000, None),
        ] {
            assert_eq!(cause(begun), wanted, "{begun}");
        }
        let of = |step, begun| accounting.cause(7, step, begun).map(|(cause, _)| cause);
        assert_eq!(of("batch", 1002), Some(Cause::Preempted));
        assert_eq!(of("batch", 1102), Some(Cause::Requeued));
        assert_eq!(of("1", 1002), None, "a step that failed before");
        assert_eq!(of("2", 1002), None, "a step that there was not");
        assert_eq!(Accounting::parse(REQUEUED).cause(8, "0", 1002), None, "another job");
        assert_eq!(Accounting::parse("").cause(7, "0", 1002), None);
    }

    #[test]
    fn a_job_that_waits_again_is_not_the_one_that_ran() {
        let waits = "7|REQUEUED|1000|1010\n7.0|CANCELLED|1001|1010\n7|PENDING|Unknown|Unknown\n";
        let found = Accounting::parse(waits).cause(7, "0", 1013);
        assert_eq!(found, Some((Cause::Requeued, "sacct: job REQUEUED, step CANCELLED".to_owned())));
    }

    #[test]
    fn other_components_and_tasks_of_an_array_are_passed_over() {
        let rows = "6|CANCELLED by 1|10|20\n6.0|CANCELLED by 1|10|20\n7|TIMEOUT|10|20\n7.0|CANCELLED|10|20\n";
        assert_eq!(Accounting::parse(rows).cause(7, "0", 11).map(|found| found.0), Some(Cause::TimeLimit));
        assert_eq!(Accounting::parse(rows).cause(6, "0", 11).map(|found| found.0), Some(Cause::Cancelled));
    }
}
