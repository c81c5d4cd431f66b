//! What an environment definition file asks for, as part of a run.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use situla_bindings::parse_edf_mount;
use situla_edf::{Edf, MAX_FILE, Surroundings};
use situla_engine::RunRequest;

use crate::Context;
use crate::command_error::CommandError;

/// Reads the environment `name` as the user of `context` means it.
pub(crate) fn load(name: &str, context: &Context) -> Result<Edf, CommandError> {
    let home = Path::new(&context.host.user.home);
    let around = Surroundings {
        cwd: &context.host.cwd,
        home: home.is_absolute().then_some(home),
        site: &context.site.environments.path,
        variable: &|name| context.host.variable(name).map(str::to_owned),
        read: &read,
    };
    situla_edf::load(name, &around).map_err(|error| {
        let remedy = match &error {
            situla_edf::EdfError::NotFound { .. } => {
                "put the file there, name another directory in EDF_PATH, or give the file's path".to_owned()
            }
            situla_edf::EdfError::Undefined { variable, .. } => {
                format!("set it, or write ${{{variable}:-DEFAULT}}")
            }
            _ => "mend the file".to_owned(),
        };
        CommandError::other(&error, "bad-option", Some(remedy))
    })
}

fn read(file: &Path) -> io::Result<Option<String>> {
    let open = match File::open(file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
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
    request.entrypoint = edf.entrypoint;
    request.writable_tmpfs = edf.writable;
    for text in &edf.mounts {
        let bind = parse_edf_mount(text, cwd, &option)
            .map_err(|error| CommandError::other(&error, "bad-option", None))?;
        request.binds.push(bind);
    }
    if let Some(device) = edf.devices.iter().find(|device| !device.starts_with("/dev/")) {
        return Err(CommandError::usage(
            format!(
                "{option}: the device {device} cannot be put into a container: names of CDI are not known"
            ),
            "take it out of the list; device nodes that the job may use are there by themselves",
        ));
    }
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
