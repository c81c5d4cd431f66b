//! The files of containers' `registries.conf`: which there are, and in which order they count.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use situla_engine::EngineError;
use situla_image::Scheme;
use situla_oci::{EnrootReference, MAX_REGISTRIES_BYTES, NameError, Reference, ReferenceError, Registries};

use crate::command_error::CommandError;
use crate::credentials::Variable;
use crate::registry_access;

/// Most files of a directory.
const MAX_FILES: usize = 1000;

/// Understands a reference, with or without a scheme; files are read only where it names no registry.
pub(crate) fn parse(text: &str) -> Result<EnrootReference, CommandError> {
    let short = |error: NameError| name_error(text, &error);
    let name = without_scheme(text);
    match Reference::parse_enroot(name) {
        Err(ReferenceError::NoRegistry { .. }) => load()?.parse(name).map_err(short),
        other => other.map_err(NameError::Reference).map_err(short),
    }
}

/// Understands a reference without registry, for the engine.
pub(crate) fn short_name(text: &str) -> Result<EnrootReference, EngineError> {
    let failed = |error: CommandError| {
        let (message, remedy) = error.told();
        EngineError::BadOption { message, remedy }
    };
    match load().map_err(failed)?.parse(without_scheme(text)) {
        Err(NameError::Reference(source)) => Err(EngineError::Reference { text: text.to_owned(), source }),
        other => other.map_err(|error| failed(name_error(text, &error))),
    }
}

fn without_scheme(text: &str) -> &str {
    Scheme::split(text).map_or(text, |(_, name)| name)
}

/// What the files of this user and this machine say.
pub(crate) fn load() -> Result<Registries, CommandError> {
    load_from(&files(&registry_access::variable), registry_access::assumed_home())
}

/// The failure of a name.
pub(crate) fn name_error(text: &str, error: &NameError) -> CommandError {
    let message = match error {
        NameError::Reference(error) => {
            let why = std::error::Error::source(error).map(|source| format!(": {source}"));
            format!("{text} is no image reference: {error}{}", why.unwrap_or_default())
        }
        error => error.to_string(),
    };
    let scheme = Scheme::split(text).map_or(Scheme::Docker, |(scheme, _)| scheme);
    match error {
        NameError::Reference(_) => {
            CommandError::usage(message, format!("write {scheme}REGISTRY/NAME:TAG, or NAME@sha256:..."))
        }
        NameError::Ambiguous { .. } => CommandError::usage(
            message,
            format!("name the registry: write {scheme}REGISTRY/NAME:TAG with one of these"),
        ),
        NameError::Alias { .. } | NameError::Place { .. } => CommandError::refused(
            "bad-option",
            message,
            "correct registries.conf and the files in registries.conf.d",
        ),
        NameError::Blocked(_) => CommandError::refused(
            "policy-denied",
            message,
            "ask whoever keeps registries.conf on this machine, or take the image from another registry",
        ),
    }
}

/// Which files count, later ones more; `true` where one has to be there.
fn files(variable: Variable<'_>) -> Vec<(PathBuf, bool)> {
    let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = path("HOME");
    let below_home = |below: &str| home.as_ref().map(|home| home.join(below));
    let user = path("XDG_CONFIG_HOME").or_else(|| below_home(".config")).map(|dir| dir.join("containers"));
    let cache = path("XDG_CACHE_HOME").or_else(|| below_home(".cache")).map(|dir| dir.join("containers"));
    let mut files = Vec::new();
    if let Some(named) = path("CONTAINERS_REGISTRIES_CONF") {
        files.push((named, true));
    } else {
        let own = user.as_ref().map(|dir| dir.join("registries.conf")).filter(|path| path.exists());
        files.push((own.unwrap_or_else(|| "/etc/containers/registries.conf".into()), false));
    }
    let directories = [Some(PathBuf::from("/etc/containers")), user];
    for directory in directories.into_iter().flatten() {
        files.extend(drop_ins(&directory.join("registries.conf.d")).into_iter().map(|path| (path, false)));
    }
    // What Podman was told when it asked what a short name means.
    files.extend(cache.map(|dir| (dir.join("short-name-aliases.conf"), false)));
    files
}

/// The files of a directory in the order of their names, as containers' tools read them.
fn drop_ins(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .take(MAX_FILES)
        .collect();
    files.sort();
    files
}

/// Whether there is no such file for this user. The home of an account that is for no person is often `/dev/null`. A file that may
/// not be read may block a registry, so it is an error, but for one in a home that nobody has named: that may be another's, or
/// one for which there is no ticket.
fn is_absent(kind: ErrorKind, is_assumed: bool) -> bool {
    match kind {
        ErrorKind::NotFound | ErrorKind::NotADirectory => true,
        ErrorKind::PermissionDenied => is_assumed,
        _ => false,
    }
}

/// `assumed` is the home of the account, where no variable names one.
fn load_from(files: &[(PathBuf, bool)], assumed: Option<&Path>) -> Result<Registries, CommandError> {
    let mut registries = Registries::default();
    let is_assumed = |path: &Path| assumed.is_some_and(|home| path.starts_with(home));
    for (path, required) in files {
        let failed = |why: &str| {
            CommandError::refused(
                "bad-option",
                format!("cannot use {}: {why}", path.display()),
                "correct it; `man containers-registries.conf` explains the format",
            )
        };
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_REGISTRIES_BYTES as u64 => {
                return Err(failed("it is too long"));
            }
            Ok(_) => {}
            Err(error) if !required && is_absent(error.kind(), is_assumed(path)) => continue,
            Err(error) => return Err(failed(&error.to_string())),
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error.to_string()))?;
        registries.add(&text).map_err(|error| failed(&error.to_string()))?;
    }
    Ok(registries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config/containers");
        std::fs::create_dir_all(config.join("registries.conf.d")).unwrap();
        let cache = dir.path().join("cache/containers");
        std::fs::create_dir_all(&cache).unwrap();
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        write(
            config.join("registries.conf"),
            "unqualified-search-registries = ['one.example']\n[aliases]\na = 'x.example/1'\nb = 'x.example/1'\nc = 'x.example/1'",
        );
        write(config.join("registries.conf.d/20-b.conf"), "[aliases]\na = 'x.example/3'\nb = 'x.example/3'");
        write(config.join("registries.conf.d/10-a.conf"), "[aliases]\na = 'x.example/2'\nb = 'x.example/2'");
        write(config.join("registries.conf.d/30-c.txt"), "[aliases]\na = 'x.example/9'");
        write(cache.join("short-name-aliases.conf"), "[aliases]\n\"a\" = \"x.example/4\"");
        let dir_text = dir.path().display().to_string();
        let variable = |name: &str| match name {
            "HOME" => Some("/nonexistent".to_owned()),
            "XDG_CONFIG_HOME" => Some(format!("{dir_text}/config")),
            "XDG_CACHE_HOME" => Some(format!("{dir_text}/cache")),
            _ => None,
        };
        let registries = load_from(&files(&variable), None).unwrap();
        for (name, want) in
            [("a", "x.example/4:latest"), ("b", "x.example/3:latest"), ("c", "x.example/1:latest")]
        {
            assert_eq!(registries.parse(name).unwrap().reference.to_string(), want);
        }
        // One that was named must be there; one that makes no sense is named.
        let named = |path: &str| {
            let path = path.to_owned();
            load_from(
                &files(&move |name: &str| (name == "CONTAINERS_REGISTRIES_CONF").then(|| path.clone())),
                None,
            )
        };
        let missing = named("/nonexistent/registries.conf").unwrap_err().to_json();
        assert!(missing["message"].as_str().unwrap().contains("/nonexistent/registries.conf"), "{missing}");
        write(config.join("bad.conf"), "[registries.search]\nregistries = ['a b']");
        let bad = named(config.join("bad.conf").to_str().unwrap()).unwrap_err().to_json();
        assert!(bad["message"].as_str().unwrap().contains("a b"), "{bad}");
    }

    #[test]
    fn a_home_that_nobody_named_may_be_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let variable = |name: &str| (name == "HOME").then(|| home.display().to_string());
        // A file, as /dev/null is one.
        std::fs::write(&home, "").unwrap();
        load_from(&files(&variable), None).unwrap();
        for (kind, is_assumed, wanted) in [
            (ErrorKind::NotFound, false, true),
            (ErrorKind::NotADirectory, false, true),
            (ErrorKind::PermissionDenied, false, false),
            (ErrorKind::PermissionDenied, true, true),
            (ErrorKind::InvalidData, true, false),
        ] {
            assert_eq!(is_absent(kind, is_assumed), wanted, "{kind} {is_assumed}");
        }
    }

    #[test]
    fn failures_of_names_have_remedies() {
        let mut registries = Registries::default();
        registries.add("unqualified-search-registries = ['a.example', 'b.example']\n[[registry]]\nlocation = 'c.example'\nblocked = true").unwrap();
        let error = name_error("tool", &registries.parse("tool").unwrap_err()).to_json();
        assert!(error["message"].as_str().unwrap().contains("a.example/tool"), "{error}");
        let blocked = registries.places(&"c.example/x".parse().unwrap()).unwrap_err();
        assert_eq!(name_error("c.example/x", &blocked).to_json()["class"], "policy-denied");
        let bad = name_error("Bad", &registries.parse("Bad").unwrap_err()).to_json();
        assert!(bad["remedy"].as_str().unwrap().contains("docker://"), "{bad}");
    }
}
