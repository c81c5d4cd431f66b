//! Which proxy leads to a registry, by the variables that the field's tools agree on.
//!
//! `https_proxy`, `http_proxy` (plain HTTP only) and `all_proxy`, also in capitals; `no_proxy` lists
//! hosts, domains with or without a leading dot, or `*`. Networks in `no_proxy` are not understood.

use situla_oci::Registry;

/// The proxy for a registry, if any.
pub(crate) fn proxy_for(
    registry: &Registry,
    plain_http: bool,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let either = |name: &str| {
        [name.to_owned(), name.to_ascii_uppercase()]
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
    };
    let host = registry.host();
    if registry.is_loopback() || either("no_proxy").is_some_and(|list| is_exempt(host, &list)) {
        return None;
    }
    either(if plain_http { "http_proxy" } else { "https_proxy" }).or_else(|| either("all_proxy"))
}

fn is_exempt(host: &str, list: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.split([',', ' ']).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        // A port narrows an entry to a service; hosts serve one registry, so it is not looked at.
        let entry = match entry.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => entry.as_str(),
        };
        let name = entry.trim_start_matches("*.").trim_start_matches('.');
        entry == "*"
            || (!name.is_empty()
                && (host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_choose_the_proxy() {
        let chosen = |registry: &str, plain: bool, set: &[(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            proxy_for(&registry.parse().unwrap(), plain, &variable)
        };
        let both = [("https_proxy", "http://s:1"), ("HTTP_PROXY", "http://p:1")];
        let https = Some("http://s:1".to_owned());
        assert_eq!(chosen("a.example", false, &both), https);
        assert_eq!(chosen("a.example", true, &both), Some("http://p:1".to_owned()));
        assert_eq!(chosen("localhost:5000", false, &both), None);
        assert_eq!(chosen("a.example", false, &[("ALL_PROXY", "http://a:1")]), Some("http://a:1".to_owned()));
        assert_eq!(chosen("a.example", false, &[("https_proxy", "")]), None);
        for (list, direct) in [
            ("example", true),
            (".example", true),
            ("*.example", true),
            ("x, A.Example:443", true),
            ("*", true),
            ("ample", false),
            ("b.example", false),
            (",", false),
        ] {
            let set = [("https_proxy", "http://s:1"), ("NO_PROXY", list)];
            assert_eq!(chosen("a.example", false, &set).is_none(), direct, "{list}");
        }
    }
}
