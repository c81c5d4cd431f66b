//! The layers above an image that a user asks for.

use std::io::ErrorKind;
use std::path::PathBuf;

use situla_plan::{Overlay, Place, Upper};

use crate::error::EngineError;
use crate::host::Host;
use crate::places;
use crate::request::{Personality, RunRequest};

/// The most layers: their names must fit into one value of fsconfig(2), which has 256 bytes.
const MAX_LAYERS: usize = 8;

/// Layers that exist, in the form of a Plan.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// What the Plan says; `None` where nothing was asked for.
    pub(crate) overlay: Option<Overlay>,
    /// The directories with links resolved, and whether each is only read.
    pub(crate) directories: Vec<(PathBuf, bool)>,
    /// Which directories they are: paths alone do not say.
    pub(crate) identities: Vec<(u64, u64)>,
    /// The same, for the Plan.
    pub(crate) places: Vec<Place>,
}

/// Finds the directories that `request` wants above the image.
pub(crate) fn plan_layers(request: &RunRequest, host: &Host) -> Result<Layers, EngineError> {
    let mut layers = Layers::default();
    if request.overlays.is_empty() && !request.writable_tmpfs {
        return Ok(layers);
    }
    if request.overlays.len() > MAX_LAYERS {
        let message = format!("{} overlays are more than the limit of {MAX_LAYERS}", request.overlays.len());
        return Err(bad(message, "merge some of them into one directory"));
    }
    let tasks_on_node = host.allocation.as_ref().and_then(|allocation| allocation.tasks_on_node);
    // Tasks that Slurm sends here share one.
    let is_shared = request.personality == Personality::Task && request.share;
    let n_tasks = tasks_on_node.filter(|_| !is_shared).unwrap_or(1);
    let size = request.memory.map(|free| share_of_memory(free, n_tasks));
    let upper = request.writable_tmpfs.then_some(Upper::Tmpfs { size });
    let mut overlay = Overlay { lowers: Vec::new(), upper };
    // The topmost was named last, and comes first in a Plan.
    for asked in request.overlays.iter().rev() {
        let shown = asked.path.display();
        let mut found = match places::find(&asked.path) {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let message = format!("the overlay {shown} does not exist on {}", host.hostname);
                return Err(bad(message, "create the directory, or leave the option out"));
            }
            Err(source) => {
                let (path, host) = (asked.path.clone(), host.hostname.clone());
                return Err(EngineError::Unreachable { path, host, source });
            }
        };
        if !found.is_directory {
            let message =
                format!("the overlay {shown} is no directory: images as overlays are not supported");
            return Err(bad(message, "use a directory"));
        }
        // What an earlier run has written is in there.
        if asked.read_only
            && let Ok(written) = places::find(&found.path.join("upper"))
            && written.is_directory
        {
            found = written;
        }
        // It is opened again under this path.
        let path = found.path;
        layers.identities.push((found.place.dev, found.place.ino));
        layers.places.push(Place { path: path.as_os_str().to_owned().into(), ..found.place });
        layers.directories.push((path.clone(), asked.read_only));
        if asked.read_only {
            overlay.lowers.push(path.into_os_string().into());
        } else if overlay.upper.is_some() {
            let message = format!("there is another place than {shown} for what is written above the image");
            return Err(bad(
                message,
                "name one writable overlay, others with :ro, or --writable-tmpfs alone",
            ));
        } else {
            overlay.upper = Some(Upper::Directory { path: path.into_os_string().into() });
        }
    }
    layers.overlay = Some(overlay);
    Ok(layers)
}

/// How much one of `n_tasks` tasks of a step on a node may write into memory: half of what is free, as the kernel has it for a
/// machine (tmpfs(5)), for all of them together, since each has a container and a tmpfs of its own. A program that writes
/// more hears that there is no room; without a limit the kernel would kill it.
fn share_of_memory(free: u64, n_tasks: u32) -> u64 {
    /// What else is in there, mount points and account files, needs room, and no size at all would be no limit.
    const LEAST: u64 = 1 << 20;
    (free / 2 / u64::from(n_tasks.max(1))).max(LEAST)
}

fn bad(message: String, remedy: &str) -> EngineError {
    EngineError::BadOption { message, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_share_half_of_what_is_free() {
        const MIB: u64 = 1 << 20;
        for (free, n_tasks, want) in [
            (100 * MIB, 1, 50 * MIB),
            (100 * MIB, 2, 25 * MIB),
            (100 * MIB, 128, MIB),
            // No number of tasks, and nothing that is free.
            (100 * MIB, 0, 50 * MIB),
            (0, 1, MIB),
            (u64::MAX, u32::MAX, u64::MAX / 2 / u64::from(u32::MAX)),
        ] {
            assert_eq!(share_of_memory(free, n_tasks), want, "{free} for {n_tasks}");
        }
    }
}
