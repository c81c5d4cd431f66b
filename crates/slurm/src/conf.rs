//! What slurm.conf(5) tells: the name of the cluster, which the environment of a step need not have.

/// Bytes of a configuration that are worth reading; a site's own is a few hundred kilobytes at the most.
pub const MAX_CONF: u64 = 4 * 1024 * 1024;

/// The name of the cluster in the text of slurm.conf, as Slurm itself says it: in lower case. What files that are included
/// say is not seen.
pub fn cluster_name(text: &str) -> Option<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut words = lines.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='));
    let (_, name) = words.find(|(key, _)| key.eq_ignore_ascii_case("ClusterName"))?;
    let name = name.trim_matches('"');
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_as_slurm_reads_it() {
        for (text, name) in [
            ("# a site\nClusterName=Demo\nSlurmctldHost=a\n", Some("demo")),
            ("  clustername=x-1   # ClusterName=y\n", Some("x-1")),
            ("SlurmUser=slurm ClusterName=\"z\"\n", Some("z")),
            ("#ClusterName=no\nClusterName=yes\n", Some("yes")),
            ("MyClusterName=no\n", None),
            ("ClusterName=\n", None),
            ("", None),
        ] {
            assert_eq!(cluster_name(text).as_deref(), name, "{text:?}");
        }
    }
}
