//! The options of a container: their names, and what was given.
//!
//! Only names and switches are known here. What a value means, and whether it makes sense, is for the trampoline
//! to say, which runs as the user.

use std::ffi::{CStr, CString};
use std::io::ErrorKind;
use std::path::PathBuf;

/// How the values of a setting look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Several values make one list.
    List,
    /// [`ON`] or [`OFF`].
    Switch,
}

/// Declares the settings: what each is called behind the prefix (`--PREFIX-image`), and how its values look.
macro_rules! settings {
    ($($setting:ident $suffix:literal $kind:ident,)*) => {
        /// What a container can be told.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Setting { $($setting,)* }

        impl Setting {
            /// All of them.
            pub(crate) const ALL: [Setting; [$($suffix),*].len()] = [$(Setting::$setting),*];

            /// The name behind the prefix.
            pub(crate) fn suffix(self) -> &'static str {
                match self { $(Setting::$setting => $suffix,)* }
            }

            fn kind(self) -> Kind {
                match self { $(Setting::$setting => Kind::$kind,)* }
            }
        }
    };
}

settings! {
    Image "image" Text,
    Environment "environment" Text,
    Name "name" Text,
    Save "save" Text,
    Mounts "mounts" List,
    Workdir "workdir" Text,
    Env "env" List,
    Unshare "unshare" List,
    MountHome "mount-home" Switch,
    RemapRoot "remap-root" Switch,
    Entrypoint "entrypoint" Switch,
    EntrypointLog "entrypoint-log" Switch,
    Writable "writable" Switch,
}

impl Setting {
    /// Whether several values make one list.
    pub(crate) fn is_list(self) -> bool {
        self.kind() == Kind::List
    }

    /// The option that sets it, without the dashes before it.
    pub(crate) fn option(self, prefix: &str) -> String {
        let option = ContainerOption::ALL.into_iter().find(|option| option.setting == self);
        option.map_or_else(String::new, |option| option.name(prefix))
    }

    fn variable(self, prefix: &str) -> CString {
        let name = format!("{prefix}{}", self.suffix().replace('-', "_").to_ascii_uppercase());
        CString::new(name).unwrap_or_default()
    }

    /// The variable that stands for the option where it is not given, as pyxis has it; pyxis has no environments.
    pub(crate) fn default_variable(self) -> Option<CString> {
        (self != Setting::Environment).then(|| self.variable("PYXIS_CONTAINER_"))
    }

    /// The variable in which srun and sbatch send the value to the node. Variables that begin with
    /// `SLURM_` pass `--export=NONE`; without it the task would run on the host, silently.
    pub(crate) fn carried_variable(self) -> CString {
        self.variable("SLURM_SITULA_")
    }

    /// The variable in which the trampoline finds the value.
    pub(crate) fn task_variable(self) -> CString {
        self.variable("SITULA_TASK_")
    }

    /// The value that a variable of the user's has for it; nothing where it is empty.
    fn told_by(self, name: &CStr, value: CString) -> Result<Option<CString>, String> {
        if value.is_empty() || self.kind() != Kind::Switch {
            return Ok((!value.is_empty()).then_some(value));
        }
        match value.to_bytes() {
            b"1" | b"true" | b"yes" | b"y" => Ok(Some(ON.to_owned())),
            b"0" | b"false" | b"no" | b"n" => Ok(Some(OFF.to_owned())),
            _ => Err(format!(
                "{}={} is neither true nor false; write 1 or 0",
                name.to_string_lossy(),
                value.to_string_lossy()
            )),
        }
    }
}

/// What a container is made of, or found by: they come first in [`Setting::ALL`].
const CONTAINERS: [Setting; 3] = [Setting::Image, Setting::Environment, Setting::Name];

/// What options start with where the site says nothing else.
const DEFAULT_PREFIX: &str = "container";

/// The value of a setting that is switched on.
pub(crate) const ON: &CStr = c"1";
/// The value of a setting that is switched off.
pub(crate) const OFF: &CStr = c"0";

/// The value of a setting that is switched on by the site, where that makes sense.
const BY_DEFAULT: &CStr = c"default";

/// The variable that says the opposite of [`Setting::Writable`]'s.
const READONLY: &CStr = c"PYXIS_CONTAINER_READONLY";

/// An option of srun, sbatch and salloc.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContainerOption {
    /// What it sets.
    pub(crate) setting: Setting,
    /// What it sets it to, where it takes no argument.
    fixed: Option<&'static CStr>,
    /// Before the prefix.
    negation: &'static str,
    /// Behind the prefix, where that is not the setting's own.
    suffix: &'static str,
    /// The argument, as `--help` shows it.
    pub(crate) arginfo: Option<&'static str>,
    /// One line for `--help`.
    pub(crate) usage: &'static str,
}

impl ContainerOption {
    /// All of them, in the order of the values that their callbacks get.
    pub(crate) const ALL: [ContainerOption; 17] = [
        Self::of(
            Setting::Image,
            "[USER@][REGISTRY#]IMAGE[:TAG]|PATH",
            "run the tasks in a container of this image",
        ),
        Self::of(
            Setting::Environment,
            "NAME|PATH",
            "run the tasks in the environment that this definition file (EDF) describes",
        ),
        Self::of(
            Setting::Name,
            "NAME[:create|exec|auto|no_exec]",
            "keep the container's files under this name on the node, for other steps",
        ),
        Self::of(
            Setting::Save,
            "PATH",
            "write the container's files to this .sqsh file when the tasks have ended",
        ),
        Self::of(Setting::Mounts, "SRC:DST[:FLAGS][,SRC:DST...]", "bind mounts; FLAGS are joined with +"),
        Self::of(Setting::Workdir, "PATH", "working directory inside the container"),
        Self::of(Setting::Env, "NAME[,NAME...]", "variables whose value outside wins over the image's"),
        Self::of(Setting::Unshare, "net|ipc|uts[,...]", "namespaces that the container has for itself"),
        Self::switch(Setting::MountHome, ("", "mount-home", ON), "mount the home directory"),
        Self::switch(Setting::MountHome, ("no-", "mount-home", OFF), "do not mount it (the default)"),
        Self::switch(Setting::RemapRoot, ("", "remap-root", ON), "be root inside the container"),
        Self::switch(Setting::RemapRoot, ("no-", "remap-root", OFF), "keep your id inside (the default)"),
        Self::switch(Setting::Entrypoint, ("", "entrypoint", ON), "run the image's entry point"),
        Self::switch(Setting::Entrypoint, ("no-", "entrypoint", OFF), "do not run it (the default)"),
        Self::switch(Setting::EntrypointLog, ("", "entrypoint-log", ON), "show what it says (always so)"),
        Self::switch(Setting::Writable, ("", "writable", ON), "let the tasks write to the root, in memory"),
        Self::switch(Setting::Writable, ("", "readonly", OFF), "do not let them (the default)"),
    ];

    const fn of(setting: Setting, arginfo: &'static str, usage: &'static str) -> Self {
        ContainerOption { setting, fixed: None, negation: "", suffix: "", arginfo: Some(arginfo), usage }
    }

    const fn switch(
        setting: Setting,
        (negation, suffix, value): (&'static str, &'static str, &'static CStr),
        usage: &'static str,
    ) -> Self {
        ContainerOption { setting, fixed: Some(value), negation, suffix, arginfo: None, usage }
    }

    /// Its name, without the dashes before it.
    pub(crate) fn name(self, prefix: &str) -> String {
        if self.setting == Setting::Environment && prefix == DEFAULT_PREFIX {
            // As others have it.
            return self.setting.suffix().to_owned();
        }
        let suffix = if self.suffix.is_empty() { self.setting.suffix() } else { self.suffix };
        format!("{}{prefix}-{suffix}", self.negation)
    }

    /// What it sets, by the argument that it was given.
    pub(crate) fn value(self, argument: Option<CString>) -> Option<CString> {
        self.fixed.map(CStr::to_owned).or(argument)
    }

    /// Whether Slurm has this option from its environment: sbatch and salloc leave their options there for every srun below
    /// them, which hears of them before it reads its own command line.
    pub(crate) fn is_replayed(self, prefix: &str) -> bool {
        let name = format!("SLURM_SPANK__SLURM_SPANK_OPTION_situla_{}", self.name(prefix));
        std::env::var_os(name.replace('-', "_")).is_some()
    }
}

/// The variable in which srun sends [fingerprints](crate::multi_prog::Programs) of its programs to the
/// node; as for the name, see [`Setting::carried_variable`].
pub(crate) const PROGRAMS_VARIABLE: &CStr = c"SLURM_SITULA_PROGRAMS";

/// The variable in which srun sends where environment files are; the trampoline reads it.
pub(crate) const EDF_PATH_VARIABLE: &CStr = c"SLURM_SITULA_EDF_PATH";

/// The variable in which the trampoline finds the program that it stands for.
pub(crate) const PROGRAM_VARIABLE: &CStr = c"SITULA_TASK_PROGRAM";

/// What was given for each setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    values: [Option<CString>; Setting::ALL.len()],
}

impl Given {
    /// Nothing at all.
    pub(crate) const NOTHING: Given = Given { values: [const { None }; Setting::ALL.len()] };

    /// The value of a setting.
    pub(crate) fn get(&self, setting: Setting) -> Option<&CString> {
        self.values[setting as usize].as_ref()
    }

    /// Whether there is to be a container.
    pub(crate) fn asks_for_container(&self) -> bool {
        CONTAINERS.into_iter().any(|setting| self.get(setting).is_some())
    }

    /// Whether nothing completes it: what a profile says, or an outer step, is not meant for an environment.
    fn is_whole(&self) -> bool {
        self.get(Setting::Environment).is_some()
    }

    /// Takes a value: the last one counts, but a list grows by what it has not yet.
    pub(crate) fn set(&mut self, setting: Setting, value: CString) {
        let place = &mut self.values[setting as usize];
        *place = Some(match place.take() {
            Some(former) if setting.is_list() && !value.is_empty() => joined(former, value),
            _ => value,
        });
    }

    /// Completes what was not given by what an outer salloc or sbatch was told, then by the user's own variables. What
    /// stands in a profile is no error where no image is asked for, so it counts only with one.
    pub(crate) fn complete(
        &self,
        variable: impl Fn(&CStr) -> Result<Option<CString>, String>,
    ) -> Result<Given, String> {
        let mut complete = self.clone();
        let is_outer_whole = told_outside(Setting::Environment, &variable)?.is_some();
        for setting in Setting::ALL.into_iter().filter(|_| !self.is_whole()) {
            let place = &mut complete.values[setting as usize];
            *place = match place.take() {
                Some(given) if setting.is_list() => Some(match told_outside(setting, &variable)? {
                    Some(outer) => joined(outer, given),
                    None => given,
                }),
                Some(given) => Some(given),
                None if is_outer_whole => told_outside(setting, &variable)?,
                None => stands_for(setting, &variable)?,
            };
            // These come first: without one of them nothing else matters, not even a value that makes no sense.
            if setting == Setting::Name && !complete.asks_for_container() {
                break;
            }
        }
        Ok(complete)
    }

    /// What counts on the node: what srun or sbatch has sent, where it has, since Slurm sends less (of an option that was
    /// given several times the last value, and what salloc was told although srun was told otherwise). From one without
    /// this plugin there is what Slurm and the environment have.
    pub(crate) fn carried(
        &self,
        variable: impl Fn(&CStr) -> Result<Option<CString>, String>,
    ) -> Result<Given, String> {
        let Some(image) = variable(&Setting::Image.carried_variable())? else {
            return self.complete(variable);
        };
        let mut carried = Given::NOTHING;
        carried.values[Setting::Image as usize] = Some(image).filter(|image| !image.is_empty());
        for setting in Setting::ALL.into_iter().filter(|setting| *setting != Setting::Image) {
            let value = variable(&setting.carried_variable())?.filter(|value| !value.is_empty());
            carried.values[setting as usize] = value;
            if setting == Setting::Name && !carried.asks_for_container() {
                return self.complete(variable);
            }
        }
        Ok(carried)
    }

    /// The settings that were given although there is no image for them.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = Setting> {
        Setting::ALL.into_iter().filter(|setting| self.get(*setting).is_some())
    }
}

/// What an outer salloc or sbatch was told.
fn told_outside(
    setting: Setting,
    variable: impl Fn(&CStr) -> Result<Option<CString>, String>,
) -> Result<Option<CString>, String> {
    Ok(variable(&setting.carried_variable())?.filter(|value| !value.is_empty()))
}

/// What the environment has for a setting that no option was given for.
fn stands_for(
    setting: Setting,
    variable: impl Fn(&CStr) -> Result<Option<CString>, String>,
) -> Result<Option<CString>, String> {
    if let Some(value) = told_outside(setting, &variable)? {
        return Ok(Some(value));
    }
    let told = |name: &CStr| variable(name)?.map_or(Ok(None), |value| setting.told_by(name, value));
    let own = setting.default_variable().map_or(Ok(None), |name| told(&name))?;
    if setting != Setting::Writable {
        return Ok(own);
    }
    let opposite = told(READONLY)?.map(|value| if *value == *ON { OFF } else { ON }.to_owned());
    match (own, opposite) {
        (Some(own), Some(opposite)) if own != opposite => {
            Err("PYXIS_CONTAINER_WRITABLE and PYXIS_CONTAINER_READONLY contradict each other; unset one"
                .to_owned())
        }
        (own, opposite) => Ok(own.or(opposite)),
    }
}

/// Two lists as one. Options may be told twice; what is the same as the whole of before counts once.
fn joined(former: CString, value: CString) -> CString {
    if former == value {
        return former;
    }
    CString::new([former.to_bytes(), b",", value.to_bytes()].concat()).unwrap_or(value)
}

/// The variable in which the trampoline finds how long a container with a name stays: [`Settings::scope`].
pub(crate) const SCOPE_VARIABLE: &CStr = c"SITULA_TASK_SCOPE";

/// The variable in which the trampoline finds the number of the protocol.
pub(crate) const PROTOCOL_VARIABLE: &CStr = c"SITULA_TASK_PROTOCOL";

/// The variable in which the trampoline finds the site's own place of its settings.
pub(crate) const CONFIG_VARIABLE: &CStr = c"SITULA_TASK_CONFIG";

/// The settings of `plugstack.conf`. Those of a line with a flaw are what could be understood: options are known by
/// them, and a container is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Absolute path of the trampoline.
    pub(crate) trampoline: CString,
    /// What options start with.
    pub(crate) prefix: String,
    /// Whether sbatch and salloc have the options, and batch scripts can be in containers.
    pub(crate) sbatch_support: bool,
    /// Whether the image's entry point runs where nobody says.
    execute_entrypoint: bool,
    /// Where the site's settings are instead of in the usual places.
    pub(crate) config: Option<CString>,
    /// How long a container with a name stays: `job` or `global`.
    pub(crate) scope: &'static CStr,
    /// While this file exists no container starts.
    disabled: Option<PathBuf>,
    /// What is wrong with the line.
    pub(crate) flaw: Option<String>,
}

impl Settings {
    /// Parses the words of the plugin's line.
    pub(crate) fn parse(arguments: &[String]) -> Self {
        let mut settings = Settings {
            trampoline: CString::default(),
            prefix: DEFAULT_PREFIX.to_owned(),
            sbatch_support: true,
            execute_entrypoint: false,
            config: None,
            scope: c"job",
            disabled: None,
            flaw: None,
        };
        for argument in arguments {
            let flaw = settings.take(argument).err();
            settings.flaw = settings.flaw.take().or(flaw);
        }
        if settings.trampoline.is_empty() {
            settings.flaw.get_or_insert_with(|| "trampoline=PATH is missing".to_owned());
        }
        settings
    }

    fn take(&mut self, argument: &str) -> Result<(), String> {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        let path = || match CString::new(value) {
            Ok(path) if value.starts_with('/') => Ok(path),
            _ => Err(format!("{argument} is no absolute path")),
        };
        let switch = || match value {
            "0" | "1" => Ok(value == "1"),
            _ => Err(format!("{argument} is neither 0 nor 1")),
        };
        match name {
            "trampoline" => self.trampoline = path()?,
            "config" => self.config = Some(path()?),
            "disabled" => self.disabled = path().map(|_| Some(PathBuf::from(value)))?,
            "sbatch_support" => self.sbatch_support = switch()?,
            "execute_entrypoint" => self.execute_entrypoint = switch()?,
            "container_scope" if matches!(value, "job" | "global") => {
                self.scope = if value == "job" { c"job" } else { c"global" };
            }
            "prefix" if value.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !value.is_empty() => {
                value.clone_into(&mut self.prefix);
            }
            _ => {
                return Err(format!(
                    "{argument} is no setting of this plugin (trampoline=PATH, prefix=WORD, sbatch_support=0|1, \
                     execute_entrypoint=0|1, container_scope=job|global, config=PATH, disabled=PATH)"
                ));
            }
        }
        Ok(())
    }

    /// Refuses containers where the line makes no sense, or the site has switched them off.
    pub(crate) fn admit(&self) -> Result<(), String> {
        if let Some(flaw) = &self.flaw {
            return Err(format!("{flaw}; the site must mend the plugin's line in plugstack.conf"));
        }
        let Some(switch) = &self.disabled else { return Ok(()) };
        match std::fs::symlink_metadata(switch) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(format!(
                "the site has switched containers off: {} exists; try again when the site has removed it",
                switch.display()
            )),
            Err(error) => Err(format!(
                "whether containers are switched off cannot be known: {}: {error}; the site must mend that",
                switch.display()
            )),
        }
    }

    /// What a task is told of a setting: the site's default where nobody says anything, and no environment does.
    pub(crate) fn value<'a>(&self, given: &'a Given, setting: Setting) -> Option<&'a CStr> {
        let by_default = setting == Setting::Entrypoint && self.execute_entrypoint && !given.is_whole();
        given.get(setting).map(CString::as_c_str).or(by_default.then_some(BY_DEFAULT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(words: &[&str]) -> Settings {
        Settings::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn settings_are_parsed_or_have_a_flaw() {
        let good = settings(&["trampoline=/opt/situla", "prefix=box", "sbatch_support=0", "config=/c"]);
        assert_eq!((good.trampoline.to_str().unwrap(), good.prefix.as_str()), ("/opt/situla", "box"));
        assert_eq!((good.sbatch_support, good.config.as_deref()), (false, Some(c"/c")));
        assert_eq!((good.admit(), good.scope), (Ok(()), c"job"));
        assert_eq!(settings(&["trampoline=/s", "container_scope=global"]).scope, c"global");
        assert!(settings(&["trampoline=/s"]).sbatch_support);
        for (bad, told) in [
            (&[][..], "trampoline=PATH is missing"),
            (&["trampoline=situla"], "trampoline=situla is no absolute path"),
            (&["trampoline=/s", "colour=red"], "colour=red is no setting"),
            (&["trampoline=/s", "prefix="], "prefix= is no setting"),
            (&["trampoline=/s", "prefix=Box"], "prefix=Box is no setting"),
            (&["trampoline=/s", "sbatch_support=yes"], "neither 0 nor 1"),
            (&["trampoline=/s", "execute_entrypoint"], "execute_entrypoint is neither 0 nor 1"),
            (&["trampoline=/s", "config=site.toml"], "config=site.toml is no absolute path"),
            (&["trampoline=/s", "container_scope=node"], "container_scope=node is no setting"),
            (&["trampoline=/s", "disabled="], "disabled= is no absolute path"),
            (&["trampoline", "prefix=b"], "trampoline is no absolute path"),
        ] {
            let refusal = settings(bad).admit().unwrap_err();
            assert!(refusal.contains(told), "{bad:?}: {refusal}");
        }
        // Options are known by what could be understood.
        assert_eq!(settings(&["colour=red", "trampoline=/s", "prefix=box"]).prefix, "box");
    }

    #[test]
    fn a_switch_refuses_while_it_exists() {
        let switch = std::env::temp_dir().join(format!("situla-switch-{}", std::process::id()));
        let line = |path: &std::path::Path| {
            settings(&["trampoline=/s", &format!("disabled={}", path.display())]).admit()
        };
        assert_eq!(line(&switch), Ok(()));
        std::fs::write(&switch, "").unwrap();
        let refusal = line(&switch).unwrap_err();
        // What cannot be looked at is no leave.
        let unknown = line(&switch.join("below")).unwrap_err();
        std::fs::remove_file(&switch).unwrap();
        assert!(refusal.contains(switch.to_str().unwrap()), "{refusal}");
        assert!(unknown.contains("cannot be known"), "{unknown}");
    }

    #[test]
    fn the_sites_entry_point_counts_where_nobody_says() {
        let site = settings(&["trampoline=/s", "execute_entrypoint=1"]);
        let mut given = Given::NOTHING;
        given.set(Setting::Image, c"i".to_owned());
        assert_eq!(site.value(&given, Setting::Entrypoint), Some(BY_DEFAULT));
        assert_eq!(site.value(&given, Setting::Image), Some(c"i"));
        assert_eq!(site.value(&given, Setting::Writable), None);
        assert_eq!(settings(&["trampoline=/s"]).value(&given, Setting::Entrypoint), None);
        given.set(Setting::Entrypoint, OFF.to_owned());
        assert_eq!(site.value(&given, Setting::Entrypoint), Some(OFF));
        let mut environment = Given::NOTHING;
        environment.set(Setting::Environment, c"e".to_owned());
        assert_eq!(site.value(&environment, Setting::Entrypoint), None, "the file says that itself");
    }

    #[test]
    fn variables_complete_and_never_override() {
        let mut given = Given::NOTHING;
        given.set(Setting::Image, c"./a.sqsh".to_owned());
        let profile = |name: &CStr| {
            if name == READONLY || name.to_bytes().starts_with(b"SLURM_SITULA_") {
                return Ok(None);
            }
            let is_switch = Setting::ALL.into_iter().any(|setting| {
                setting.kind() == Kind::Switch && setting.default_variable().as_deref() == Some(name)
            });
            Ok(Some(if is_switch { c"yes" } else { c"profile" }.to_owned()))
        };
        let complete = given.complete(profile).unwrap();
        assert_eq!(complete.get(Setting::Image).unwrap().as_c_str(), c"./a.sqsh");
        assert_eq!(complete.get(Setting::Mounts).unwrap().as_c_str(), c"profile");
        assert_eq!(complete.get(Setting::MountHome).unwrap().as_c_str(), ON);
        let mut environment = Given::NOTHING;
        environment.set(Setting::Environment, c"e".to_owned());
        let complete =
            environment.complete(|name| Ok((name == c"PYXIS_CONTAINER_IMAGE").then(|| c"i".to_owned())));
        assert!(complete.unwrap().get(Setting::Image).is_none());
        let empty = given.complete(|_| Ok(Some(c"".to_owned()))).unwrap();
        assert!(empty.get(Setting::Mounts).is_none());
        assert!(given.complete(|_| Err("too long".to_owned())).is_err());
    }

    #[test]
    fn switches_in_variables_are_true_or_false_and_nothing_else() {
        let only = |wanted: &'static CStr, value: &'static CStr| {
            move |name: &CStr| Ok((name == wanted).then(|| value.to_owned()))
        };
        let mut given = Given::NOTHING;
        given.set(Setting::Image, c"i".to_owned());
        let writable = |name, value| {
            let complete = given.complete(only(name, value))?;
            Ok::<_, String>(complete.get(Setting::Writable).map(|value| *value == *ON))
        };
        for (name, value, expected) in [
            (c"PYXIS_CONTAINER_WRITABLE", c"y", Some(true)),
            (c"PYXIS_CONTAINER_WRITABLE", c"false", Some(false)),
            (c"PYXIS_CONTAINER_WRITABLE", c"", None),
            (READONLY, c"1", Some(false)),
            (READONLY, c"no", Some(true)),
        ] {
            assert_eq!(writable(name, value), Ok(expected), "{name:?}={value:?}");
        }
        let refusal = writable(c"PYXIS_CONTAINER_WRITABLE", c"TRUE").unwrap_err();
        assert!(refusal.contains("PYXIS_CONTAINER_WRITABLE=TRUE"), "{refusal}");
        let both =
            |name: &CStr| Ok(name.to_bytes().starts_with(b"PYXIS_CONTAINER_").then(|| c"1".to_owned()));
        assert!(given.complete(both).unwrap_err().contains("contradict"));
        // In a profile of somebody who wants no container it does no harm.
        let without = Given::NOTHING.complete(only(c"PYXIS_CONTAINER_WRITABLE", c"TRUE")).unwrap();
        assert_eq!(without, Given::NOTHING);
    }

    #[test]
    fn lists_grow_and_what_is_replayed_does_not_count_twice() {
        let mut given = Given::NOTHING;
        for (value, expected) in
            [(c"/a", c"/a"), (c"/a", c"/a"), (c"/b:/c", c"/a,/b:/c"), (c"/", c"/a,/b:/c,/")]
        {
            given.set(Setting::Mounts, value.to_owned());
            assert_eq!(given.get(Setting::Mounts).unwrap().as_c_str(), expected);
        }
        given.set(Setting::Workdir, c"/x".to_owned());
        given.set(Setting::Workdir, c"/y".to_owned());
        assert_eq!(given.get(Setting::Workdir).unwrap().as_c_str(), c"/y");
    }

    #[test]
    fn a_name_is_enough_for_a_container() {
        let told = |name: &'static CStr| move |asked: &CStr| Ok((asked == name).then(|| c"x".to_owned()));
        let named = Given::NOTHING.complete(told(c"PYXIS_CONTAINER_NAME")).unwrap();
        assert!(named.asks_for_container() && named.get(Setting::Image).is_none());
        let alone = Given::NOTHING.complete(told(c"PYXIS_CONTAINER_SAVE")).unwrap();
        assert!(!alone.asks_for_container() && alone.orphans().next().is_none());
        // From srun, which sends an empty variable for what was not asked for.
        let sent = |name: &CStr| {
            Ok(match name.to_bytes() {
                b"SLURM_SITULA_IMAGE" => Some(c"".to_owned()),
                b"SLURM_SITULA_NAME" => Some(c"n".to_owned()),
                b"PYXIS_CONTAINER_IMAGE" => Some(c"of a profile".to_owned()),
                _ => None,
            })
        };
        let carried = Given::NOTHING.carried(sent).unwrap();
        assert_eq!(carried.get(Setting::Name).unwrap().as_c_str(), c"n");
        assert_eq!(carried.get(Setting::Image), None);
    }

    #[test]
    fn a_profile_does_not_complete_an_environment_of_salloc() {
        let outer = |name: &CStr| {
            Ok(match name.to_bytes() {
                b"SLURM_SITULA_IMAGE" => Some(c"".to_owned()),
                b"SLURM_SITULA_ENVIRONMENT" => Some(c"e".to_owned()),
                b"SLURM_SITULA_WORKDIR" => Some(c"/of/salloc".to_owned()),
                b"PYXIS_CONTAINER_IMAGE" | b"PYXIS_CONTAINER_REMAP_ROOT" => Some(c"1".to_owned()),
                _ => None,
            })
        };
        let mut given = Given::NOTHING;
        given.set(Setting::Writable, ON.to_owned());
        let complete = given.complete(outer).unwrap();
        let told = |setting| complete.get(setting).map(CString::as_c_str);
        assert_eq!((told(Setting::Environment), told(Setting::Workdir)), (Some(c"e"), Some(c"/of/salloc")));
        assert_eq!((told(Setting::Image), told(Setting::RemapRoot)), (None, None));
        assert_eq!(told(Setting::Writable), Some(ON));
    }

    #[test]
    fn what_srun_has_sent_wins_on_the_node() {
        let mut given = Given::NOTHING;
        given.set(Setting::Mounts, c"/last".to_owned());
        given.set(Setting::Workdir, c"/of/salloc".to_owned());
        let sent = |name: &CStr| {
            Ok(match name.to_bytes() {
                b"SLURM_SITULA_MOUNTS" => Some(c"/first,/last".to_owned()),
                b"SLURM_SITULA_IMAGE" => Some(c"i".to_owned()),
                b"SLURM_SITULA_WORKDIR" => Some(c"".to_owned()),
                b"PYXIS_CONTAINER_WORKDIR" => Some(c"/of/a/profile".to_owned()),
                _ => None,
            })
        };
        let carried = given.carried(sent).unwrap();
        assert_eq!(carried.get(Setting::Mounts).unwrap().as_c_str(), c"/first,/last");
        assert_eq!(carried.get(Setting::Workdir), None);
        // From an srun without the plugin there is what Slurm has.
        assert_eq!(given.carried(|_| Ok(None)).unwrap(), given);
    }

    #[test]
    fn every_option_sets_something_and_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> =
            ContainerOption::ALL.iter().map(|option| option.name("box")).collect();
        assert_eq!(names.len(), ContainerOption::ALL.len());
        assert!(names.contains("box-image") && names.contains("no-box-mount-home"), "{names:?}");
        for (place, setting) in Setting::ALL.into_iter().enumerate() {
            assert_eq!(setting as usize, place);
            assert!(ContainerOption::ALL.iter().any(|option| option.setting == setting), "{setting:?}");
        }
    }
}
