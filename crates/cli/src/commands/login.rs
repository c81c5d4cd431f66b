//! `situla login` and `logout`: keeping a login for a registry where other tools find it, too.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use situla_image::{
    Certificates, Client, Credentials, Keyring, KeyringError, Login, LoginCheck, Secret, Transport,
};
use situla_oci::{Registries, Registry, Repository};

use crate::command_error::CommandError;
use crate::credentials::Files;
use crate::output::{data, note};
use crate::terminal::{ask, ask_unseen};
use crate::{registries, registry_access};

/// Log in to a registry: the login is checked, then kept in Docker's config.json
#[derive(Args, Debug)]
pub(crate) struct LoginArgs {
    /// The user
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    options: LoginOptions,
    /// Speak plain HTTP to the registry (loopback addresses always do)
    #[arg(long)]
    plain_http: bool,
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    registry: String,
}

/// Forget the login for a registry
#[derive(Args, Debug)]
pub(crate) struct LogoutArgs {
    #[command(flatten)]
    options: LoginOptions,
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    registry: String,
}

#[derive(Args, Debug)]
struct LoginOptions {
    /// Keep logins in this file, which has the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Print one JSON object, of success or of failure
    #[arg(long)]
    json: bool,
}

/// Longest password: some are tokens.
const MAX_PASSWORD: u64 = 64 * 1024;

/// Logs in.
pub(crate) fn login(arguments: &LoginArgs) -> Result<ExitCode, CommandError> {
    match run_login(arguments) {
        Err(error) if arguments.options.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// Logs out.
pub(crate) fn logout(arguments: &LogoutArgs) -> Result<ExitCode, CommandError> {
    match run_logout(arguments) {
        Err(error) if arguments.options.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run_login(arguments: &LoginArgs) -> Result<(), CommandError> {
    let registry = parse_registry(&arguments.registry)?;
    let user = match &arguments.username {
        Some(user) => user.clone(),
        None if std::io::stdin().is_terminal() && !arguments.password_stdin => {
            ask("User: ").map_err(|error| no_answer(&error))?
        }
        None => return Err(CommandError::usage("which user?", "name one with -u USER")),
    };
    check_user(&user)?;
    let password = if arguments.password_stdin {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(MAX_PASSWORD + 1).read_to_end(&mut bytes);
        read.map_err(|error| no_answer(&error))?;
        bytes
    } else if std::io::stdin().is_terminal() {
        ask_unseen("Password: ").map_err(|error| no_answer(&error))?
    } else {
        return Err(CommandError::usage(
            "the password cannot be asked for: standard input is no terminal",
            "use --password-stdin, as in: situla login REGISTRY -u USER --password-stdin < FILE",
        ));
    };
    let login = Login::Password { user: user.clone(), password: parse_password(password)? };
    let registries = registries::load()?;
    let files = Files::new(registry_access::places(arguments.options.authfile.clone()), &registries, None);
    let checked = check(&registry, &login, &registries, arguments)?;
    let place = files.keep(&registry, &login).map_err(|error| CommandError::keyring(&error))?;
    let is_checked = checked == LoginCheck::Accepted;
    if arguments.options.json {
        let value =
            json!({ "registry": registry.as_str(), "user": user, "kept_in": place, "checked": is_checked });
        return data(&format!("{value}\n"));
    }
    if !is_checked {
        note(&format!("warning: {registry} answers without a login, so this one could not be checked"));
    }
    data(&format!("logged in to {registry} as {user}; kept in {place}\n"))
}

fn run_logout(arguments: &LogoutArgs) -> Result<(), CommandError> {
    let registry = parse_registry(&arguments.registry)?;
    let registries = registries::load()?;
    let files = Files::new(registry_access::places(arguments.options.authfile.clone()), &registries, None);
    let was_known = files.forget(&registry).map_err(|error| CommandError::keyring(&error))?;
    let elsewhere = files.login(&registry, None).ok().flatten().map(|found| found.origin);
    if arguments.options.json {
        let value = json!({ "registry": registry.as_str(), "was_known": was_known, "still_in": elsewhere });
        return data(&format!("{value}\n"));
    }
    if let Some(place) = elsewhere {
        note(&format!("warning: {place} has a login for {registry}, which is used from now on"));
    }
    match was_known {
        true => data(&format!("logged out of {registry}\n")),
        false => data(&format!("there was no login for {registry}\n")),
    }
}

fn no_answer(error: &std::io::Error) -> CommandError {
    CommandError::refused("setup-failed", format!("no user or password: {error}"), "")
}

fn parse_registry(text: &str) -> Result<Registry, CommandError> {
    let place = text.strip_prefix("https://").unwrap_or(text);
    place.trim_end_matches('/').parse().map_err(|_| {
        CommandError::usage(
            format!("'{text}' is no registry"),
            "write HOST or HOST:PORT, without a scheme or path",
        )
    })
}

fn check_user(user: &str) -> Result<(), CommandError> {
    // A colon ends the user on the wire (RFC 7617).
    if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
        return Err(CommandError::usage(
            format!("'{user}' is no user name"),
            "it must not be empty nor have a colon",
        ));
    }
    Ok(())
}

fn parse_password(bytes: Vec<u8>) -> Result<Secret, CommandError> {
    let refused = |why: &str| CommandError::usage(format!("the password {why}"), "");
    if bytes.len() as u64 > MAX_PASSWORD {
        return Err(refused(&format!("is longer than {MAX_PASSWORD} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| refused("is no text in UTF-8"))?;
    // Files and `echo` end with one.
    let password =
        text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(refused("is empty"));
    }
    if password.chars().any(char::is_control) {
        return Err(refused("has more than one line, or control characters"));
    }
    Ok(Secret::new(password))
}

/// Asks the registry whether it accepts a login.
fn check(
    registry: &Registry,
    login: &Login,
    registries: &Registries,
    arguments: &LoginArgs,
) -> Result<LoginCheck, CommandError> {
    let credentials =
        Credentials { login: login.clone(), origin: "this command line".to_owned(), of_any_port: false };
    let files = Files::new(registry_access::places(None), registries, None);
    let typed = Typed { registry: registry.clone(), credentials, files };
    let mut options = registry_access::options(arguments.plain_http, Arc::new(typed));
    if !arguments.plain_http && registries.is_insecure(registry) {
        options.transport = Transport::Insecure;
    }
    Client::new(options).check_login(registry).map_err(|error| CommandError::registry(&error))
}

/// The login that was typed, and the certificates that are known.
#[derive(Debug)]
struct Typed {
    registry: Registry,
    credentials: Credentials,
    files: Files,
}

impl Keyring for Typed {
    fn login(
        &self,
        registry: &Registry,
        _: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError> {
        Ok((*registry == self.registry).then(|| self.credentials.clone()))
    }

    fn certificates(&self, host: &str) -> Result<Option<Certificates>, KeyringError> {
        self.files.certificates(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_one_line() {
        for (text, want) in [
            ("p w\n", Some("p w")),
            ("pw\r\n", Some("pw")),
            (" pw ", Some(" pw ")),
            ("pw\n\n", None),
            ("a\nb", None),
            ("\n", None),
            ("", None),
            ("a\0b", None),
        ] {
            let found = parse_password(text.as_bytes().to_vec()).ok();
            assert_eq!(found.as_ref().map(Secret::expose), want, "{text:?}");
        }
        let long = parse_password(vec![b'x'; 64 * 1024 + 1]).unwrap_err().to_json();
        assert!(!long.to_string().contains("xxx"), "{long}");
        assert!(parse_password(vec![0xff]).is_err());
    }

    #[test]
    fn registries_are_hosts() {
        for (text, want) in [
            ("a.example", Some("a.example")),
            ("https://A.example:5000/", Some("a.example:5000")),
            ("localhost:5000", Some("localhost:5000")),
            ("a.example/team", None),
            ("http://a.example", None),
            ("me@a.example", None),
            ("", None),
        ] {
            assert_eq!(parse_registry(text).ok().as_ref().map(Registry::as_str), want, "{text}");
        }
        assert!(check_user("a:b").is_err() && check_user("").is_err() && check_user("$oauthtoken").is_ok());
    }
}
