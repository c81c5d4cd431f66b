//! Which proxy leads to a host.

use std::fmt;
use std::net::IpAddr;

use super::url::Url;

/// The address of a proxy. A password in it is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProxyAddress(String);

impl ProxyAddress {
    /// Takes `[scheme://][user:password@]host[:port]`; whether it makes sense is seen at the first connection.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = match self.0.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), self.0.as_str()),
        };
        match rest.rsplit_once('@') {
            Some((_, host)) => write!(f, "{scheme}***@{host}"),
            None => write!(f, "{scheme}{rest}"),
        }
    }
}

impl fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Proxies, by what is spoken through them. Loopback hosts are always spoken to directly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proxies {
    /// For TLS.
    pub https: Option<ProxyAddress>,
    /// For plain HTTP.
    pub http: Option<ProxyAddress>,
    /// For either that has none of its own.
    pub all: Option<ProxyAddress>,
    /// Hosts that are spoken to directly.
    pub exempt: Vec<Exempt>,
}

impl Proxies {
    /// The proxy for a URL.
    pub(crate) fn choose(&self, url: &Url) -> Option<&ProxyAddress> {
        if url.is_loopback() || self.exempt.iter().any(|entry| entry.covers(url.host(), url.port())) {
            return None;
        }
        if url.tls { &self.https } else { &self.http }.as_ref().or(self.all.as_ref())
    }
}

/// An entry of `no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exempt {
    /// Every host.
    All,
    /// A host or domain, with all below it; at one port, if there is one.
    Domain {
        /// The name, in lower case.
        name: String,
        /// The port.
        port: Option<u16>,
    },
    /// Addresses: a network and how many of its bits count; at one port, if there is one.
    Network {
        /// The address.
        address: IpAddr,
        /// How many leading bits must be equal.
        bits: u32,
        /// The port.
        port: Option<u16>,
    },
}

/// Most entries that are looked at.
const MAX_EXEMPT: usize = 4096;

impl Exempt {
    /// Reads the value of `no_proxy`: hosts, domains with or without `.` or `*.` before them, addresses and networks
    /// (`10.0.0.0/8`), each with or without a port, or `*`, separated by commas or spaces.
    #[must_use]
    pub fn parse_list(list: &str) -> Vec<Self> {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        entries.take(MAX_EXEMPT).filter_map(Self::parse).collect()
    }

    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            let address: IpAddr = unbracketed(address).parse().ok()?;
            let bits = bits.parse().ok().filter(|bits| *bits <= width(address))?;
            return Some(Self::Network { address, bits, port: None });
        }
        if let Ok(address) = entry.parse() {
            return Some(Self::Network { address, bits: width(address), port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        if let Ok(address) = unbracketed(host).parse() {
            return Some(Self::Network { address, bits: width(address), port });
        }
        let name = host.strip_prefix('*').unwrap_or(host).trim_matches('.');
        (!name.is_empty()).then(|| Self::Domain { name: name.to_owned(), port })
    }

    fn covers(&self, host: &str, at: u16) -> bool {
        let (covers, port) = match self {
            Self::All => (true, &None),
            Self::Domain { name, port } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (host == name || below, port)
            }
            Self::Network { address, bits, port } => {
                let inside = host.parse().is_ok_and(|host| agree(host, *address, *bits));
                (inside, port)
            }
        };
        covers && port.is_none_or(|port| port == at)
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Tells whether the leading bits of two addresses are equal.
fn agree(a: IpAddr, b: IpAddr, bits: u32) -> bool {
    let differing = match (a.to_canonical(), b.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exempt_by_name_network_and_port() {
        let proxies = |list: &str| Proxies {
            https: Some(ProxyAddress::new("http://s:1")),
            exempt: Exempt::parse_list(list),
            ..Proxies::default()
        };
        for (list, host, direct) in [
            ("example", "a.example", true),
            (".example", "a.example", true),
            ("*.example", "a.example", true),
            ("x, A.Example:443", "a.example", true),
            ("x,a.example:444", "a.example", false),
            ("a.example:444", "a.example:444", true),
            ("*", "a.example", true),
            ("ample", "a.example", false),
            ("b.example", "a.example", false),
            (",", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.0.0.0/8", "10.example", false),
            ("10.1.2.3", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3:5001", false),
            ("0.0.0.0/0", "10.1.2.3", true),
            ("fd00::/8", "[fd12::1]:5000", true),
            ("fd00::/8", "[fe80::1]", false),
            ("[fd12::1]:5000", "[fd12::1]:5000", true),
            ("10.0.0.0/33 :: a.example:x /8 [", "10.1.2.3", false),
            // Loopback needs no word.
            ("", "localhost:5000", true),
            ("", "[::1]:5000", true),
        ] {
            let url = Url::parse(&format!("https://{host}/v2/")).unwrap();
            assert_eq!(proxies(list).choose(&url).is_none(), direct, "{list} {host}");
        }
    }

    #[test]
    fn the_scheme_chooses_the_proxy() {
        let named = |name: &str| Some(ProxyAddress::new(name));
        let (tls, plain) =
            (Url::parse("https://a.example/").unwrap(), Url::parse("http://a.example/").unwrap());
        let both = Proxies { https: named("s"), http: named("p"), all: named("a"), exempt: Vec::new() };
        assert_eq!((both.choose(&tls), both.choose(&plain)), (named("s").as_ref(), named("p").as_ref()));
        let rest = Proxies { https: None, http: None, ..both };
        assert_eq!((rest.choose(&tls), rest.choose(&plain)), (named("a").as_ref(), named("a").as_ref()));
    }

    #[test]
    fn passwords_of_proxies_are_not_shown() {
        for (text, shown) in [
            ("http://me:hunter2@proxy:3128", "http://***@proxy:3128"),
            ("me:hunter2@proxy", "***@proxy"),
            ("http://me:hun@ter2@proxy:3128", "http://***@proxy:3128"),
            ("http://proxy:3128/", "http://proxy:3128/"),
        ] {
            let proxies = Proxies { https: Some(ProxyAddress::new(text)), ..Proxies::default() };
            assert_eq!(ProxyAddress::new(text).to_string(), shown);
            assert!(!format!("{proxies:?}").contains("hunter2"));
        }
    }
}
