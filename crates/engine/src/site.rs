//! What the site has decided: its policy file, and its settings.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
    /// What devices are called.
    pub devices: DeviceSettings,
}

/// Where the specifications of devices are (CDI), by `[devices]` of `site.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DeviceSettings {
    /// Directories; what a later one says counts more.
    pub path: Vec<PathBuf>,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        // As every engine has it: what the administrator wrote, and what tools wrote since the node is up.
        DeviceSettings { path: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec() }
    }
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
    devices: DeviceSettings,
}

impl Site {
    /// Loads the site's files: each the first of `etc/situla/NAME` beside the installation that
    /// `executable` belongs to (`/opt/situla/bin/situla` has `/opt/situla/etc/...`) and
    /// `/etc/situla/NAME`. The place is not for the user to choose. Without a policy everything
    /// is allowed.
    ///
    /// `named` is the settings' file where the site's line in `plugstack.conf` names it. It must be there, and a policy
    /// beside it counts before the others. That comes through the user's environment, so nobody but root may have written
    /// these two.
    ///
    /// # Errors
    /// A file that exists but cannot be read or understood: a policy is never half applied. What the line names is not
    /// there, or can be written by others.
    pub fn load(executable: &Path, named: Option<&Path>) -> Result<Self, EngineError> {
        let mut site = Site::default();
        let beside =
            named.map(|named| read_trusted(&named.with_file_name("policy.toml"))).transpose()?.flatten();
        let policy = match beside {
            Some(found) => Some(found),
            None => read(executable, "policy.toml")?,
        };
        if let Some((path, text)) = policy {
            site.policy = Policy::parse(&text, &path.to_string_lossy())?;
        }
        let settings = match named {
            Some(path) => Some(read_trusted(path)?.ok_or_else(|| distrust(path, "it is not there"))?),
            None => read(executable, "site.toml")?,
        };
        if let Some((path, text)) = settings {
            let settings = parse(&text).map_err(|message| EngineError::Settings { path, message })?;
            let Settings { rootfs, store, environments, devices } = settings;
            site = Site { rootfs, store, environments, devices, ..site };
        }
        Ok(site)
    }
}

/// Where a file of the site's is looked for, first to last, by the program that looks.
#[must_use]
pub fn site_places(executable: &Path, name: &str) -> Vec<PathBuf> {
    let own = executable.parent().and_then(Path::parent).map(|prefix| prefix.join("etc/situla").join(name));
    own.into_iter().chain([Path::new("/etc/situla").join(name)]).collect()
}

fn read(executable: &Path, name: &str) -> Result<Option<(PathBuf, String)>, EngineError> {
    for path in site_places(executable, name) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(EngineError::ReadPolicy { path, source }),
        }
    }
    Ok(None)
}

/// `O_NONBLOCK` of open(2): what is no regular file could keep whoever opens it.
const NON_BLOCKING: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Reads a file that root alone can have written; `None` where there is none.
fn read_trusted(path: &Path) -> Result<Option<(PathBuf, String)>, EngineError> {
    let failed = |source| EngineError::ReadPolicy { path: path.to_owned(), source };
    let mut file = match File::options().read(true).custom_flags(NON_BLOCKING).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(distrust(path, "it is no regular file"));
    }
    if let Some(why) = untrusted(found.uid(), found.mode(), false) {
        return Err(distrust(path, why));
    }
    // Who can write to a directory puts another file there.
    let real = std::fs::canonicalize(path).map_err(failed)?;
    for directory in real.ancestors().skip(1) {
        let found = std::fs::metadata(directory).map_err(failed)?;
        if let Some(why) = untrusted(found.uid(), found.mode(), true) {
            return Err(distrust(path, &format!("its directory {} is not safe: {why}", directory.display())));
        }
    }
    let mut text = String::new();
    (&mut file).take(MAX_SETTINGS as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(Some((path.to_owned(), text)))
}

fn distrust(path: &Path, why: &str) -> EngineError {
    EngineError::Settings { path: path.to_owned(), message: why.to_owned() }
}

/// Why a file or directory with this owner and mode may not be what root has left there.
#[must_use]
pub fn untrusted(uid: u32, mode: u32, is_directory: bool) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    const BY_OTHERS: u32 = 0o022;
    if uid != 0 {
        return Some("it does not belong to root");
    }
    let keeps_names = is_directory && mode & STICKY != 0;
    (mode & BY_OTHERS != 0 && !keeps_names).then_some("others than its owner can write to it")
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
    if let Some(path) = settings.devices.path.iter().find(|path| !path.is_absolute()) {
        return Err(format!("devices.path has {path:?}, which is no absolute path"));
    }
    settings.store.flaw().map_or(Ok(settings), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_have_written_is_not_trusted() {
        for (uid, mode, is_directory, trusted) in [
            (0, 0o100_644, false, true),
            (0, 0o100_600, false, true),
            (1000, 0o100_644, false, false),
            (0, 0o100_664, false, false),
            (0, 0o100_646, false, false),
            // The bit means something else there.
            (0, 0o101_666, false, false),
            (0, 0o040_755, true, true),
            (0, 0o041_777, true, true),
            (0, 0o040_777, true, false),
            (0, 0o040_775, true, false),
        ] {
            assert_eq!(untrusted(uid, mode, is_directory).is_none(), trusted, "{uid} {mode:o}");
        }
    }

    #[test]
    fn what_a_line_names_must_be_there_and_be_roots() {
        let gone =
            Site::load(Path::new("/nonexistent/bin/situla"), Some(Path::new("/nonexistent/site.toml")));
        let message = gone.unwrap_err().to_string();
        assert!(message.contains("/nonexistent/site.toml") && message.contains("not there"), "{message}");
        let null = Site::load(Path::new("/nonexistent/bin/situla"), Some(Path::new("/dev/null")));
        assert!(null.unwrap_err().to_string().contains("no regular file"));
        // The repository's own directories are nobody's idea of a site.
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let is_roots = own.ancestors().all(|path| {
            let found = std::fs::metadata(path).unwrap();
            untrusted(found.uid(), found.mode(), found.is_dir()).is_none()
        });
        let message = Site::load(Path::new("/nonexistent/bin/situla"), Some(&own)).unwrap_err().to_string();
        let told = if is_roots { "unknown field" } else { "can write" };
        assert!(message.contains(told) || message.contains("belong to root"), "{message}");
    }

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
        let found = parse("[devices]\npath = [\"/a\"]\n").unwrap().devices;
        assert_eq!(found.path, [Path::new("/a")]);
        for (text, what) in [
            ("[environments]\npath = [\"a\"]", "environments.path"),
            ("[devices]\npath = [\"a\"]", "devices.path"),
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
