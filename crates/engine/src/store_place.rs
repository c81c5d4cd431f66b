//! Where images are kept: the user's store and the site's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::host::Host;
use crate::site::Site;

/// The user's store, by its full path.
const OWN_VARIABLE: &str = "SITULA_STORE";
/// Where Apptainer keeps its cache, and so a place that its users have chosen for images. We have a directory of our
/// own there: its files are of another format.
const APPTAINER_VARIABLES: [&str; 2] = ["APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR"];
/// Where caches of all programs are.
const XDG_VARIABLE: &str = "XDG_CACHE_HOME";
/// Our directory among those of others.
const OUR_NAME: &str = "situla";

/// Stores of images, by `[store]` of `site.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StoreSettings {
    /// The store of a user who has not chosen one; `{user}` or `{uid}` in it stands for him.
    pub user: Option<PathBuf>,
    /// A store that all users read and the administrator fills.
    pub site: Option<PathBuf>,
    /// Gigabytes (2^30 bytes) of a user's store that `situla prune` leaves, where it is not told another limit.
    pub gigabytes: Option<u64>,
    /// Days without use after which it removes an image.
    pub days: Option<u64>,
}

impl StoreSettings {
    /// What is wrong with them.
    pub(crate) fn flaw(&self) -> Option<String> {
        for (name, path) in [("user", &self.user), ("site", &self.site)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Some(format!("store.{name} = {path:?} is no absolute path"));
            }
        }
        let user = self.user.as_ref()?.to_string_lossy().into_owned();
        let names_user = user.contains("{user}") || user.contains("{uid}");
        (!names_user).then(|| {
            format!(
                "store.user = {user:?} is one directory for all users: it has neither {{user}} nor {{uid}}"
            )
        })
    }

    /// The limit of a user's store in bytes.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.gigabytes.map(|gigabytes| gigabytes.saturating_mul(1 << 30))
    }

    /// How long an image stays without use.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.days.map(|days| Duration::from_secs(days.saturating_mul(86400)))
    }
}

/// Directories of stores, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePlaces {
    /// The user's; `None` where he has no home and chooses no place.
    pub own: Option<PathBuf>,
    /// The site's.
    pub site: Option<PathBuf>,
}

/// Where the stores are. What the user says counts most, and among that what is only about images; then what the
/// site says, then the cache of his home directory.
#[must_use]
pub fn store_places(site: &Site, host: &Host) -> StorePlaces {
    let variable = |name: &str| host.variable(name).map(str::to_owned);
    let user = (host.user.name.as_str(), host.user.uid, Path::new(&host.user.home));
    let own = own_store(&variable, &host.cwd, &site.store, user);
    StorePlaces { own, site: site.store.site.clone() }
}

fn own_store(
    variable: &dyn Fn(&str) -> Option<String>,
    cwd: &Path,
    settings: &StoreSettings,
    (name, uid, home): (&str, u32, &Path),
) -> Option<PathBuf> {
    let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = named(OWN_VARIABLE) {
        return Some(cwd.join(path));
    }
    if let Some(path) = APPTAINER_VARIABLES.iter().find_map(|name| named(name)) {
        return Some(cwd.join(path).join(OUR_NAME));
    }
    // By its specification a path that is not absolute is to be ignored.
    if let Some(path) = named(XDG_VARIABLE).filter(|path| path.is_absolute()) {
        return Some(path.join(OUR_NAME));
    }
    // A name with a slash would lead to a place that nobody meant.
    let name =
        if name.is_empty() || name.contains('/') || name == ".." { uid.to_string() } else { name.to_owned() };
    let of_user = |path: &PathBuf| {
        let path = path.to_str()?;
        Some(PathBuf::from(path.replace("{user}", &name).replace("{uid}", &uid.to_string())))
    };
    let of_site = settings.user.as_ref().and_then(of_user);
    of_site.or_else(|| home.is_absolute().then(|| home.join(".cache").join(OUR_NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_chooses_before_the_site_and_the_site_before_the_home() {
        let site =
            StoreSettings { user: Some("/scratch/{user}/{uid}/images".into()), ..StoreSettings::default() };
        let none = StoreSettings::default();
        for (variables, settings, home, want) in [
            (&[][..], &none, "/home/ann", Some("/home/ann/.cache/situla")),
            (&[], &none, "", None),
            (&[], &site, "/home/ann", Some("/scratch/ann/7/images")),
            (&[("XDG_CACHE_HOME", "/c")], &site, "/home/ann", Some("/c/situla")),
            (&[("XDG_CACHE_HOME", "c")], &site, "/home/ann", Some("/scratch/ann/7/images")),
            (&[("XDG_CACHE_HOME", "/c"), ("APPTAINER_CACHEDIR", "/a")], &site, "", Some("/a/situla")),
            (&[("SINGULARITY_CACHEDIR", "/s"), ("APPTAINER_CACHEDIR", "/a")], &none, "", Some("/a/situla")),
            (&[("SINGULARITY_CACHEDIR", "s"), ("APPTAINER_CACHEDIR", "")], &none, "", Some("/jobs/s/situla")),
            (&[("SITULA_STORE", "/x/y"), ("APPTAINER_CACHEDIR", "/a")], &site, "", Some("/x/y")),
        ] {
            let lookup = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let user = ("ann", 7, Path::new(home));
            let found = own_store(&lookup, Path::new("/jobs"), settings, user);
            assert_eq!(found, want.map(PathBuf::from), "{variables:?}");
        }
        let user = ("../root", 7, Path::new("/h"));
        let found = own_store(&|_| None, Path::new("/"), &site, user);
        assert_eq!(found, Some("/scratch/7/7/images".into()));
    }

    #[test]
    fn settings_that_would_mix_users_are_refused() {
        let with = |user: &str, site: Option<&str>| StoreSettings {
            user: Some(user.into()),
            site: site.map(Into::into),
            ..StoreSettings::default()
        };
        for (settings, flaw) in [
            (StoreSettings::default(), None),
            (with("/s/{user}", Some("/site")), None),
            (with("/s/{uid}/x", None), None),
            (with("/s", None), Some("all users")),
            (with("s/{user}", None), Some("absolute")),
            (with("/s/{user}", Some("site")), Some("store.site")),
        ] {
            let found = settings.flaw();
            assert_eq!(found.is_some(), flaw.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(flaw.unwrap_or_default()), "{settings:?}");
        }
    }
}
