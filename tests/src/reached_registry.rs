//! The test registry as the nodes of a cluster reach it.
//!
//! It listens on loopback alone, and nodes with a network of their own have another loopback. They get to it as a site's
//! nodes do, by an address of this machine and without TLS, which `insecure = true` in the user's `registries.conf`
//! allows. What listens there ends with the case.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;

use crate::cluster::Cluster;
use crate::slow_proxy::SlowProxy;

/// A way to the registry, which can be disturbed; it ends when this is dropped.
#[derive(Debug)]
pub struct ReachedRegistry {
    proxy: SlowProxy,
    /// The file that allows plain HTTP, where the address is not of loopback.
    allowed: Option<PathBuf>,
}

impl ReachedRegistry {
    /// A way from the nodes of a cluster, and from this machine, to what listens at `upstream` (`HOST:PORT`).
    ///
    /// # Errors
    /// The address has no port, or the user's settings cannot be written.
    pub fn of(cluster: &Cluster, upstream: &str) -> Result<Self, String> {
        let host = cluster.address()?;
        let proxy = SlowProxy::at(&host, upstream)?;
        if host.starts_with("127.") {
            return Ok(Self { proxy, allowed: None });
        }
        let env = cluster.env();
        let home = env.home()?;
        let directory = home.join(".config/containers/registries.conf.d");
        // The port is nobody else's.
        let allowed = directory.join(format!("{}.conf", proxy.address().replace(':', "-")));
        let table = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", proxy.address());
        let script = "mkdir -p \"$1\" && printf %s \"$2\" >\"$3\"";
        let (directory, file) = (directory.display().to_string(), allowed.display().to_string());
        env.as_user(home, ["sh", "-c", script, "sh", &directory, &table, &file])?.success()?;
        Ok(Self { proxy, allowed: Some(allowed) })
    }
}

impl Deref for ReachedRegistry {
    type Target = SlowProxy;

    fn deref(&self) -> &SlowProxy {
        &self.proxy
    }
}

impl Drop for ReachedRegistry {
    fn drop(&mut self) {
        if let Some(file) = &self.allowed {
            // What stays allows a port on which nobody listens.
            let _ = fs::remove_file(file);
        }
    }
}
