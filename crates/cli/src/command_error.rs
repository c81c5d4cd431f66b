//! How failures look to the user: message, cause, remedy and exit status, in one place.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use situla_engine::{
    EngineClass, EngineError, FailureKind, Host, HostError, InstanceError, Personality, Refusal, RunEvent,
    StepEnd,
};

use crate::output::{data, note};

/// A failure on its way to the user.
#[derive(Debug)]
pub(crate) struct CommandError {
    kind: FailureKind,
    message: String,
    causes: Vec<String>,
    remedy: Option<String>,
    /// The class under which it is recorded, for `--json`.
    class: String,
    /// Whether the engine has recorded it already.
    recorded: bool,
    /// The step that is not to go on after this.
    ends: Option<Box<StepEnd>>,
    /// The signal that has asked this process to end: it ends by that, and says nothing.
    signal: Option<i32>,
}

impl CommandError {
    /// The user asked wrongly.
    pub(crate) fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        CommandError {
            kind: FailureKind::Usage,
            message: message.into(),
            causes: Vec::new(),
            remedy,
            class: "bad-option".to_owned(),
            recorded: false,
            ends: None,
            signal: None,
        }
    }

    /// The engine failed.
    pub(crate) fn engine(error: EngineError) -> Self {
        let mut causes = causes(match &error {
            // The failure stands in the message already; its own causes follow.
            EngineError::Runtime(failure) => failure,
            other => other,
        });
        if let EngineError::Fetch { message, .. } | EngineError::Extract { message, .. } = &error {
            causes.push(message.clone());
        }
        let signal = match &error {
            EngineError::Interrupted { signal } => Some(signal.signal),
            _ => None,
        };
        CommandError {
            kind: error.kind(),
            message: error.to_string(),
            causes,
            remedy: error.remedy(),
            class: error.class().name().to_owned(),
            recorded: true,
            ends: None,
            signal,
        }
    }

    /// Something with an instance failed.
    pub(crate) fn instance(error: InstanceError) -> Self {
        match error {
            InstanceError::Engine(error) => CommandError::engine(error),
            error => {
                let kind = match &error {
                    InstanceError::Name { .. } | InstanceError::Signal { .. } => FailureKind::Usage,
                    _ => FailureKind::Engine,
                };
                // What the holder refuses it has recorded.
                let recorded = matches!(error, InstanceError::Refused { .. });
                let class = error.class();
                CommandError { kind, recorded, ..CommandError::other(&error, class.name(), error.remedy()) }
            }
        }
    }

    /// The engine failed while it ran something: where one of our own processes was killed, the step is
    /// to end once this is reported.
    pub(crate) fn of_run(error: EngineError, host: &Host) -> Self {
        let ends = StepEnd::of(host).filter(|_| error.is_loss()).map(Box::new);
        CommandError { ends, ..CommandError::engine(error) }
    }

    /// The same with what follows from it.
    pub(crate) fn therefore(self, consequence: &str) -> Self {
        let message = format!("{}: so {consequence}", self.message_with_causes());
        CommandError { message, causes: Vec::new(), ..self }
    }

    /// The site's policy cannot be read: nothing has been asked of the engine yet, so nothing is recorded.
    pub(crate) fn site(error: EngineError) -> Self {
        CommandError { recorded: false, ..CommandError::engine(error) }
    }

    /// The host's facts cannot be gathered.
    pub(crate) fn host(error: HostError) -> Self {
        CommandError::other(&error, "setup-failed", None)
    }

    /// What was asked for cannot be done, for a reason that is no other error.
    pub(crate) fn refused(class: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        CommandError {
            kind: FailureKind::Engine,
            class: class.to_owned(),
            ..CommandError::usage(message, remedy)
        }
    }

    /// Any other failure, with the class under which it is known.
    pub(crate) fn other(error: &dyn Error, class: &str, remedy: Option<String>) -> Self {
        CommandError {
            kind: FailureKind::Engine,
            message: error.to_string(),
            causes: causes(error),
            remedy,
            class: class.to_owned(),
            recorded: false,
            ends: None,
            signal: None,
        }
    }

    /// Several failures as one, which tells all of them; `None` where there is none. Its kind and class are those of
    /// the first.
    pub(crate) fn all(errors: Vec<CommandError>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let mut all = errors.next()?;
        for error in errors {
            all.message = format!("{}; {}", all.message_with_causes(), error.message_with_causes());
            all.causes.clear();
            let mut remedies: Vec<String> = all.remedy.into_iter().collect();
            remedies.extend(error.remedy.filter(|remedy| !remedies.contains(remedy)));
            all.remedy = Some(remedies.join("; ")).filter(|remedy| !remedy.is_empty());
            all.ends = all.ends.or(error.ends);
        }
        Some(all)
    }

    /// Everything in one line: for tasks of Slurm, whose output is mixed with that of others.
    pub(crate) fn one_line(&self) -> String {
        let mut line = self.message.clone();
        for cause in self.causes.iter().chain(&self.remedy) {
            // A message that repeats its cause says it once.
            if !line.contains(cause.as_str()) {
                line.push_str(if Some(cause) == self.remedy.as_ref() { "; " } else { ": " });
                line.push_str(cause);
            }
        }
        line.replace('\n', " ")
    }

    /// Records a failure of a run in a step of Slurm, if the engine has not done so.
    pub(crate) fn record(&self, host: &Host, image: &str, words: &[OsString], personality: Personality) {
        if !self.recorded && host.allocation.is_some() {
            let (class, message) = (EngineClass::from(self.class.clone()), self.message.clone());
            let refusal = Refusal { class, message, kind: self.kind, personality };
            situla_engine::record_refusal(host, image, words, refusal);
        }
    }

    /// Records a refusal that comes before anything is known but the environment.
    pub(crate) fn record_early(&self, personality: Personality) {
        let words: Vec<OsString> = std::env::args_os().collect();
        self.record_before_host("", &words, personality);
    }

    /// Records a refusal that comes before the host's facts are put together.
    pub(crate) fn record_before_host(&self, image: &str, words: &[OsString], personality: Personality) {
        if let Ok(host) = Host::gather(std::env::vars_os().collect()) {
            self.record(&host, image, words, personality);
        }
    }

    /// Message with causes, and remedy, for an error of another kind that takes its place.
    pub(crate) fn told(self) -> (String, String) {
        (self.message_with_causes(), self.remedy.unwrap_or_default())
    }

    fn message_with_causes(&self) -> String {
        let mut message = self.message.clone();
        for cause in &self.causes {
            message.push_str(": ");
            message.push_str(cause);
        }
        message
    }

    /// For `--json`: class, message and remedy.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let message = self.message_with_causes();
        serde_json::json!({ "class": self.class, "message": message, "remedy": self.remedy })
    }

    /// For programs that watch a run.
    pub(crate) fn event(&self) -> RunEvent {
        if let Some(signal) = self.signal {
            return RunEvent::Exit { exit: situla_records::Exit::Signal(signal) };
        }
        RunEvent::Error {
            class: self.class.clone(),
            message: self.message_with_causes(),
            remedy: self.remedy.clone(),
            status: self.kind.status(Personality::Native),
        }
    }

    /// Ends as a failure does that was told already, as an event: that is the last word, so a step that cannot be
    /// ended is not told.
    pub(crate) fn end_told(&self) -> ExitCode {
        self.die_if_interrupted();
        let _ = self.ends.as_ref().map(|ends| ends.request());
        ExitCode::from(self.kind.status(Personality::Native))
    }

    /// Reports to the user of our own command line.
    pub(crate) fn report(&self, in_step: Option<&str>) -> ExitCode {
        self.die_if_interrupted();
        match in_step {
            Some(step) => note(&format!("situla: error: {} ({step})", self.one_line())),
            None => {
                note(&format!("error: {}", self.message));
                for cause in &self.causes {
                    note(&format!("caused by: {cause}"));
                }
                if let Some(remedy) = &self.remedy {
                    note(&format!("\nhint: {remedy}"));
                }
            }
        }
        self.end_step(in_step);
        ExitCode::from(self.kind.status(Personality::Native))
    }

    /// Ends as the signal would have ended this process, had it not waited to clean up.
    fn die_if_interrupted(&self) {
        if let Some(signal) = self.signal {
            situla_engine::die_by(signal);
        }
    }

    /// Ends the step, where it must not go on. Comes after the report: this process is part of it.
    fn end_step(&self, in_step: Option<&str>) {
        let Some(Err(error)) = self.ends.as_ref().map(|ends| ends.request()) else { return };
        let cause = causes(&error).into_iter().map(|cause| format!(": {cause}")).collect::<String>();
        let place = in_step.map(|step| format!(" ({step})")).unwrap_or_default();
        note(&format!("situla: warning: other tasks of the step may go on: {error}{cause}{place}"));
    }

    /// Reports to a program, as one JSON object on standard output. The status is always the engine's, so
    /// that a program need not tell kinds of failures by it.
    pub(crate) fn report_json(&self) -> ExitCode {
        // A reader that has gone is told by the status.
        let _ = data(&format!("{}\n", self.to_json()));
        ExitCode::from(FailureKind::Engine.status(Personality::Native))
    }

    /// Reports as Apptainer does, in a line that begins with `FATAL:`.
    pub(crate) fn report_fatal(&self, in_step: Option<&str>) -> ExitCode {
        self.die_if_interrupted();
        let place = in_step.map(|step| format!(" ({step})")).unwrap_or_default();
        note(&format!("FATAL:   {}{place}", self.one_line()));
        self.end_step(in_step);
        ExitCode::from(self.kind.status(Personality::Apptainer))
    }
}

/// The messages of the causes of an error, outermost first.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut found = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        found.push(error.to_string());
        cause = error.source();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_holds_message_cause_and_remedy() {
        let source = std::io::Error::other("disk on fire");
        let error = EngineError::OpenImage { path: "a.sif".to_owned(), source };
        let line = CommandError::engine(error).one_line();
        assert_eq!(line, "cannot open image a.sif: disk on fire; check the file's permissions");
    }

    #[test]
    fn several_failures_are_all_told() {
        assert!(CommandError::all(Vec::new()).is_none());
        let stays = |name: &str| {
            let limit = std::time::Duration::from_secs(1);
            CommandError::instance(InstanceError::Stays { name: name.to_owned(), limit })
        };
        assert_eq!(CommandError::all(vec![stays("a")]).unwrap().one_line(), stays("a").one_line());
        let file = InstanceError::File {
            doing: "lock",
            path: "/state/.lock".into(),
            source: std::io::Error::other("disk on fire"),
        };
        let all = CommandError::all(vec![CommandError::instance(file), stays("b"), stays("c")]).unwrap();
        let line = all.one_line();
        for part in [
            "/state/.lock: disk on fire; instance b has",
            "instance c has",
            "stop --force b",
            "stop --force c",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
