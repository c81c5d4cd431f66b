//! Where logins and certificates are kept, and by which variables that changes.

use std::path::PathBuf;

/// Looks up a variable.
pub(crate) type Variable<'v> = &'v dyn Fn(&str) -> Option<String>;

/// Files and directories, each kind in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Places {
    /// The file that the user has named, in the form of Docker's `config.json`.
    pub(super) named: Option<PathBuf>,
    /// Files in the form of Docker's `config.json`: those of containers-auth.json(5), and Apptainer's.
    pub(super) docker: Vec<PathBuf>,
    /// enroot's `.credentials`.
    pub(super) enroot: Option<PathBuf>,
    /// `netrc`.
    pub(super) netrc: Option<PathBuf>,
    /// The file that `login` writes.
    pub(crate) written: Option<PathBuf>,
    /// Directories with one for each host.
    pub(super) certificates: Vec<PathBuf>,
}

impl Places {
    /// The places of a user with these variables; `file` is one that was named on the command line.
    pub(crate) fn of(variable: Variable<'_>, file: Option<PathBuf>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = path("HOME").filter(|home| home.is_absolute());
        let at_home = |below: &str| home.as_ref().map(|home| home.join(below));
        let config = path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).or_else(|| at_home(".config"));
        let in_config = |below: &str| config.as_ref().map(|config| config.join(below));
        let named = file.or_else(|| path("REGISTRY_AUTH_FILE"));
        let docker = path("DOCKER_CONFIG").or_else(|| at_home(".docker")).map(|dir| dir.join("config.json"));
        let apptainer = path("APPTAINER_CONFIGDIR").or_else(|| at_home(".apptainer"));
        let files = [
            docker.clone(),
            path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            in_config("containers/auth.json"),
            apptainer.map(|dir| dir.join("docker-config.json")),
        ];
        let enroot = path("ENROOT_CONFIG_PATH").or_else(|| in_config("enroot"));
        let certificates = [
            in_config("containers/certs.d"),
            Some("/etc/containers/certs.d".into()),
            Some("/etc/docker/certs.d".into()),
        ];
        Self {
            named: named.clone(),
            docker: files.into_iter().flatten().collect(),
            enroot: enroot.map(|dir| dir.join(".credentials")),
            netrc: path("NETRC").or_else(|| at_home(".netrc")),
            written: named.or(docker),
            certificates: certificates.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_move_files() {
        let places = |set: &[(&str, &str)], file: Option<&str>| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Places::of(&variable, file.map(PathBuf::from))
        };
        let paths =
            |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
        let plain = places(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/u")], None);
        assert_eq!(
            paths(&plain.docker),
            "/h/.docker/config.json /run/u/containers/auth.json /h/.config/containers/auth.json \
             /h/.apptainer/docker-config.json"
        );
        assert_eq!(plain.enroot, Some("/h/.config/enroot/.credentials".into()));
        assert_eq!(plain.netrc, Some("/h/.netrc".into()));
        assert_eq!(plain.written, Some("/h/.docker/config.json".into()));
        assert_eq!(
            paths(&plain.certificates),
            "/h/.config/containers/certs.d /etc/containers/certs.d /etc/docker/certs.d"
        );
        let moved = [
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_CONFIG_HOME", "/c"),
            ("ENROOT_CONFIG_PATH", "/e"),
            ("NETRC", "/n"),
            ("APPTAINER_CONFIGDIR", "/a"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
        ];
        let all = places(&moved, None);
        assert_eq!(all.named, Some("/r.json".into()));
        assert_eq!(paths(&all.docker), "/d/config.json /c/containers/auth.json /a/docker-config.json");
        assert_eq!((all.enroot, all.netrc), (Some("/e/.credentials".into()), Some("/n".into())));
        assert_eq!(all.written, Some("/r.json".into()));
        assert_eq!(places(&moved, Some("/f")).written, Some("/f".into()));
        let homeless = places(&[], None);
        assert_eq!((homeless.docker, homeless.written), (Vec::new(), None));
    }
}
