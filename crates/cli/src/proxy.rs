//! The variables by which the field's tools agree on proxies.
//!
//! `https_proxy`, `http_proxy` (plain HTTP only) and `all_proxy`, and `no_proxy` with the hosts that are spoken to
//! directly; each also in capitals.

use situla_image::{Exempt, Proxies, ProxyAddress};

use crate::credentials::Variable;

/// The proxies that the variables name.
pub(crate) fn proxies(variable: Variable<'_>) -> Proxies {
    let either = |name: &str| {
        [name.to_owned(), name.to_ascii_uppercase()]
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
    };
    let address = |name: &str| either(name).map(|text| ProxyAddress::new(text.trim()));
    Proxies {
        https: address("https_proxy"),
        http: address("http_proxy"),
        all: address("all_proxy"),
        exempt: either("no_proxy").map(|list| Exempt::parse_list(&list)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_name_proxies() {
        let named = |set: &[(&str, &str)]| {
            proxies(&|name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let found = named(&[
            ("https_proxy", "http://s:1"),
            ("HTTPS_PROXY", "http://other:1"),
            ("HTTP_PROXY", " http://p:1 "),
            ("ALL_PROXY", " "),
            ("NO_PROXY", "a.example, b.example"),
        ]);
        assert_eq!(found.https, Some(ProxyAddress::new("http://s:1")));
        assert_eq!(found.http, Some(ProxyAddress::new("http://p:1")));
        assert_eq!((found.all, found.exempt.len()), (None, 2));
        assert_eq!(named(&[]), Proxies::default());
    }
}
