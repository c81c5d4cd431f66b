//! Devices that the user names, by the specifications that the site has for them (CDI).
//!
//! Specifications say which of the host's paths are shown and which programs run for a device. The directories that
//! are searched are the site's to choose and not the user's: what is in there is the administrator's word, so the policy's
//! rules about the user's binds do not apply to it. Nothing of it gets more rights than the user has.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use situla_bindings::{BindSource, CdiError, CdiSpec, MAX_SPEC, SpecFile, Syntax, resolve};
use situla_plan::Hooks;

use crate::error::EngineError;
use crate::host::Host;
use crate::request::RunRequest;
use crate::site::Site;

/// Specifications read from one directory.
const MAX_FILES: usize = 256;

/// The request with what its devices ask for; `None` where it names none.
pub(crate) fn apply(
    request: &RunRequest,
    host: &Host,
    site: &Site,
) -> Result<Option<RunRequest>, EngineError> {
    if request.devices.is_empty() {
        return Ok(None);
    }
    let mut request = request.clone();
    let (specs, flaws) = load(&site.devices.path);
    request.device_edits =
        resolve(&request.devices, &specs).map_err(|error| failure(&error, &flaws, host, site))?;
    for bind in &request.device_edits.binds {
        if let BindSource::Host(path) = &bind.source
            && let Err(error) = std::fs::metadata(path)
            && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        {
            let path = path.display();
            return Err(EngineError::Device {
                message: format!(
                    "the {} needs {path}, which does not exist on {}",
                    bind.reason, host.hostname
                ),
                remedy: "the administrator can have the specification written anew".to_owned(),
            });
        }
    }
    Ok(Some(request))
}

/// Fails with a hook that belongs to one payload, where several share a container.
pub(crate) fn expect_shareable(hooks: &Hooks) -> Result<(), EngineError> {
    let stages = [
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    let found = stages.iter().find_map(|(stage, hooks)| Some((stage, hooks.first()?)));
    let Some((stage, hook)) = found else { return Ok(()) };
    let path = Path::new(hook.path.as_os_str()).display();
    Err(EngineError::Device {
        message: format!("the hook {path} ({stage}) of a device cannot run in a container that tasks share"),
        remedy: "start one task on each node, or take the device out".to_owned(),
    })
}

fn failure(error: &CdiError, flaws: &[(PathBuf, String)], host: &Host, site: &Site) -> EngineError {
    let mut message = format!("{error} on {}", host.hostname);
    let remedy = match error {
        CdiError::Unknown { .. } => {
            // A device may be in a file that cannot be read.
            for (file, flaw) in flaws {
                message.push_str(&format!("; {} is not understood: {flaw}", file.display()));
            }
            let places: Vec<String> =
                site.devices.path.iter().map(|path| path.display().to_string()).collect();
            format!(
                "name one of these, or ask the administrator for a specification in {}",
                places.join(" or ")
            )
        }
        CdiError::Name { .. } => "name a device as VENDOR/CLASS=NAME".to_owned(),
        _ => "ask the administrator to mend the specification, or take the device out".to_owned(),
    };
    EngineError::Device { message, remedy }
}

/// Reads the specifications in `directories`; those that cannot be understood come with what is wrong with them.
fn load(directories: &[PathBuf]) -> (Vec<SpecFile>, Vec<(PathBuf, String)>) {
    let (mut specs, mut flaws) = (Vec::new(), Vec::new());
    for (rank, directory) in directories.iter().enumerate() {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    flaws.push((directory.clone(), error.to_string()));
                }
                continue;
            }
        };
        let mut files: Vec<(PathBuf, Syntax)> = entries
            .flatten()
            .filter_map(|entry| {
                let path = entry.path();
                let syntax = match path.extension()?.to_str()? {
                    "json" => Syntax::Json,
                    "yaml" => Syntax::Yaml,
                    _ => return None,
                };
                Some((path, syntax))
            })
            .collect();
        files.sort_by(|a, b| a.0.cmp(&b.0));
        if files.len() > MAX_FILES {
            flaws.push((directory.clone(), format!("it has more than {MAX_FILES} specifications")));
        }
        for (path, syntax) in files.into_iter().take(MAX_FILES) {
            let parsed = read(&path).map_err(|error| error.to_string());
            let parsed =
                parsed.and_then(|text| CdiSpec::parse(&text, syntax).map_err(|error| error.to_string()));
            match parsed {
                Ok(spec) => specs.push(SpecFile { path, rank, spec }),
                Err(flaw) => flaws.push((path, flaw)),
            }
        }
    }
    (specs, flaws)
}

fn read(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    // One byte more than may be, so that what is too long shows.
    let limit = u64::try_from(MAX_SPEC).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use situla_bindings::Origin;

    use super::*;
    use crate::request::{Action, Personality};
    use crate::site::DeviceSettings;

    const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/device", "devices": [
        {"name": "0", "containerEdits": {"env": ["A=1"], "deviceNodes": [{"path": "/dev/null"}]}},
        {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-node"}]}},
        {"name": "late", "containerEdits": {"hooks": [{"hookName": "poststop", "path": "/bin/late"}]}}
    ]}"#;

    fn applied(site: &Site, device: &str) -> Result<Option<RunRequest>, String> {
        let mut request = RunRequest::new(Personality::Native, "/image", Action::Exec(Vec::new()));
        request.devices = device.split_whitespace().map(|name| name.parse().unwrap()).collect();
        let host = Host::gather(vec![("HOME".into(), "/nonexistent".into())]).unwrap();
        apply(&request, &host, site).map_err(|error| error.to_string())
    }

    #[test]
    fn specifications_are_found_where_the_site_has_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let devices = DeviceSettings { path: vec![at("none"), at("cdi")] };
        let site = Site { devices, ..Site::default() };
        assert!(applied(&site, "").unwrap().is_none());
        assert!(applied(&site, "vendor.com/device=0").unwrap_err().contains("there are none"));
        std::fs::create_dir(at("cdi")).unwrap();
        std::fs::write(at("cdi/good.json"), SPEC).unwrap();
        std::fs::write(at("cdi/bad.yaml"), "a: [").unwrap();
        std::fs::write(at("cdi/other.conf"), "neither").unwrap();
        std::fs::create_dir(at("cdi/directory.json")).unwrap();
        let found = applied(&site, "vendor.com/device=0").unwrap().unwrap();
        assert_eq!(found.device_edits.binds[0].origin, Origin::Device);
        assert_eq!(found.device_edits.env, [("A".to_owned(), "1".to_owned())]);
        let error = applied(&site, "vendor.com/device=7").unwrap_err();
        for part in ["vendor.com/device=0", "bad.yaml is not understood", "directory.json is not understood"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("other.conf"), "{error}");
        let error = applied(&site, "vendor.com/device=gone").unwrap_err();
        assert!(error.contains("needs /dev/no-such-node"), "{error}");
        let late = applied(&site, "vendor.com/device=late").unwrap().unwrap();
        let error = expect_shareable(&late.device_edits.hooks).unwrap_err().to_string();
        assert!(error.contains("/bin/late (poststop)"), "{error}");
    }
}
