//! Hostlists compared with the real `scontrol`, which needs no controller for this.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// A configuration that names one node; scontrol refuses to start without any.
const CONF: &str = "ClusterName=hostlist\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=p Nodes=n1\n";

/// Runs `scontrol show WHAT ARG`; `Err` carries why it could not be run at all.
fn scontrol(conf: &Path, what: &str, arg: &str) -> Result<String, String> {
    let output = match Command::new("scontrol").env("SLURM_CONF", conf).args(["show", what, arg]).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("no scontrol on this machine".to_owned());
        }
        Err(error) => panic!("scontrol did not start: {error}"),
    };
    assert!(
        output.status.success(),
        "scontrol show {what} {arg}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout).expect("host names are text"))
}

#[test]
fn hostlists_agree_with_scontrol() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let conf = dir.path().join("slurm.conf");
    std::fs::write(&conf, CONF).expect("writable");

    for text in
        ["n1", "n[1-4,7]", "a[01-02]b[1-2]", "n[08-11]", "[1-2]", "n[1-010]", "x[1-2],y[007-012]", "a-b[1-3]"]
    {
        let theirs = match scontrol(&conf, "hostnames", text) {
            Ok(text) => text,
            Err(reason) => {
                assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "{reason}");
                println!("skipped: {reason}");
                return;
            }
        };
        let ours = situla_slurm::expand(text).expect(text);
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>(), "{text}");
    }
    for names in ["n1", "n3,n1,n2", "n08,n09,n10", "n8,n9,n10", "n09,n9", "login,n1,n2,m1", "n1,n1,n2"] {
        let theirs = scontrol(&conf, "hostlist", names).expect("it ran above");
        let ours = situla_slurm::compress(&names.split(',').collect::<Vec<_>>());
        assert_eq!(ours, theirs.trim_end(), "{names}");
    }
}
