//! Logins and certificates of the user and the site, from the files of the tools that he uses already.

mod docker;
mod file;
mod netrc;
mod places;
mod program;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use situla_image::{Certificates, ClientCertificate, Credentials, Keyring, KeyringError, Login, Secret};
use situla_oci::{CredentialHelper, Registries, Registry, Repository};

use self::docker::{DockerConfig, Found, guesses, is_named};
use self::netrc::Password;
use self::program::Programs;

pub(crate) use self::places::{Places, Variable};

/// Asks the files of other tools, when a registry wants a login.
#[derive(Debug)]
pub(crate) struct Files {
    places: Places,
    /// Where logins are looked for, of what `registries.conf` knows.
    helpers: Vec<CredentialHelper>,
    /// The only user whose logins count, where one was named.
    user: Option<String>,
    programs: Programs,
}

/// What a search has come upon so far.
#[derive(Default)]
struct Search {
    /// The first place that could not tell.
    failure: Option<KeyringError>,
    /// Somebody else's login.
    other: Option<String>,
}

impl Files {
    pub(crate) fn new(places: Places, registries: &Registries, user: Option<String>) -> Self {
        let helpers = registries.credential_helpers();
        Self { places, helpers, user, programs: Programs::default() }
    }

    /// The program that keeps new logins for all registries: the first place where they are looked for, if the user has
    /// named no file.
    fn keeper(&self) -> Option<&str> {
        match (&self.places.named, self.helpers.first()) {
            (None, Some(CredentialHelper::Program(suffix))) => Some(suffix),
            _ => None,
        }
    }

    /// Keeps a login, in a file or with the helper that the file names for the registry; tells where it is.
    pub(crate) fn keep(&self, registry: &Registry, login: &Login) -> Result<String, KeyringError> {
        if let Some(suffix) = self.keeper() {
            let stored = self.programs.store(suffix, registry.as_str(), login);
            return stored.map(|()| format!("docker-credential-{suffix}")).map_err(of_listed_helper);
        }
        let path = self.written()?;
        // A helper may ask a person something: nobody is kept waiting for that.
        let helper = file::load(path)?.helper(registry);
        if let Some((suffix, server)) = &helper {
            self.programs.store(suffix, server, login).map_err(|message| of_helper(message, path))?;
        }
        file::update(path, |config| {
            config.insert(registry, Some(login).filter(|_| helper.is_none()));
            true
        })?;
        Ok(match helper {
            Some((suffix, _)) => format!("docker-credential-{suffix}"),
            None => path.display().to_string(),
        })
    }

    /// Forgets what [`Files::keep`] keeps; tells whether there was a login.
    pub(crate) fn forget(&self, registry: &Registry) -> Result<bool, KeyringError> {
        let path = self.written()?;
        let config = file::load(path)?;
        let mut known = false;
        // One patience for all: there are several names, and a helper that hangs does so with each.
        let deadline = Instant::now() + self.programs.limit;
        for helper in &self.helpers {
            let CredentialHelper::Program(suffix) = helper else { continue };
            // Where new ones are kept must be able to forget them; another one need not be installed here.
            let is_keeper = self.keeper() == Some(suffix);
            let names = if is_keeper { BTreeSet::from([registry.to_string()]) } else { BTreeSet::new() };
            let erased = self.erase_all(suffix, &names, &guesses(registry).into(), registry, deadline);
            known |= erased.map_err(of_listed_helper)?;
        }
        for (index, suffix) in config.helpers(registry).iter().enumerate() {
            // The names in the file are those of the helper that is asked for this registry; another one need not
            // know them, nor be there.
            let in_file = config.servers(registry);
            let names = if index == 0 { in_file.clone() } else { BTreeSet::new() };
            let guessed = guesses(registry).into_iter().chain(in_file).collect();
            let erased = self.erase_all(suffix, &names, &guessed, registry, deadline);
            known |= erased.map_err(|message| of_helper(message, path))?;
        }
        let removed = file::update(path, |config| config.remove(registry))?;
        Ok(known || removed)
    }

    /// Has a helper forget a registry under `names`, under those that it tells itself, and under `guessed` ones; tells
    /// whether there was a login. A secret that stays is a failure; of a name that is only guessed some helpers make no
    /// sense, and have nothing under it.
    fn erase_all(
        &self,
        suffix: &str,
        names: &BTreeSet<String>,
        guessed: &BTreeSet<String>,
        registry: &Registry,
        deadline: Instant,
    ) -> Result<bool, String> {
        let mut outcome = Ok(false);
        let mut note = |erased: Result<bool, String>| match (&mut outcome, erased) {
            (Ok(before), Ok(erased)) => *before |= erased,
            (Ok(_), Err(failure)) => outcome = Err(failure),
            // The first failure tells most.
            (Err(_), _) => {}
        };
        for server in names {
            let programs = self.programs.until(deadline);
            note(match programs.get(suffix, server) {
                Ok(None) => Ok(false),
                Err(message) if Instant::now() >= deadline => Err(message),
                // Whether one that cannot be read can be erased is for the helper to say.
                Ok(Some(_)) | Err(_) => programs.until(deadline).erase(suffix, server).map(|()| true),
            });
        }
        // Other tools have names of their own for the server, under which a secret may lie as well.
        let listed: BTreeSet<String> = self
            .programs
            .until(deadline)
            .servers(suffix)
            .into_iter()
            .filter(|name| is_named(name, registry))
            .collect();
        for server in &listed {
            note(self.programs.until(deadline).erase(suffix, server).map(|()| true));
        }
        for server in guessed.iter().filter(|name| !names.contains(*name) && !listed.contains(*name)) {
            let programs = self.programs.until(deadline);
            if !programs.limit.is_zero()
                && let Ok(Some(_)) = programs.get(suffix, server)
            {
                note(programs.until(deadline).erase(suffix, server).map(|()| true));
            }
        }
        outcome
    }

    fn written(&self) -> Result<&Path, KeyringError> {
        self.places.written.as_deref().ok_or_else(|| KeyringError {
            message: "there is no home directory to keep a login in".to_owned(),
            remedy: "set HOME, or name a file with --authfile".to_owned(),
        })
    }

    /// Takes a login if it is of the user that was asked for.
    fn accept(&self, search: &mut Search, login: Login, origin: String) -> Option<Credentials> {
        match (&self.user, login.user()) {
            // A token says nothing of whose it is.
            (Some(wanted), Some(found)) if wanted != found => {
                search.other.get_or_insert(found.to_owned());
                None
            }
            _ => Some(Credentials { login, origin, of_any_port: false }),
        }
    }

    fn in_docker_file(
        &self,
        path: &Path,
        registry: &Registry,
        repository: Option<&Repository>,
        search: &mut Search,
    ) -> Result<Option<Credentials>, KeyringError> {
        let Some(text) = file::read(path)? else { return Ok(None) };
        for found in
            DockerConfig::parse(&text).map_err(|why| file::unusable(path, &why))?.find(registry, repository)
        {
            let credentials = match found {
                Found::Login(login) => self.accept(search, login, path.display().to_string()),
                Found::Helper { suffix, server, must_know } => {
                    match self.programs.get(&suffix, &server) {
                        Ok(login) => login.and_then(|login| {
                            self.accept(search, login, format!("docker-credential-{suffix}"))
                        }),
                        // A store for all registries need not be there where none of its logins is wanted.
                        Err(message) if must_know => {
                            search.failure.get_or_insert(of_helper(message, path));
                            None
                        }
                        Err(_) => None,
                    }
                }
            };
            if credentials.is_some() {
                return Ok(credentials);
            }
        }
        Ok(None)
    }

    /// Asks a helper that `registries.conf` has for all registries. As with containers' tools one that cannot tell is a
    /// failure where nobody else has a login.
    fn with_listed_helper(
        &self,
        suffix: &str,
        registry: &Registry,
        search: &mut Search,
    ) -> Result<Option<Credentials>, KeyringError> {
        let login = self.programs.get(suffix, registry.as_str()).map_err(of_listed_helper)?;
        Ok(login.and_then(|login| self.accept(search, login, format!("docker-credential-{suffix}"))))
    }

    fn in_enroot_file(
        &self,
        path: &Path,
        registry: &Registry,
        search: &mut Search,
    ) -> Result<Option<Credentials>, KeyringError> {
        let Some(text) = file::read(path)? else { return Ok(None) };
        let entries = netrc::parse_enroot(&text);
        for (host, of_any_port) in hosts(registry) {
            for entry in entries.iter().filter(|entry| entry.machine == host) {
                if self.user.as_ref().is_some_and(|user| *user != entry.login) {
                    search.other.get_or_insert(entry.login.clone());
                    continue;
                }
                let password = match &entry.password {
                    Password::Plain(password) => password.clone(),
                    Password::Shell(text) => {
                        // A file that others can write would have us run their commands.
                        file::expect_own(path)?;
                        self.programs
                            .expand(text)
                            .map_err(|why| file::unusable(path, &format!("the password of {host}: {why}")))?
                    }
                };
                let login = Login::Password { user: entry.login.clone(), password };
                return Ok(Some(Credentials { login, origin: path.display().to_string(), of_any_port }));
            }
        }
        Ok(None)
    }

    fn in_netrc(
        &self,
        path: &Path,
        registry: &Registry,
        search: &mut Search,
    ) -> Result<Option<Credentials>, KeyringError> {
        let Some(text) = file::read(path)? else { return Ok(None) };
        let entries = netrc::parse(&text);
        for (host, of_any_port) in hosts(registry) {
            for entry in entries.iter().filter(|entry| entry.machine == host) {
                let login = Login::Password { user: entry.login.clone(), password: entry.password.clone() };
                if let Some(found) = self.accept(search, login, path.display().to_string()) {
                    return Ok(Some(Credentials { of_any_port, ..found }));
                }
            }
        }
        Ok(None)
    }
}

impl Keyring for Files {
    fn login(
        &self,
        registry: &Registry,
        repository: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError> {
        let mut search = Search::default();
        type Look<'l> = Box<dyn Fn(&mut Search) -> Result<Option<Credentials>, KeyringError> + 'l>;
        let docker = |path: &PathBuf| {
            let path = path.clone();
            Box::new(move |search: &mut Search| self.in_docker_file(&path, registry, repository, search))
                as Look<'_>
        };
        let mut looks: Vec<Look<'_>> = self.places.named.iter().map(docker).collect();
        for helper in &self.helpers {
            match helper {
                CredentialHelper::AuthFiles => looks.extend(self.places.docker.iter().map(docker)),
                CredentialHelper::Program(suffix) => {
                    looks.push(Box::new(|search| self.with_listed_helper(suffix, registry, search)));
                }
            }
        }
        if let Some(path) = &self.places.enroot {
            looks.push(Box::new(|search| self.in_enroot_file(path, registry, search)));
        }
        if let Some(path) = &self.places.netrc {
            looks.push(Box::new(|search| self.in_netrc(path, registry, search)));
        }
        for look in looks {
            match look(&mut search) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => drop(search.failure.get_or_insert(error)),
            }
        }
        // One that cannot be read matters where no other has a login: it may be the one that was meant.
        match (search.failure, &self.user) {
            (Some(failure), _) => Err(failure),
            (None, Some(user)) => Err(KeyringError {
                message: match search.other {
                    Some(other) => format!("no password of {user} is known, but one of {other}"),
                    None => format!("no password of {user} is known"),
                },
                remedy: format!("situla login {registry} -u {user}"),
            }),
            (None, None) => Ok(None),
        }
    }

    fn certificates(&self, host: &str) -> Result<Option<Certificates>, KeyringError> {
        // Nothing else is a name of a directory.
        if host.parse::<Registry>().is_err() {
            return Ok(None);
        }
        let directory =
            self.places.certificates.iter().map(|place| place.join(host)).find(|dir| dir.is_dir());
        directory.map(|directory| certificates_in(&directory)).transpose()
    }
}

/// Names under which a registry may stand where ports are unusual, and whether it is one for all ports of the host.
fn hosts(registry: &Registry) -> impl Iterator<Item = (String, bool)> {
    let (whole, host) = (registry.to_string(), registry.host().to_owned());
    let differ = whole != host;
    std::iter::once((whole, false)).chain(differ.then_some((host, true)))
}

/// Reads a directory of `certs.d` (containers-certs.d(5)): `*.crt` are authorities, `NAME.cert` with `NAME.key` is the
/// client's.
fn certificates_in(directory: &Path) -> Result<Certificates, KeyringError> {
    let unreadable = |error: &std::io::Error| file::unusable(directory, &error.to_string());
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| unreadable(&error))? {
        names.push(entry.map_err(|error| unreadable(&error))?.path());
    }
    names.sort();
    let missing =
        |path: &Path| file::unusable(path, "there is no such file, and a certificate that needs it");
    let load = |path: &Path| file::read(path)?.ok_or_else(|| missing(path));
    let mut found = Certificates::default();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => found.authorities.push(load(&path)?.into_bytes()),
            Some("cert") if found.client.is_none() => {
                let (chain, key) = (load(&path)?.into_bytes(), load(&path.with_extension("key"))?);
                found.client = Some(ClientCertificate { chain, key: Secret::new(key) });
            }
            _ => {}
        }
    }
    Ok(found)
}

fn of_helper(message: String, path: &Path) -> KeyringError {
    let remedy =
        format!("check the helper, or take it out of credHelpers and credsStore in {}", path.display());
    KeyringError { message, remedy }
}

fn of_listed_helper(message: String) -> KeyringError {
    let remedy = "check the helper, or take it out of credential-helpers in registries.conf".to_owned();
    KeyringError { message, remedy }
}

#[cfg(test)]
mod tests;
