//! The options of a container: their names, and what was given.

use std::ffi::{CStr, CString};

/// The options, in the order of the values that their callbacks get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerOption {
    /// The image.
    Image,
    /// Bind mounts.
    Mounts,
    /// Working directory inside.
    Workdir,
}

impl ContainerOption {
    /// All of them.
    pub(crate) const ALL: [ContainerOption; 3] =
        [ContainerOption::Image, ContainerOption::Mounts, ContainerOption::Workdir];

    /// The option that was registered with `value`.
    pub(crate) fn from_value(value: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(value).ok()?).copied()
    }

    /// The name behind the prefix (`--PREFIX-image`).
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            ContainerOption::Image => "image",
            ContainerOption::Mounts => "mounts",
            ContainerOption::Workdir => "workdir",
        }
    }

    /// The argument, as `--help` shows it.
    pub(crate) fn arginfo(self) -> &'static str {
        match self {
            ContainerOption::Image => "IMAGE",
            ContainerOption::Mounts => "SRC:DST[:FLAGS][,SRC:DST...]",
            ContainerOption::Workdir => "PATH",
        }
    }

    /// One line for `--help`.
    pub(crate) fn usage(self) -> &'static str {
        match self {
            ContainerOption::Image => {
                "[situla] run the tasks in a container of this image: a .sqsh or .sif file, a directory, or a \
                 reference such as docker://REGISTRY/NAME:TAG"
            }
            ContainerOption::Mounts => {
                "[situla] bind mounts for the container; DST is SRC where it is left out; FLAGS are joined with +"
            }
            ContainerOption::Workdir => "[situla] working directory inside the container",
        }
    }

    /// The variable that stands for the option where it is not given, as pyxis has it.
    pub(crate) fn default_variable(self) -> &'static CStr {
        match self {
            ContainerOption::Image => c"PYXIS_CONTAINER_IMAGE",
            ContainerOption::Mounts => c"PYXIS_CONTAINER_MOUNTS",
            ContainerOption::Workdir => c"PYXIS_CONTAINER_WORKDIR",
        }
    }

    /// The variable in which srun and sbatch send the value to the node. Variables that begin with
    /// `SLURM_` pass `--export=NONE`; without it the task would run on the host, silently.
    pub(crate) fn carried_variable(self) -> &'static CStr {
        match self {
            ContainerOption::Image => c"SLURM_SITULA_IMAGE",
            ContainerOption::Mounts => c"SLURM_SITULA_MOUNTS",
            ContainerOption::Workdir => c"SLURM_SITULA_WORKDIR",
        }
    }

    /// The variable in which the trampoline finds the value.
    pub(crate) fn task_variable(self) -> &'static CStr {
        match self {
            ContainerOption::Image => c"SITULA_TASK_IMAGE",
            ContainerOption::Mounts => c"SITULA_TASK_MOUNTS",
            ContainerOption::Workdir => c"SITULA_TASK_WORKDIR",
        }
    }
}

/// The variable in which srun sends [fingerprints](crate::multi_prog::Programs) of its programs to the
/// node; as for the name, see [`ContainerOption::carried_variable`].
pub(crate) const PROGRAMS_VARIABLE: &CStr = c"SLURM_SITULA_PROGRAMS";

/// The variable in which the trampoline finds the program that it stands for.
pub(crate) const PROGRAM_VARIABLE: &CStr = c"SITULA_TASK_PROGRAM";

/// What was given for each option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    values: [Option<CString>; ContainerOption::ALL.len()],
}

impl Given {
    /// No option at all.
    pub(crate) const NOTHING: Given = Given { values: [const { None }; ContainerOption::ALL.len()] };

    /// The value of an option.
    pub(crate) fn get(&self, option: ContainerOption) -> Option<&CString> {
        self.values[option as usize].as_ref()
    }

    /// The value of the option that is sent in the variable `carried`.
    pub(crate) fn under(&self, carried: &CStr) -> Option<&CString> {
        let option = ContainerOption::ALL.into_iter().find(|option| option.carried_variable() == carried);
        option.and_then(|option| self.get(option))
    }

    /// Takes a value. Slurm replays options, so the last one counts.
    pub(crate) fn set(&mut self, option: ContainerOption, value: CString) {
        self.values[option as usize] = Some(value);
    }

    /// Completes what was not given by what `variable` has. Mounts and a working directory that
    /// stand in a profile are not errors where no image is asked for, so they count only with one.
    pub(crate) fn complete(
        &self,
        variable: impl Fn(&CStr) -> Result<Option<CString>, String>,
    ) -> Result<Given, String> {
        let mut complete = self.clone();
        for option in ContainerOption::ALL {
            for name in [option.default_variable(), option.carried_variable()] {
                if complete.get(option).is_none()
                    && let Some(value) = variable(name)?.filter(|value| !value.is_empty())
                {
                    complete.set(option, value);
                }
            }
        }
        Ok(complete)
    }

    /// The options that were given although there is no image for them.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = ContainerOption> {
        ContainerOption::ALL.into_iter().filter(|option| self.get(*option).is_some())
    }
}

/// The settings of `plugstack.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Absolute path of the trampoline.
    pub(crate) trampoline: CString,
    /// What options start with.
    pub(crate) prefix: String,
}

impl Settings {
    /// Parses `trampoline=PATH` and `prefix=WORD`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut settings = Settings { trampoline: CString::default(), prefix: "container".to_owned() };
        for argument in arguments {
            match argument.split_once('=') {
                Some(("trampoline", path)) if path.starts_with('/') => {
                    settings.trampoline =
                        CString::new(path).map_err(|_| "the path holds a NUL byte".to_owned())?;
                }
                Some(("trampoline", path)) => return Err(format!("trampoline={path} is no absolute path")),
                Some(("prefix", word))
                    if word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.is_empty() =>
                {
                    word.clone_into(&mut settings.prefix);
                }
                _ => {
                    return Err(format!(
                        "{argument} is no setting of this plugin (trampoline=PATH, prefix=WORD)"
                    ));
                }
            }
        }
        if settings.trampoline.is_empty() {
            return Err("trampoline=PATH is missing".to_owned());
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_parsed_or_refused() {
        let parse = |words: &[&str]| {
            Settings::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let good = parse(&["trampoline=/opt/situla", "prefix=box"]).unwrap();
        assert_eq!((good.trampoline.to_str().unwrap(), good.prefix.as_str()), ("/opt/situla", "box"));
        for bad in
            [&[][..], &["trampoline=situla"], &["trampoline=/s", "colour=red"], &["trampoline=/s", "prefix="]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_complete_and_never_override() {
        let mut given = Given::NOTHING;
        given.set(ContainerOption::Image, c"./a.sqsh".to_owned());
        let complete = given.complete(|_| Ok(Some(c"profile".to_owned()))).unwrap();
        assert_eq!(complete.get(ContainerOption::Image).unwrap().as_c_str(), c"./a.sqsh");
        assert_eq!(complete.get(ContainerOption::Mounts).unwrap().as_c_str(), c"profile");
        let empty = given.complete(|_| Ok(Some(c"".to_owned()))).unwrap();
        assert!(empty.get(ContainerOption::Mounts).is_none());
        assert!(given.complete(|_| Err("too long".to_owned())).is_err());
    }
}
