//! Where Slurm's programs look for their configuration, and what is in it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use situla_slurm::{MAX_CONF, SlurmConf};

/// Where Slurm has it if nobody says anything else. The last one is where slurmd puts it that gets it from the controller
/// (slurm.conf(5), "configless").
const USUAL_PLACES: [&str; 3] =
    ["/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf"];

/// Where a configuration can be: at the place that `SLURM_CONF` names, if it does.
pub(crate) fn places(named: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let named = named.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
    let usual = USUAL_PLACES.iter().filter(|_| named.is_none()).map(PathBuf::from).collect::<Vec<_>>();
    named.into_iter().chain(usual)
}

/// Reads a configuration, with what it includes; `None` where there is none that can be read.
pub(crate) fn load(path: &Path) -> Option<SlurmConf> {
    let beside = path.parent()?;
    Some(SlurmConf::parse(&text(path)?, |name| text(&beside.join(name))))
}

/// The text of a configuration file, if it is one and not too large.
pub(crate) fn text(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > MAX_CONF {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONF).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_included_is_beside_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("slurm.conf"), "ClusterName=a\nInclude sub/one.conf\n").unwrap();
        std::fs::write(at("sub/one.conf"), "Include two.conf\n").unwrap();
        std::fs::write(at("two.conf"), "ClusterName=B\n").unwrap();
        assert_eq!(load(&at("slurm.conf")).unwrap().cluster_name().as_deref(), Some("b"));
        assert_eq!(load(&at("none.conf")), None);
        assert_eq!(load(directory.path()), None);
    }

    #[test]
    fn a_place_that_is_named_is_the_only_one() {
        assert_eq!(places(Some(Path::new("/a"))).collect::<Vec<_>>(), [Path::new("/a")]);
        assert_eq!(places(None).next().as_deref(), Some(Path::new("/etc/slurm/slurm.conf")));
        assert_eq!(places(Some(Path::new(""))).count(), 3);
    }
}
