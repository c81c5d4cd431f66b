//! containers' `registries.conf`: what short names mean, and where repositories are found.
//!
//! A pure function of texts; which files there are, and in which order, is the caller's knowledge. Read are
//! `unqualified-search-registries`, `[[registry]]` with `prefix`, `location`, `insecure`, `blocked`,
//! `mirror-by-digest-only` and `mirror`, `[aliases]`, and `credential-helpers` (containers-registries.conf(5)). Other keys are
//! for other programs. Version 1 of the format, which older systems still have, says less: registries that are searched, insecure or
//! blocked.
//!
//! Two differences, both for the safer side: where several registries are searched a short name is refused, whatever
//! `short-name-mode` says, since it would mean what the first of them has; and a prefix that is a host does
//! not match another port of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::reference::{Defaults, EnrootReference, Reference, ReferenceError, Registry, Repository};

/// Bytes of one file. Collections of aliases have tens of thousands.
pub const MAX_REGISTRIES_BYTES: usize = 4 << 20;
/// Mirrors of one registry.
const MAX_MIRRORS: usize = 64;
/// Registries that a message names.
const MAX_NAMED: usize = 8;

/// The entry of `credential-helpers` that stands for the files of containers-auth.json(5).
const AUTH_FILES: &str = "containers-auth.json";
/// Most entries of `credential-helpers`: each may cost a program's start.
const MAX_HELPERS: usize = 16;

/// Where logins are looked for, by `credential-helpers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialHelper {
    /// In the files of containers-auth.json(5).
    AuthFiles,
    /// With the program `docker-credential-NAME`.
    Program(String),
}

/// Why a file is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegistriesError {
    /// It is too long.
    #[error("it has more than {MAX_REGISTRIES_BYTES} bytes")]
    TooLarge,
    /// It is no TOML, or a value is of another type.
    #[error("{0}")]
    Syntax(String),
    /// It is written in both versions of the format, which say different things.
    #[error("it mixes version 1 of the format ([registries.search] and the like) with version 2")]
    Mixed,
    /// A name in it makes no sense.
    #[error("{key} = \"{value}\" cannot be used")]
    Value {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
    },
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// It is no reference, or names no registry where none is configured.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It names no registry, and several are searched.
    #[error("short name '{name}' may mean any of: {candidates}")]
    Ambiguous {
        /// The name.
        name: String,
        /// What it may mean.
        candidates: String,
    },
    /// An alias leads to what is no reference.
    #[error("short name '{name}' is an alias of '{value}', which is no image")]
    Alias {
        /// The name.
        name: String,
        /// What it stands for.
        value: String,
    },
    /// The configuration blocks it.
    #[error("registries.conf blocks '{0}'")]
    Blocked(String),
    /// The configuration leads to what is no registry and repository.
    #[error("registries.conf says that '{name}' is found at '{place}', which is no image")]
    Place {
        /// The image.
        name: String,
        /// Where it would be.
        place: String,
    },
}

/// Where a repository is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The registry.
    pub registry: Registry,
    /// The repository there.
    pub repository: Repository,
    /// Whether the registry may be one without a certificate that can be checked, or without TLS.
    pub insecure: bool,
}

/// What the files say, taken together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    search: Vec<Registry>,
    /// By prefix.
    rules: BTreeMap<String, Rule>,
    aliases: BTreeMap<String, String>,
    helpers: Vec<CredentialHelper>,
}

/// A `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    pull: PullFrom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// The file, as TOML has it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<RegistryTable>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Version 1.
    registries: Option<Version1>,
}

#[derive(Deserialize)]
struct Version1 {
    #[serde(default)]
    search: Names,
    #[serde(default)]
    insecure: Names,
    #[serde(default)]
    block: Names,
}

#[derive(Default, Deserialize)]
struct Names {
    #[serde(default)]
    registries: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryTable {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

impl Registries {
    /// Adds what a further file says. It wins over those before it: a list of registries to search, or of helpers,
    /// replaces theirs, as does a `[[registry]]` of the same prefix and an alias of the same name; an empty alias removes one.
    ///
    /// # Errors
    /// When it cannot be understood; then nothing is added.
    pub fn add(&mut self, text: &str) -> Result<(), RegistriesError> {
        if text.len() > MAX_REGISTRIES_BYTES {
            return Err(RegistriesError::TooLarge);
        }
        let mut file: File = toml::from_str(text)
            .map_err(|error| RegistriesError::Syntax(error.to_string().trim().to_owned()))?;
        if let Some(first) = file.registries.take() {
            let has_helpers = file.credential_helpers.is_some();
            if file.unqualified_search_registries.is_some() || has_helpers || !file.registry.is_empty() {
                return Err(RegistriesError::Mixed);
            }
            file.unqualified_search_registries = Some(first.search.registries);
            file.registry = tables(first.insecure.registries, &first.block.registries);
        }
        let search = file.unqualified_search_registries.map(|names| {
            names.into_iter().map(|name| registry("unqualified-search-registries", name)).collect()
        });
        let search: Option<Vec<Registry>> = search.transpose()?;
        let helpers = file.credential_helpers.map(helpers).transpose()?;
        let rules = file.registry.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        self.helpers = helpers.unwrap_or(std::mem::take(&mut self.helpers));
        self.search = search.unwrap_or(std::mem::take(&mut self.search));
        self.rules.extend(rules);
        for (name, value) in file.aliases {
            if value.is_empty() {
                self.aliases.remove(&name);
            } else {
                self.aliases.insert(name, value);
            }
        }
        Ok(())
    }

    /// Understands a reference in Docker's or enroot's spelling, which need not name a registry.
    ///
    /// # Errors
    /// When it is none, or a short name that means nothing or more than one thing.
    pub fn parse(&self, text: &str) -> Result<EnrootReference, NameError> {
        match Reference::parse_enroot(text) {
            Err(ReferenceError::NoRegistry { .. }) => {}
            other => return other.map_err(NameError::Reference),
        }
        // No host of this name can exist (RFC 6761): it only stands where one is missing.
        let nowhere: Registry = "short-name.invalid".parse().map_err(NameError::Reference)?;
        let EnrootReference { user, reference } =
            Reference::parse_enroot_with(text, &Defaults { registry: Some(nowhere) })?;
        let name = reference.repository().as_str();
        if let Some(value) = self.aliases.get(name) {
            let bad = || NameError::Alias { name: name.to_owned(), value: value.clone() };
            // Neither tag nor digest may stand there, so that those of the short name apply.
            let (registry, repository) = split(value).ok_or_else(bad)?;
            return Ok(EnrootReference {
                user,
                reference: reference.moved_to(registry, repository).map_err(|_| bad())?,
            });
        }
        match self.search.as_slice() {
            [] => Err(ReferenceError::NoRegistry { reference: name.to_owned() }.into()),
            [registry] => {
                let moved = reference.moved_to(registry.clone(), reference.repository().clone())?;
                Ok(EnrootReference { user, reference: moved })
            }
            several => {
                let candidates: Vec<String> =
                    several.iter().take(MAX_NAMED).map(|registry| format!("{registry}/{name}")).collect();
                Err(NameError::Ambiguous { name: name.to_owned(), candidates: candidates.join(", ") })
            }
        }
    }

    /// Where logins are looked for, in this order: in files, where nothing else is said.
    #[must_use]
    pub fn credential_helpers(&self) -> Vec<CredentialHelper> {
        if self.helpers.is_empty() { vec![CredentialHelper::AuthFiles] } else { self.helpers.clone() }
    }

    /// The places where a reference is found, in the order in which they are tried: mirrors, then the registry itself,
    /// which may be at another place, too. One at least. `None` where nothing is said about the reference.
    ///
    /// # Errors
    /// When it is blocked, or a place makes no sense for it.
    pub fn places(&self, reference: &Reference) -> Result<Option<Vec<Place>>, NameError> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let Some((rest, rule)) = self.rule_for(&name, reference) else { return Ok(None) };
        if rule.blocked {
            return Err(NameError::Blocked(reference.to_string()));
        }
        let pinned = reference.digest().is_some();
        let mirrors = rule.mirrors.iter().filter(|mirror| match mirror.pull {
            PullFrom::All => true,
            PullFrom::DigestOnly => pinned,
            PullFrom::TagOnly => !pinned,
        });
        let mirrors = mirrors.map(|mirror| (format!("{}{rest}", mirror.location), mirror.insecure));
        let own = match &rule.location {
            Some(location) => format!("{location}{rest}"),
            None => name.clone(),
        };
        let places = mirrors.chain([(own, rule.insecure)]).map(|(place, insecure)| {
            let (registry, repository) =
                split(&place).ok_or_else(|| NameError::Place { name: name.clone(), place: place.clone() })?;
            Ok(Place { registry, repository, insecure })
        });
        places.collect::<Result<_, _>>().map(Some)
    }

    /// Tells whether a registry may be one without a certificate that can be checked, or without TLS, for whatever of it.
    #[must_use]
    pub fn is_insecure(&self, registry: &Registry) -> bool {
        let host = |place: &str| place.split('/').next().is_some_and(|host| host == registry.as_str());
        self.rules.iter().any(|(prefix, rule)| {
            let own = rule.insecure && host(rule.location.as_deref().unwrap_or(prefix));
            own || rule.mirrors.iter().any(|mirror| mirror.insecure && host(&mirror.location))
        })
    }

    /// The rule with the longest prefix, and what of the name follows it.
    fn rule_for<'n>(&self, name: &'n str, reference: &Reference) -> Option<(&'n str, &Rule)> {
        let with =
            |separator: char, part: Option<String>| part.map(|part| format!("{name}{separator}{part}"));
        let exact = [
            with('@', reference.digest().map(ToString::to_string)),
            with(':', reference.tag().map(ToString::to_string)),
        ];
        if let Some(rule) = exact.iter().flatten().find_map(|prefix| self.rules.get(prefix)) {
            return Some(("", rule));
        }
        let ends = name.rmatch_indices('/').map(|(at, _)| at);
        let found = std::iter::once(name.len()).chain(ends).find_map(|end| {
            let (prefix, rest) = name.split_at_checked(end)?;
            Some((rest, self.rules.get(prefix)?))
        });
        found.or_else(|| {
            let (host, rest) = name.split_at_checked(name.find('/')?)?;
            // The longest domain first.
            let rule =
                host.match_indices('.').find_map(|(at, _)| self.rules.get(&format!("*{}", &host[at..])))?;
            Some((rest, rule))
        })
    }
}

fn helpers(names: Vec<String>) -> Result<Vec<CredentialHelper>, RegistriesError> {
    let bad = |value: String| RegistriesError::Value { key: "credential-helpers", value };
    if names.len() > MAX_HELPERS {
        return Err(bad(format!("{} of them", names.len())));
    }
    // It becomes the end of a program's name, which is looked for in the search path.
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let helper = |name: String| match name.as_str() {
        AUTH_FILES => Ok(CredentialHelper::AuthFiles),
        text if is_name(text) => Ok(CredentialHelper::Program(name)),
        _ => Err(bad(name)),
    };
    names.into_iter().map(helper).collect()
}

/// What version 1 says, as version 2 would.
fn tables(insecure: Vec<String>, blocked: &[String]) -> Vec<RegistryTable> {
    let mut names: Vec<(String, bool)> =
        blocked.iter().map(|name| (name.clone(), insecure.contains(name))).collect();
    names.extend(insecure.into_iter().filter(|name| !blocked.contains(name)).map(|name| (name, true)));
    let table = |(location, insecure): (String, bool)| RegistryTable {
        blocked: blocked.contains(&location),
        prefix: String::new(),
        location,
        insecure,
        mirror_by_digest_only: false,
        mirror: Vec::new(),
    };
    names.into_iter().map(table).collect()
}

fn rule(table: RegistryTable) -> Result<(String, Rule), RegistriesError> {
    let RegistryTable { prefix, location, insecure, blocked, mirror_by_digest_only, mirror } = table;
    let location = lower_host(location.trim_end_matches('/'));
    let bad = |key, value: &str| RegistriesError::Value { key, value: value.to_owned() };
    if !location.is_empty() && !is_place(&location) {
        return Err(bad("location", &location));
    }
    let prefix = if prefix.is_empty() { location.clone() } else { lower_host(prefix.trim_end_matches('/')) };
    let host = prefix.split_once('/').map_or(prefix.as_str(), |(host, _)| host);
    let wildcard = prefix.strip_prefix("*.");
    // The host of a prefix may have a port, and its last part a tag.
    let usable = match wildcard {
        Some(domain) => domain.parse::<Registry>().is_ok(),
        None => host.parse::<Registry>().is_ok(),
    };
    if !usable {
        return Err(bad("prefix", &prefix));
    }
    if mirror.len() > MAX_MIRRORS {
        return Err(bad("mirror", &format!("{} of them", mirror.len())));
    }
    let mut mirrors = Vec::new();
    for MirrorTable { location, insecure, pull_from_mirror } in mirror {
        let location = lower_host(location.trim_end_matches('/'));
        if !is_place(&location) {
            return Err(bad("mirror.location", &location));
        }
        let pull = match pull_from_mirror.as_deref() {
            None | Some("") if mirror_by_digest_only => PullFrom::DigestOnly,
            None | Some("" | "all") => PullFrom::All,
            Some("digest-only") => PullFrom::DigestOnly,
            Some("tag-only") => PullFrom::TagOnly,
            Some(other) => return Err(bad("pull-from-mirror", other)),
        };
        mirrors.push(Mirror { location, insecure, pull });
    }
    let location = Some(location).filter(|location| !location.is_empty());
    Ok((prefix, Rule { location, insecure, blocked, mirrors }))
}

/// Writes the host as [`Registry`] does; a tag may have capitals.
fn lower_host(place: &str) -> String {
    let (host, rest) = place.split_at(place.find('/').unwrap_or(place.len()));
    format!("{}{rest}", host.to_ascii_lowercase())
}

/// Tells whether a text is a host, or a host and the beginning of a repository's name.
fn is_place(text: &str) -> bool {
    match text.split_once('/') {
        Some((host, path)) => host.parse::<Registry>().is_ok() && path.parse::<Repository>().is_ok(),
        None => text.parse::<Registry>().is_ok(),
    }
}

/// Takes a name apart whose first part is a registry.
fn split(name: &str) -> Option<(Registry, Repository)> {
    let (registry, repository) = name.split_once('/')?;
    Some((registry.parse().ok()?, repository.parse().ok()?))
}

fn registry(key: &'static str, value: String) -> Result<Registry, RegistriesError> {
    value.parse().map_err(|_| RegistriesError::Value { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Registries {
        let mut registries = Registries::default();
        for text in texts {
            registries.add(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        }
        registries
    }

    const SITE: &str = r#"
        unqualified-search-registries = ["registry.example"]
        short-name-mode = "enforcing"
        credential-helpers = ["x"]

        [[registry]]
        prefix = "Upstream.example"
        location = "cache.example:5000/upstream"
        [[registry.mirror]]
        location = "near.example/up"
        insecure = true
        [[registry.mirror]]
        location = "tags.example"
        pull-from-mirror = "tag-only"
        [[registry.mirror]]
        location = "pinned.example"
        pull-from-mirror = "digest-only"

        [[registry]]
        location = "upstream.example/team"

        [[registry]]
        location = "upstream.example/team/bad"
        blocked = true

        [[registry]]
        prefix = "upstream.example/team/tool:2"
        blocked = true

        [[registry]]
        prefix = "*.lab.example"
        insecure = true

        [[registry]]
        location = "pinned-only.example"
        mirror-by-digest-only = true
        mirror = [{ location = "m.example" }]

        [aliases]
        "tool" = "tools.example/team/tool"
        "team/other" = "tools.example/other"
    "#;

    fn places(registries: &Registries, reference: &str) -> String {
        match registries.places(&reference.parse().unwrap()) {
            Err(error) => error.to_string(),
            Ok(None) => "itself".to_owned(),
            Ok(Some(places)) => {
                let shown = places.iter().map(|place| {
                    let insecure = if place.insecure { "!" } else { "" };
                    format!("{}/{}{insecure}", place.registry, place.repository)
                });
                shown.collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn repositories_are_found_at_mirrors_and_other_places() {
        let registries = read(&[SITE]);
        let digest = format!("sha256:{}", "0".repeat(64));
        for (reference, want) in [
            ("other.example/a", "itself"),
            ("upstream.example.evil.example/a", "itself"),
            ("upstream.example:5000/a", "itself"),
            (
                "upstream.example/a/b:1",
                "near.example/up/a/b! tags.example/a/b cache.example:5000/upstream/a/b",
            ),
            (
                &format!("upstream.example/a@{digest}"),
                "near.example/up/a! pinned.example/a cache.example:5000/upstream/a",
            ),
            ("upstream.example/team/a", "upstream.example/team/a"),
            (
                "upstream.example/teams/a:1",
                "near.example/up/teams/a! tags.example/teams/a cache.example:5000/upstream/teams/a",
            ),
            ("upstream.example/team/bad/a", "registries.conf blocks 'upstream.example/team/bad/a:latest'"),
            ("upstream.example/team/tool:1", "upstream.example/team/tool"),
            ("upstream.example/team/tool:2", "registries.conf blocks 'upstream.example/team/tool:2'"),
            ("a.b.lab.example/x", "a.b.lab.example/x!"),
            ("lab.example/x", "itself"),
            ("pinned-only.example/x:1", "pinned-only.example/x"),
            (&format!("pinned-only.example/x@{digest}"), "m.example/x pinned-only.example/x"),
        ] {
            assert_eq!(places(&registries, reference), want, "{reference}");
        }
        assert_eq!(places(&Registries::default(), "a.example/x"), "itself");
        for (registry, insecure) in [
            ("near.example", true),
            ("tags.example", false),
            ("upstream.example", false),
            ("cache.example:5000", false),
        ] {
            assert_eq!(registries.is_insecure(&registry.parse().unwrap()), insecure, "{registry}");
        }
    }

    #[test]
    fn short_names_mean_one_thing_or_are_refused() {
        let registries = read(&[SITE]);
        let means = |registries: &Registries, text: &str| match registries.parse(text) {
            Ok(EnrootReference { user: Some(user), reference }) => format!("{user} {reference}"),
            Ok(EnrootReference { user: None, reference }) => reference.to_string(),
            Err(error) => error.to_string(),
        };
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, want) in [
            ("docker://a.example/x:1", "a.example/x:1"),
            ("alpine", "registry.example/alpine:latest"),
            ("docker://library/x:2", "registry.example/library/x:2"),
            ("me@alpine", "me registry.example/alpine:latest"),
            ("tool", "tools.example/team/tool:latest"),
            ("tool:3", "tools.example/team/tool:3"),
            (&format!("tool@{digest}"), &format!("tools.example/team/tool@{digest}")),
            ("team/other:1", "tools.example/other:1"),
            ("localhost/tool", "localhost/tool:latest"),
        ] {
            assert_eq!(means(&registries, text), want, "{text}");
        }
        assert!(registries.parse("Bad").is_err() && registries.parse("").is_err());
        let none = Registries::default();
        assert_eq!(means(&none, "tool:1"), "image reference 'tool' names no registry");
        // Later files replace, and remove.
        let several = read(&[
            SITE,
            "unqualified-search-registries = ['a.example', 'b.example:5000']\n[aliases]\n'tool' = ''\n'team/other' = 'x'",
        ]);
        assert_eq!(
            means(&several, "tool"),
            "short name 'tool' may mean any of: a.example/tool, b.example:5000/tool"
        );
        assert_eq!(
            means(&several, "team/other"),
            "short name 'team/other' is an alias of 'x', which is no image"
        );
    }

    #[test]
    fn a_later_file_replaces_what_it_names() {
        let later = "[[registry]]\nlocation = 'upstream.example'\nblocked = true\n";
        let registries = read(&[SITE, later]);
        assert_eq!(
            places(&registries, "upstream.example/a"),
            "registries.conf blocks 'upstream.example/a:latest'"
        );
        assert_eq!(places(&registries, "upstream.example/team/a"), "upstream.example/team/a");
        assert_eq!(registries.parse("x").unwrap().reference.to_string(), "registry.example/x:latest");
    }

    #[test]
    fn logins_are_looked_for_where_the_last_list_says() {
        let program = |name: &str| CredentialHelper::Program(name.to_owned());
        for (texts, want) in [
            (&[][..], vec![CredentialHelper::AuthFiles]),
            (&["credential-helpers = []"], vec![CredentialHelper::AuthFiles]),
            (&[SITE], vec![program("x")]),
            (
                &["credential-helpers = ['pass', 'containers-auth.json', 'ecr-login']"],
                vec![program("pass"), CredentialHelper::AuthFiles, program("ecr-login")],
            ),
            (&[SITE, "credential-helpers = ['pass']"], vec![program("pass")]),
            (&[SITE, "[aliases]\nx = 'a.example/x'"], vec![program("x")]),
            (&[SITE, "credential-helpers = []"], vec![CredentialHelper::AuthFiles]),
        ] {
            assert_eq!(read(texts).credential_helpers(), want, "{texts:?}");
        }
        let many = format!("credential-helpers = [{}]", "'a', ".repeat(MAX_HELPERS + 1));
        assert!(read(&[]).add(&many).is_err());
    }

    #[test]
    fn the_first_version_is_read() {
        let registries = read(&["[registries.search]\nregistries = ['a.example']\n\
             [registries.insecure]\nregistries = ['b.example:5000', 'c.example']\n\
             [registries.block]\nregistries = ['c.example', 'd.example']"]);
        assert_eq!(registries.parse("x").unwrap().reference.to_string(), "a.example/x:latest");
        for (reference, want) in [
            ("b.example:5000/x", "b.example:5000/x!"),
            ("c.example/x", "registries.conf blocks 'c.example/x:latest'"),
            ("d.example/x", "registries.conf blocks 'd.example/x:latest'"),
            ("a.example/x", "itself"),
        ] {
            assert_eq!(places(&registries, reference), want);
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_whole() {
        for (text, part) in [
            ("[", "TOML"),
            ("unqualified-search-registries = 'x'", "invalid type"),
            ("credential-helpers = ['../x']", "credential-helpers"),
            ("credential-helpers = ['']", "credential-helpers"),
            ("credential-helpers = 'pass'", "invalid type"),
            ("credential-helpers = ['x']\n[registries.search]\nregistries = []", "version 1"),
            ("unqualified-search-registries = ['a b']", "unqualified-search-registries = \"a b\""),
            ("[registries.block]\nregistries = ['a b']", "location"),
            (
                "[registries.search]\nregistries = ['a.example']\n[[registry]]\nlocation = 'b.example'",
                "version 1",
            ),
            ("[[registry]]\nblocked = true", "prefix = \"\""),
            ("[[registry]]\nprefix = '*.'", "prefix = \"*.\""),
            ("[[registry]]\nprefix = '*.a.example/x'", "prefix"),
            ("[[registry]]\nlocation = 'a.example/x:1'", "location"),
            ("[[registry]]\nlocation = '../x'", "location"),
            ("[[registry]]\nlocation = 'a.example'\nmirror = [{ location = '' }]", "mirror.location"),
            (
                "[[registry]]\nlocation = 'a.example'\nmirror = [{ location = 'b.example', pull-from-mirror = 'x' }]",
                "pull-from-mirror = \"x\"",
            ),
        ] {
            let mut registries = read(&["unqualified-search-registries = ['a.example']"]);
            let before = registries.clone();
            let error = registries.add(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert_eq!(registries, before, "{text}");
        }
        assert_eq!(read(&[]).add(&" ".repeat(MAX_REGISTRIES_BYTES + 1)), Err(RegistriesError::TooLarge));
        let many = format!(
            "[[registry]]\nlocation = 'a.example'\nmirror = [{}]",
            "{ location = 'b.example' }, ".repeat(MAX_MIRRORS + 1)
        );
        assert!(matches!(read(&[]).add(&many), Err(RegistriesError::Value { key: "mirror", .. })));
    }
}
