//! What an environment definition file asks for, as part of a run.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use situla_bindings::parse_edf_mount;
use situla_edf::{Edf, EdfError, MAX_FILE, Surroundings};
use situla_engine::{EntryPoint, RunRequest};

use crate::Context;
use crate::command_error::CommandError;
use crate::run_options::device_names;

/// The variable in which the plugin sends `EDF_PATH` from srun.
const SENT_PATH: &str = "SLURM_SITULA_EDF_PATH";

/// Reads the environment `name` as the user of `context` means it.
pub(crate) fn load(name: &str, context: &Context) -> Result<Edf, CommandError> {
    with(context, |around| situla_edf::load(name, around)).map_err(told)
}

/// The file of the environment `name`, and what makes no sense in it. Variables that are not set here may be on the nodes.
pub(crate) fn check(name: &str, context: &Context) -> Result<(PathBuf, Option<Edf>), CommandError> {
    with(context, |around| {
        let file = situla_edf::find(name, around)?;
        match situla_edf::load(name, around) {
            Err(EdfError::Undefined { .. }) => Ok((file, None)),
            other => other.map(|edf| (file, Some(edf))),
        }
    })
    .map_err(told)
}

fn with<T>(context: &Context, act: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let home = Path::new(&context.host.user.home);
    act(&Surroundings {
        cwd: &context.host.cwd,
        home: home.is_absolute().then_some(home),
        site: &context.site.environments.path,
        variable: &|name| {
            // As srun had it, whatever is exported.
            let sent = (name == "EDF_PATH").then(|| context.host.variable(SENT_PATH)).flatten();
            sent.filter(|path| !path.is_empty()).or_else(|| context.host.variable(name)).map(str::to_owned)
        },
        read: &read,
    })
}

fn told(error: EdfError) -> CommandError {
    let remedy = match &error {
        EdfError::NotFound { .. } => {
            "put the file there, name another directory in EDF_PATH, or give the file's path".to_owned()
        }
        EdfError::Undefined { variable, .. } => {
            format!("set it, or write ${{{variable}:-DEFAULT}}")
        }
        _ => "mend the file".to_owned(),
    };
    CommandError::other(&error, "bad-option", Some(remedy))
}

/// `O_NONBLOCK` of open(2).
const NON_BLOCKING: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

fn read(file: &Path) -> io::Result<Option<String>> {
    // One that is no regular file could keep whoever opens it.
    let open = File::options().read(true).custom_flags(NON_BLOCKING).open(file);
    let open = match open {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
    if !open.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    open.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(Some(text))
}

/// Puts what `edf` says into a request that nothing else was put into yet. Gives what the user should know.
pub(crate) fn apply(
    edf: &Edf,
    name: &str,
    request: &mut RunRequest,
    cwd: &Path,
) -> Result<Vec<String>, CommandError> {
    let option = format!("--environment={name}");
    if let Some(image) = &edf.image {
        request.image.clone_from(image);
    }
    request.workdir.clone_from(&edf.workdir);
    request.entrypoint = if edf.entrypoint { EntryPoint::Yes } else { EntryPoint::No };
    request.writable_tmpfs = edf.writable;
    request.slurm = edf.slurm;
    for text in &edf.mounts {
        let bind = parse_edf_mount(text, cwd, &option)
            .map_err(|error| CommandError::other(&error, "bad-option", None))?;
        request.binds.push(bind);
    }
    // Nodes that the job may use are there by themselves.
    let named = edf.devices.iter().filter(|device| !device.starts_with("/dev/"));
    request.devices = device_names(named.map(String::as_str))?;
    request.env.extend(edf.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    // Variables were replaced already; a value is what it is now.
    request.no_eval = true;
    request.annotations.clone_from(&edf.annotations);
    // The record says where it comes from.
    let files: Vec<String> = edf.files.iter().map(|file| file.display().to_string()).collect();
    request.annotations.insert("situla.environment".to_owned(), files.join(":"));
    let unknown = edf.unknown.iter().map(|(file, key)| format!("{}: nobody knows {key}", file.display()));
    let hooks = edf.annotations.iter().filter(|(name, value)| {
        name.starts_with("com.hooks.") && name.ends_with(".enabled") && value.as_str() == "true"
    });
    let hooks = hooks.map(|(name, _)| format!("{option}: {name} has no effect: there is no such hook here"));
    Ok(unknown.chain(hooks).collect())
}
