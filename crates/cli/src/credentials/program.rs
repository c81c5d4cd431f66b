//! Programs that know passwords: Docker's credential helpers, and the shell for enroot's file.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use situla_image::{Login, Secret};

/// Longest time that a program may take: some ask a service in the network, or wait for a person to type.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of its answer that are read.
const MAX_ANSWER: u64 = 256 * 1024;
/// Characters of what it says about a failure that are repeated.
const MAX_SAID: usize = 300;
/// How often is looked whether a program that has closed its output has ended.
const LOOK: Duration = Duration::from_millis(2);

/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Beginnings of names of variables that are this program's business alone.
const OWN_VARIABLES: &str = "SITULA_TASK_";

/// How programs are started.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// How long one may take.
    pub(super) limit: Duration,
    /// The search path; that of this process, if there is none.
    pub(super) path: Option<OsString>,
}

impl Default for Programs {
    fn default() -> Self {
        Self { limit: TIME_LIMIT, path: None }
    }
}

impl Programs {
    /// The same, for what has to be done by `deadline`.
    pub(super) fn until(&self, deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(Instant::now());
        Self { limit: self.limit.min(left), path: self.path.clone() }
    }

    /// Asks a helper for the login at `server`; `None` if it knows none.
    ///
    /// docker-credential-helpers: the verb is the argument, the input the server, the output an object. What it does
    /// not know is a failure, told apart by its message.
    pub(super) fn get(&self, suffix: &str, server: &str) -> Result<Option<Login>, String> {
        let done = self.help(suffix, "get", server.as_bytes())?;
        if !done.status.success() {
            let said = done.said(&[]);
            let lower = said.to_ascii_lowercase();
            if ["credentials not found", "no credentials"].iter().any(|unknown| lower.contains(unknown)) {
                return Ok(None);
            }
            return Err(named(suffix, &format!("fails: {said}")));
        }
        parse_answer(&done.output).ok_or_else(|| named(suffix, "gives no user and secret")).map(Some)
    }

    /// Has a helper keep a login.
    pub(super) fn store(&self, suffix: &str, server: &str, login: &Login) -> Result<(), String> {
        let user = login.user().unwrap_or(TOKEN_USER);
        let secret = login.secret();
        let input = serde_json::json!({ "ServerURL": server, "Username": user, "Secret": secret.expose() });
        self.tell(suffix, "store", input.to_string().as_bytes(), std::slice::from_ref(secret))
    }

    /// The servers for which a helper has logins; none where it cannot tell, as some cannot.
    pub(super) fn servers(&self, suffix: &str) -> Vec<String> {
        let Ok(done) = self.help(suffix, "list", b"") else { return Vec::new() };
        let listed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&done.output);
        listed.map(|servers| servers.into_iter().map(|(server, _)| server).collect()).unwrap_or_default()
    }

    /// Has a helper forget the login at `server`.
    pub(super) fn erase(&self, suffix: &str, server: &str) -> Result<(), String> {
        self.tell(suffix, "erase", server.as_bytes(), &[])
    }

    /// Has the shell make a password of `text`, in which it replaces variables and commands.
    pub(super) fn expand(&self, text: &str) -> Result<Secret, String> {
        // What the shell says may repeat the text, and that may be a password that only begins with a dollar.
        let refused = |why: &str| {
            format!("it begins with $ and is for the shell, which {why}; quote it if it is none of that")
        };
        if !is_for_the_shell(text) {
            return Err(refused("knows nothing secret of that name"));
        }
        let mut command = Command::new("/bin/sh");
        // As enroot does. The file is the user's own. A variable that is missing would make half a password of it; what a
        // command does inside is its own business.
        let strict = if text.contains("$(") || text.contains('`') { "" } else { "set -u\n" };
        // On its input, where no other user can read it as he can arguments.
        let done = self.run(&mut command, format!("{strict}echo {text}\n").as_bytes())?;
        let output = String::from_utf8_lossy(&done.output);
        let password = output.trim_end_matches(['\n', '\r']);
        if !done.status.success() || password.is_empty() {
            return Err(refused(&format!("makes nothing of it ({})", done.status)));
        }
        Ok(Secret::new(password))
    }

    fn tell(&self, suffix: &str, verb: &str, input: &[u8], secrets: &[Secret]) -> Result<(), String> {
        let done = self.help(suffix, verb, input)?;
        match done.status.success() {
            true => Ok(()),
            false => Err(named(suffix, &format!("fails: {}", done.said(secrets)))),
        }
    }

    fn help(&self, suffix: &str, verb: &str, input: &[u8]) -> Result<Done, String> {
        self.run(&mut helper(suffix, verb)?, input).map_err(|why| named(suffix, &why))
    }

    /// Runs a program with an input, and waits for its end, or kills it. Messages begin with what it did.
    fn run(&self, command: &mut Command, input: &[u8]) -> Result<Done, String> {
        let deadline = Instant::now() + self.limit;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        // Away from a terminal all that it starts can be ended with it. At one it may want to ask for a passphrase, which
        // only programs of the foreground may.
        let own_group = !std::io::stderr().is_terminal();
        if own_group {
            command.process_group(0);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(OWN_VARIABLES) {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "is not in the search path".to_owned(),
            _ => format!("cannot be started: {error}"),
        })?;
        let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            // A program that does not read must not keep us. One that needs no input may have ended.
            let _ = thread::Builder::new().spawn(move || stdin.write_all(&input));
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        let streams =
            output.recv_timeout(left()).and_then(|output| Ok((output, errors.recv_timeout(left())?)));
        let mut status = None;
        while status.is_none() && streams.is_ok() && !left().is_zero() {
            status = child.try_wait().map_err(|error| format!("cannot be waited for: {error}"))?;
            if status.is_none() {
                thread::sleep(LOOK);
            }
        }
        match (status, streams) {
            (Some(status), Ok((output, errors))) => Ok(Done { status, output, errors }),
            _ => {
                // Whether it can be killed or not: it is told about below. It has not been waited for, so the id is its.
                if own_group && let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.kill();
                let _ = child.wait();
                let seconds = (self.limit.as_secs_f32() * 10.0).round() / 10.0;
                Err(format!("gives no answer within {seconds} s"))
            }
        }
    }
}

/// Whether a text begins with what the shell replaces by something of the user's: `$NAME`, `${...}` or `$(...)`. Its
/// own variables, such as `$$` and `$1`, hold no password.
fn is_for_the_shell(text: &str) -> bool {
    let first = text.strip_prefix('$').and_then(|rest| rest.bytes().next());
    first.is_some_and(|first| first.is_ascii_alphabetic() || b"_{(".contains(&first))
}

fn helper(suffix: &str, verb: &str) -> Result<Command, String> {
    let named = !suffix.is_empty()
        && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !named {
        return Err(format!("'{}' is no name of a credential helper", suffix.escape_debug()));
    }
    let mut command = Command::new(format!("docker-credential-{suffix}"));
    command.arg(verb);
    Ok(command)
}

fn named(suffix: &str, why: &str) -> String {
    format!("docker-credential-{suffix} {why}")
}

/// Reads the answer of `get`.
fn parse_answer(output: &[u8]) -> Option<Login> {
    let answer: serde_json::Value = serde_json::from_slice(output).ok()?;
    let text = |name: &str| answer.get(name)?.as_str().map(str::to_owned);
    let (user, secret) = (text("Username")?, text("Secret").filter(|secret| !secret.is_empty())?);
    Some(match user.as_str() {
        TOKEN_USER => Login::IdentityToken(Secret::new(secret)),
        _ => Login::Password { user, password: Secret::new(secret) },
    })
}

/// How a program has ended, and what it said.
struct Done {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Done {
    /// What a failed helper says, which is on its standard output by the protocol; an answer with a secret is not shown.
    fn said(&self, secrets: &[Secret]) -> String {
        let output = String::from_utf8_lossy(&self.output);
        let errors = String::from_utf8_lossy(&self.errors);
        let is_answer = output.contains("Secret") || output.trim_start().starts_with('{');
        let said = [if is_answer { "" } else { output.trim() }, errors.trim()].join(" ");
        match shorten(said.trim(), secrets) {
            said if said.is_empty() => self.status.to_string(),
            said => said,
        }
    }
}

/// Makes one short line.
fn shorten(text: &str, secrets: &[Secret]) -> String {
    let text = secrets.iter().fold(text.to_owned(), |text, secret| secret.hide_in(&text));
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_SAID).flat_map(char::escape_debug).collect()
}

/// Reads a stream to its end, in a thread, which goes on to wait where a descendant keeps the stream open.
fn read(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    // Without a thread the sender is dropped, and nothing is received.
    let _ = thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            let mut stream = stream.take(MAX_ANSWER);
            let _ = stream.read_to_end(&mut bytes);
            // The rest, so that the program does not wait for us.
            let _ = std::io::copy(&mut stream.into_inner(), &mut std::io::sink());
        }
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Done, String> {
        Programs { limit, path: None }.run(Command::new("/bin/sh").args(["-c", script]), b"input\n")
    }

    #[test]
    fn programs_answer_or_are_ended() {
        let done = shell("read line; echo got $line; echo warned >&2; exit 3", TIME_LIMIT).unwrap();
        assert_eq!((done.status.code(), done.output.as_slice()), (Some(3), &b"got input\n"[..]));
        assert_eq!(done.said(&[]), "got input warned");
        // One that reads nothing, says more than anybody wants, or has children that stay.
        assert!(shell("exec 0<&-; true", TIME_LIMIT).unwrap().status.success());
        let much = shell("head -c 1000000 /dev/zero", TIME_LIMIT).unwrap();
        assert_eq!(much.output.len() as u64, MAX_ANSWER);
        for script in ["exec sleep 20", "sleep 20 & wait", "exec >&- 2>&-; exec sleep 20"] {
            let began = Instant::now();
            let error = shell(script, Duration::from_millis(200)).err();
            assert_eq!(error.as_deref(), Some("gives no answer within 0.2 s"), "{script}");
            assert!(began.elapsed() < Duration::from_secs(15), "{script}");
        }
        let missing = Programs::default().run(&mut Command::new("/nonexistent/program"), b"").err();
        assert_eq!(missing.as_deref(), Some("is not in the search path"));
    }

    #[test]
    fn a_secret_is_not_repeated() {
        let done =
            shell("echo '{\"Secret\":\"hunter2\"}'; echo bad hunter2 >&2; exit 1", TIME_LIMIT).unwrap();
        assert_eq!(done.said(&[Secret::new("hunter2")]), "bad ***");
        let done = shell("exit 7", TIME_LIMIT).unwrap();
        assert_eq!(done.said(&[]), "exit status: 7");
        let done = shell("printf 'a\\033[31m\\nb'; exit 1", TIME_LIMIT).unwrap();
        assert_eq!(done.said(&[]), "a\\u{1b}[31m b");
    }

    #[test]
    fn answers_are_logins() {
        let password =
            |user: &str| Some(Login::Password { user: user.to_owned(), password: Secret::new("hunter2") });
        for (answer, want) in [
            (r#"{"ServerURL":"x","Username":"me","Secret":"hunter2"}"#, password("me")),
            (r#"{"Username":"<token>","Secret":"t"}"#, Some(Login::IdentityToken(Secret::new("t")))),
            (r#"{"Username":"me","Secret":""}"#, None),
            (r#"{"Username":"me"}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(parse_answer(answer.as_bytes()), want, "{answer}");
        }
        for suffix in ["", "../x", "a b", "a/b", "ü"] {
            assert!(Programs::default().get(suffix, "h").unwrap_err().contains("no name"), "{suffix}");
        }
        let error = Programs::default().get("surely-not-installed", "h").unwrap_err();
        assert_eq!(error, "docker-credential-surely-not-installed is not in the search path");
    }

    #[test]
    fn the_shell_makes_passwords() {
        assert_eq!(Programs::default().expand("$(printf 'a b')").unwrap().expose(), "a b");
        assert_eq!(Programs::default().expand("${SURELY_NOT_SET:-x}y").unwrap().expose(), "xy");
        // Half a password is none: these only begin with a dollar.
        for text in
            ["$SURELY_NOT_SET_ANYWHERE", "$ecret-hunter2", "$$hunter2", "$1hunter2", "$", "$%", "$(exit 3"]
        {
            let error = Programs::default().expand(text).unwrap_err();
            assert!(error.contains("for the shell") && error.contains("quote it"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        // What a command does with variables is its own business.
        assert_eq!(Programs::default().expand("$(echo \"a$SURELY_NOT_SET\")").unwrap().expose(), "a");
    }
}
