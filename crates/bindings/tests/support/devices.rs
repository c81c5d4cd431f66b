//! Specifications of devices that anybody may have written, read. Shared by the tests of this crate and the fuzz target.
//!
//! Invariant: whatever the bytes are, reading and resolving returns, with a result or an error; what a device asks for
//! is bound at a plain absolute path, from an absolute path of the host.

use std::path::{Component, PathBuf};

use situla_bindings::{BindSource, CdiSpec, DeviceName, SpecFile, Syntax, resolve};

/// Names that the seeds have.
const NAMES: [&str; 3] = ["vendor.com/device=0", "vendor.com/device=all", "nvidia.com/gpu=0"];

/// Reads a specification in both forms and resolves devices; tells whether there was one.
pub(crate) fn devices(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut found = false;
    for syntax in [Syntax::Json, Syntax::Yaml] {
        let Ok(spec) = CdiSpec::parse(text, syntax) else { continue };
        let file = SpecFile { path: PathBuf::from("/etc/cdi/x"), rank: 0, spec };
        for name in NAMES {
            let name: DeviceName = name.parse().expect("a name");
            let Ok(edits) = resolve(&[name], std::slice::from_ref(&file)) else { continue };
            found = true;
            for bind in edits.binds {
                let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
                assert!(bind.destination.is_absolute() && bind.destination.components().all(is_plain));
                assert!(matches!(bind.source, BindSource::Host(source) if source.is_absolute()));
            }
            assert!(edits.env.iter().all(|(name, _)| !name.is_empty() && !name.contains('=')));
        }
    }
    found
}
