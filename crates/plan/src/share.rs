//! With whom the namespaces of a container are shared.

use serde::{Deserialize, Serialize};

/// Identifies one shared container on a node: tasks with equal keys join each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShareKey(pub String);

/// Who else runs in the same namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "with")]
pub enum Share {
    /// Nobody: the namespaces live and die with this process.
    Nobody {
        /// Why not with the step.
        reason: String,
    },
    /// Whoever enters the instance later: processes of the same user, as often as he likes. The container
    /// stays until it is told to end, with its own command or without any.
    Instance {
        /// Under which it is found on its host.
        key: ShareKey,
    },
    /// The other tasks of the same step on the same node.
    Step {
        /// Under which tasks find each other: user, job, step, node and what the container is made
        /// of, without what differs from rank to rank.
        key: ShareKey,
        /// How many tasks of the step this node has.
        local_tasks: u32,
        /// The cgroup of the step, as in `/proc/self/cgroup`; a process outside it is refused.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cgroup: Option<String>,
    },
}
