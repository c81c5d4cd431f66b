//! The settings by which registries are spoken to, from the files and variables of user and site.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use situla_engine::{admit_reference, home_of_account};
use situla_image::{Certificates, ClientOptions, Credentials, Keyring, KeyringError, Route, Transport};
use situla_oci::{EnrootReference, Place, Reference, Registry, Repository};

use crate::Context;
use crate::command_error::CommandError;
use crate::credentials::{Files, Places, Variable};
use crate::proxy::proxies;
use crate::registries;

/// The home of the account, where no variable names one. Asking for an account may ask a directory service.
pub(crate) fn assumed_home() -> Option<&'static Path> {
    static HOME: OnceLock<Option<PathBuf>> = OnceLock::new();
    if std::env::var_os("HOME").is_some() {
        return None;
    }
    HOME.get_or_init(home_of_account).as_deref()
}

/// A variable of the environment. The home is that of the account where none is set: a step of `srun --export=NONE` has the
/// user's logins and settings as well.
pub(crate) fn variable(name: &str) -> Option<String> {
    let set = std::env::var(name).ok();
    match name {
        "HOME" => set.or_else(|| assumed_home()?.to_str().map(str::to_owned)),
        _ => set,
    }
}

/// The places of this user's logins; `file` is one that was named on the command line.
pub(crate) fn places(file: Option<PathBuf>) -> Places {
    let variable: Variable<'_> = &variable;
    Places::of(variable, file)
}

/// Settings for a registry that is spoken to under its own name.
pub(crate) fn options(plain_http: bool, keyring: Arc<dyn Keyring>) -> ClientOptions {
    let transport = if plain_http { Transport::Plain } else { Transport::Auto };
    ClientOptions { transport, keyring, proxies: proxies(&variable), ..ClientOptions::default() }
}

/// Settings for fetching an image, after the policy was asked about it and every place it may come from; and the policy's
/// warnings.
pub(crate) fn options_for(
    image: &EnrootReference,
    plain_http: bool,
    authfile: Option<PathBuf>,
    context: &Context,
) -> Result<(ClientOptions, Vec<String>), CommandError> {
    let admit = |reference: &Reference| {
        admit_reference(reference, &context.host, &context.site).map_err(CommandError::engine)
    };
    let reference = &image.reference;
    let mut warnings = admit(reference)?;
    let registries = registries::load()?;
    let keyring = Arc::new(Files::new(places(authfile), &registries, image.user.clone()));
    let mut options = options(plain_http, keyring);
    let places = registries
        .places(reference)
        .map_err(|error| registries::name_error(&reference.to_string(), &error))?;
    if let Some(places) = places {
        let name = (reference.registry().clone(), reference.repository().clone());
        let routes = routes(reference, places, options.transport, admit, &mut warnings)?;
        options.routes.insert(name, routes);
    }
    Ok((options, warnings))
}

/// The same settings for somebody of whom nothing is known: with neither login nor certificate of his own.
pub(crate) fn anonymous(options: &ClientOptions) -> ClientOptions {
    ClientOptions { keyring: Arc::new(Anonymous(Arc::clone(&options.keyring))), ..options.clone() }
}

/// What everybody on this machine knows of hosts.
#[derive(Debug)]
struct Anonymous(Arc<dyn Keyring>);

impl Keyring for Anonymous {
    fn login(&self, _: &Registry, _: Option<&Repository>) -> Result<Option<Credentials>, KeyringError> {
        Ok(None)
    }

    fn certificates(&self, host: &str) -> Result<Option<Certificates>, KeyringError> {
        let found = self.0.certificates(host)?;
        Ok(found.map(|certificates| Certificates { client: None, ..certificates }))
    }
}

/// The places that the policy admits. What a user's own configuration names is no way around it.
fn routes(
    reference: &Reference,
    places: Vec<Place>,
    transport: Transport,
    admit: impl Fn(&Reference) -> Result<Vec<String>, CommandError>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Route>, CommandError> {
    let mut routes = Vec::new();
    let n_places = places.len();
    for (index, Place { registry, repository, insecure }) in places.into_iter().enumerate() {
        let is_itself = (&registry, &repository) == (reference.registry(), reference.repository());
        if !is_itself {
            let admitted = reference
                .moved_to(registry.clone(), repository.clone())
                .map_err(|error| {
                    CommandError::usage(error.to_string(), "shorten its location in registries.conf")
                })
                .and_then(|moved| admit(&moved));
            match admitted {
                Ok(more) => warnings.extend(
                    more.into_iter().filter(|warning| !warnings.contains(warning)).collect::<Vec<_>>(),
                ),
                Err(error) if index + 1 == n_places => return Err(error),
                Err(_) => {
                    warnings.push(format!(
                        "the mirror {registry}/{repository} is left out: the policy denies it"
                    ));
                    continue;
                }
            }
        }
        let transport = match (insecure, &registry == reference.registry()) {
            // Plain HTTP was asked for the registry that the user names; to a login that is another thing than to fall to it.
            (_, true) if transport == Transport::Plain => transport,
            (true, _) => Transport::Insecure,
            (false, true) => transport,
            (false, false) => Transport::Auto,
        };
        routes.push(Route { registry, repository, transport });
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_denies_is_no_mirror() {
        let reference: Reference = "a.example/x:1".parse().unwrap();
        let place = |registry: &str, insecure| Place {
            registry: registry.parse().unwrap(),
            repository: "x".parse().unwrap(),
            insecure,
        };
        let choose = |places: Vec<Place>, denied: &str, transport| {
            let mut warnings = Vec::new();
            let admit = |reference: &Reference| match reference.registry().as_str() == denied {
                true => Err(CommandError::refused("policy-denied", "no", "")),
                false => Ok(vec!["careful".to_owned()]),
            };
            let routes = routes(&reference, places, transport, admit, &mut warnings)
                .map_err(|error| error.to_json())?;
            let shown: Vec<String> =
                routes.iter().map(|route| format!("{} {:?}", route.registry, route.transport)).collect();
            Ok::<_, serde_json::Value>((shown.join(", "), warnings))
        };
        let three = || vec![place("m.example", true), place("n.example", false), place("a.example", false)];
        let (routes, warnings) = choose(three(), "-", Transport::Plain).unwrap();
        assert_eq!(routes, "m.example Insecure, n.example Auto, a.example Plain");
        assert_eq!(warnings, ["careful"]);
        let (routes, warnings) = choose(three(), "n.example", Transport::Auto).unwrap();
        assert_eq!(routes, "m.example Insecure, a.example Auto");
        assert_eq!(warnings, ["careful", "the mirror n.example/x is left out: the policy denies it"]);
        let itself = || vec![place("a.example", true)];
        assert_eq!(choose(itself(), "-", Transport::Plain).unwrap().0, "a.example Plain");
        assert_eq!(choose(itself(), "-", Transport::Auto).unwrap().0, "a.example Insecure");
        // The registry itself was judged before; another place in its stead was not.
        assert!(choose(three(), "a.example", Transport::Auto).is_ok());
        let moved = vec![place("m.example", false), place("b.example", false)];
        assert_eq!(choose(moved, "b.example", Transport::Auto).unwrap_err()["class"], "policy-denied");
    }
}
