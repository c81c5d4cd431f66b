//! Which accelerator device nodes belong to the step.
//!
//! What counts is whether a node can be opened from inside the step's cgroup. Indices mislead: with
//! `ConstrainDevices` each job counts its GPUs from zero, whichever they are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bind::Skipped;

/// Device nodes looked at.
const MAX_DEVICES: usize = 4096;

/// What trying to open a device node gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Openable {
    /// It opened. An open that failed later than the permission check (ENXIO, EBUSY) counts as this:
    /// the cgroup let it pass.
    Yes,
    /// EPERM or EACCES: the cgroup or the file mode forbids it.
    Denied,
    /// There is no such node.
    Missing,
}

/// What a device node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceRole {
    /// One accelerator.
    Accelerator,
    /// Shared by all accelerators of its driver, useless without one.
    Control,
}

/// A device node of the step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its path, the same inside.
    pub path: PathBuf,
    /// What it is for.
    pub role: DeviceRole,
    /// Why it is there.
    pub reason: String,
}

/// The device nodes that belong to the step, and those that do not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// To be visible inside.
    pub nodes: Vec<DeviceNode>,
    /// Left out.
    pub skipped: Vec<Skipped>,
}

/// Sorts device nodes by what can be opened.
pub fn plan_devices(paths: &[PathBuf], openable: &dyn Fn(&Path) -> Openable) -> DevicePlan {
    let mut plan = DevicePlan::default();
    let mut control = Vec::new();
    for path in paths.iter().take(MAX_DEVICES) {
        let mut skip = |reason: &str| {
            plan.skipped.push(Skipped { what: path.display().to_string(), reason: reason.to_owned() });
        };
        if !is_device_path(path) {
            skip("not a path below /dev");
            continue;
        }
        match openable(path) {
            Openable::Missing => skip("no such device node on this host"),
            Openable::Denied => {
                skip("cannot be opened in this step: it was given to another one, or to nobody")
            }
            Openable::Yes => match role(path) {
                DeviceRole::Control => control.push(path.clone()),
                DeviceRole::Accelerator => plan.nodes.push(DeviceNode {
                    path: path.clone(),
                    role: DeviceRole::Accelerator,
                    reason: "accelerator that this step can open".to_owned(),
                }),
            },
        }
    }
    for path in paths.iter().skip(MAX_DEVICES) {
        let reason = format!("more than {MAX_DEVICES} device nodes");
        plan.skipped.push(Skipped { what: path.display().to_string(), reason });
    }
    // Control nodes open for everybody; without an accelerator they would only invite confusing errors.
    let families: Vec<&str> = plan.nodes.iter().map(|node| family(&node.path)).collect();
    for path in control {
        if families.contains(&family(&path)) {
            let reason = "control node of the step's accelerators".to_owned();
            plan.nodes.push(DeviceNode { path, role: DeviceRole::Control, reason });
        } else {
            let reason = "control node, but the step has no accelerator of its driver".to_owned();
            plan.skipped.push(Skipped { what: path.display().to_string(), reason });
        }
    }
    plan
}

fn is_device_path(path: &Path) -> bool {
    path.starts_with("/dev") && path != Path::new("/dev") && !path.components().any(|c| c.as_os_str() == "..")
}

/// The name below /dev.
fn name(path: &Path) -> &str {
    path.to_str().and_then(|path| path.strip_prefix("/dev/")).unwrap_or_default()
}

fn role(path: &Path) -> DeviceRole {
    let name = name(path);
    // The numbered nodes are devices; everything else NVIDIA makes belongs to the driver.
    let nvidia =
        name.strip_prefix("nvidia").is_some_and(|rest| rest.is_empty() || rest.parse::<u32>().is_err());
    match nvidia || name == "kfd" {
        true => DeviceRole::Control,
        false => DeviceRole::Accelerator,
    }
}

/// The driver that a control node and its accelerators have in common.
fn family(path: &Path) -> &'static str {
    let name = name(path);
    if name.starts_with("nvidia") {
        "nvidia"
    } else if name == "kfd" || name.starts_with("dri/") {
        "dri"
    } else {
        "other"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(probes: &[(&str, Openable)]) -> (Vec<String>, Vec<String>) {
        let paths: Vec<PathBuf> = probes.iter().map(|(path, _)| path.into()).collect();
        let plan = plan_devices(&paths, &|path| {
            probes
                .iter()
                .find(|(p, _)| Path::new(p) == path)
                .map_or(Openable::Missing, |(_, openable)| *openable)
        });
        assert!(plan.nodes.iter().all(|node| !node.reason.is_empty()));
        assert!(plan.skipped.iter().all(|skipped| !skipped.reason.is_empty()));
        let nodes = plan.nodes.iter().map(|node| node.path.display().to_string()).collect();
        (nodes, plan.skipped.into_iter().map(|skipped| skipped.what).collect())
    }

    #[test]
    fn what_opens_belongs_to_the_step() {
        use Openable::{Denied, Missing, Yes};
        let (nodes, skipped) = run(&[
            ("/dev/nvidia0", Denied),
            ("/dev/nvidia1", Yes),
            ("/dev/nvidia2", Missing),
            ("/dev/nvidiactl", Yes),
            ("/dev/nvidia-uvm", Yes),
            ("/dev/nvidia-caps/nvidia-cap1", Yes),
            ("/dev/kfd", Yes),
            ("/dev/dri/renderD128", Denied),
            ("/dev/fakegpu3", Yes),
        ]);
        let want = [
            "/dev/nvidia1",
            "/dev/fakegpu3",
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-caps/nvidia-cap1",
        ];
        assert_eq!(nodes, want);
        assert_eq!(skipped, ["/dev/nvidia0", "/dev/nvidia2", "/dev/dri/renderD128", "/dev/kfd"]);
    }

    #[test]
    fn a_step_without_accelerators_gets_none() {
        let (nodes, skipped) = run(&[("/dev/nvidia0", Openable::Denied), ("/dev/nvidiactl", Openable::Yes)]);
        assert_eq!((nodes.len(), skipped.len()), (0, 2));
    }

    #[test]
    fn other_paths_are_left_out() {
        for path in ["/etc/shadow", "/dev", "/dev/../etc/shadow", "nvidia0", "/device/x"] {
            assert_eq!(run(&[(path, Openable::Yes)]).0.len(), 0, "{path}");
        }
        let many = vec![PathBuf::from("/dev/x"); MAX_DEVICES + 2];
        let plan = plan_devices(&many, &|_| Openable::Yes);
        assert_eq!((plan.nodes.len(), plan.skipped.len()), (MAX_DEVICES, 2));
    }
}
