//! Plans that may hold anything.
//!
//! The invariants, here and in the fuzz target: whatever the bytes are, reading ends with a result or an error, and a
//! Plan that was read is written, and read, as the same Plan.

use situla_plan::Plan;

/// Reads a Plan; tells whether it was one.
pub(crate) fn plan(bytes: &[u8]) -> bool {
    let Ok(plan) = serde_json::from_slice::<Plan>(bytes) else { return false };
    let written = serde_json::to_vec(&plan).expect("a Plan can be written");
    let again: Plan = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, plan);
    for patch in &plan.rootfs.patches {
        // A name of the Plan's may be one that cannot be written into a file: an error, no panic.
        drop(patch.content.complete(b"root:x:0:0:root:/root:/bin/sh\n"));
    }
    true
}
