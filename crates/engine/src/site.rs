//! What the site has decided: its policy file, and its settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use situla_oci::EnrootReference;
use situla_policy::Policy;

use crate::error::EngineError;
use crate::store_place::StoreSettings;
use crate::way::RootfsWay;

/// Bytes of a settings file.
const MAX_SETTINGS: usize = 1 << 20;

/// The site's settings.
#[derive(Debug, Default)]
pub struct Site {
    /// The policy.
    pub policy: Policy,
    /// How image files become roots.
    pub rootfs: RootfsSettings,
    /// What references mean that name no registry. Without it they are refused.
    pub short_names: Option<ShortNames>,
    /// Where images are kept.
    pub store: StoreSettings,
    /// Environment definition files of the site.
    pub environments: EnvironmentSettings,
}

/// Where the site has environment definition files, by `[environments]` of `site.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct EnvironmentSettings {
    /// Directories that are looked into after the user's.
    pub path: Vec<PathBuf>,
}

impl Default for EnvironmentSettings {
    fn default() -> Self {
        EnvironmentSettings { path: vec![PathBuf::from("/etc/edf")] }
    }
}

/// Understands a reference without a registry by what the host is configured with; called for such references only, since
/// it reads files.
pub type ShortNames = fn(&str) -> Result<EnrootReference, EngineError>;

/// How image files become roots, by `[rootfs]` of `site.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RootfsSettings {
    /// The way, where a run does not ask for one.
    pub way: RootfsWay,
    /// A directory on each node in which every user may make one of his own for extracted trees.
    pub cache: PathBuf,
    /// Gigabytes (2^30 bytes) that a user's trees on a node may have together, before those that were not
    /// used for the longest time are removed.
    pub cache_gigabytes: Option<u64>,
    /// Days without use after which a tree is removed.
    pub cache_days: Option<u64>,
}

impl Default for RootfsSettings {
    fn default() -> Self {
        RootfsSettings {
            way: RootfsWay::Mount,
            // On the node itself, and not in memory.
            cache: PathBuf::from("/var/tmp"),
            cache_gigabytes: None,
            cache_days: None,
        }
    }
}

impl RootfsSettings {
    /// The limit of the trees of a user in bytes.
    #[must_use]
    pub fn cache_bytes(&self) -> Option<u64> {
        self.cache_gigabytes.map(|gigabytes| gigabytes.saturating_mul(1 << 30))
    }

    /// How long a tree stays without use.
    #[must_use]
    pub fn cache_age(&self) -> Option<Duration> {
        self.cache_days.map(|days| Duration::from_secs(days.saturating_mul(86400)))
    }
}

/// The file of the settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    rootfs: RootfsSettings,
    store: StoreSettings,
    environments: EnvironmentSettings,
}

impl Site {
    /// Loads the site's files: each the first of `etc/situla/NAME` beside the installation that
    /// `executable` belongs to (`/opt/situla/bin/situla` has `/opt/situla/etc/...`) and
    /// `/etc/situla/NAME`. The place is not for the user to choose. Without a policy everything
    /// is allowed.
    ///
    /// # Errors
    /// A file that exists but cannot be read or understood: a policy is never half applied.
    pub fn load(executable: &Path) -> Result<Self, EngineError> {
        let mut site = Site::default();
        if let Some((path, text)) = read(executable, "policy.toml")? {
            site.policy = Policy::parse(&text, &path.to_string_lossy())?;
        }
        if let Some((path, text)) = read(executable, "site.toml")? {
            let settings = parse(&text).map_err(|message| EngineError::Settings { path, message })?;
            let Settings { rootfs, store, environments } = settings;
            site = Site { rootfs, store, environments, ..site };
        }
        Ok(site)
    }
}

fn read(executable: &Path, name: &str) -> Result<Option<(PathBuf, String)>, EngineError> {
    let own = executable.parent().and_then(Path::parent).map(|prefix| prefix.join("etc/situla").join(name));
    for path in own.into_iter().chain([Path::new("/etc/situla").join(name)]) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(EngineError::ReadPolicy { path, source }),
        }
    }
    Ok(None)
}

fn parse(text: &str) -> Result<Settings, String> {
    if text.len() > MAX_SETTINGS {
        return Err(format!("it has more than {MAX_SETTINGS} bytes"));
    }
    let settings: Settings = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
    let cache = &settings.rootfs.cache;
    if !cache.is_absolute() {
        return Err(format!("rootfs.cache = {cache:?} is no absolute path"));
    }
    if let Some(path) = settings.environments.path.iter().find(|path| !path.is_absolute()) {
        return Err(format!("environments.path has {path:?}, which is no absolute path"));
    }
    settings.store.flaw().map_or(Ok(settings), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_understood_completely_or_refused() {
        assert_eq!(parse("").unwrap().rootfs, RootfsSettings::default());
        let text = "[rootfs]\nway = \"auto\"\ncache = \"/local\"\ncache-gigabytes = 2\ncache-days = 3\n";
        let found = parse(text).unwrap().rootfs;
        assert_eq!((found.way, found.cache.to_str()), (RootfsWay::Auto, Some("/local")));
        assert_eq!(
            (found.cache_bytes(), found.cache_age()),
            (Some(2 << 30), Some(Duration::from_secs(259_200)))
        );
        let text = "[store]\nuser = \"/s/{user}\"\nsite = \"/images\"\ngigabytes = 2\ndays = 3\n";
        let found = parse(text).unwrap().store;
        assert_eq!((found.user, found.site), (Some("/s/{user}".into()), Some("/images".into())));
        assert_eq!((found.gigabytes, found.days), (Some(2), Some(3)));
        let found = parse("[environments]\npath = [\"/a\", \"/b\"]\n").unwrap().environments;
        assert_eq!(found.path, [Path::new("/a"), Path::new("/b")]);
        for (text, what) in [
            ("[environments]\npath = [\"a\"]", "environments.path"),
            ("[rootfs]\nway = \"fast\"", "way"),
            ("[rootfs]\nwhy = \"auto\"", "why"),
            ("[root]\n", "root"),
            ("[rootfs]\ncache = \"tmp\"", "absolute"),
            ("[rootfs]\ncache-days = -1", "cache-days"),
            ("[store]\nuser = \"/scratch\"", "{user}"),
            ("[store]\nsize = 1", "size"),
            ("[", "TOML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert!(parse(&" ".repeat(MAX_SETTINGS + 1)).is_err());
    }
}
