//! Binds as anybody may write them, read. Shared by the tests of this crate and the fuzz target.
//!
//! Invariant: whatever the text is, reading it returns; what is bound is bound at a plain absolute path below the root, from
//! an absolute path, and an image is read-only.

use std::path::{Component, Path};

use situla_bindings::{
    BindRequest, BindSource, MAX_BINDS, parse_apptainer_bind, parse_apptainer_mount, parse_edf_mount,
    parse_pyxis_mounts,
};

/// Reads binds in all forms that there are; tells how many forms it had.
pub(crate) fn binds(data: &[u8]) -> usize {
    let Ok(text) = std::str::from_utf8(data) else { return 0 };
    let cwd = Path::new("/start");
    let forms: [Option<Vec<BindRequest>>; 4] = [
        parse_apptainer_bind(text, cwd, "o").ok(),
        parse_apptainer_mount(text, cwd, "o").ok(),
        parse_pyxis_mounts(text, cwd, "o").ok().map(|mounts| mounts.binds),
        parse_edf_mount(text, cwd, "o").ok().map(|bind| vec![bind]),
    ];
    forms.into_iter().flatten().inspect(|binds| check(binds)).count()
}

fn check(binds: &[BindRequest]) {
    assert!(binds.len() <= MAX_BINDS);
    let is_plain = |path: &Path| {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        path.is_absolute() && path.components().all(plain)
    };
    for bind in binds {
        assert!(is_plain(&bind.destination) && bind.destination.parent().is_some(), "{bind:?}");
        match &bind.source {
            BindSource::Host(source) => assert!(source.is_absolute(), "{bind:?}"),
            BindSource::Image(image) => {
                assert!(image.path.is_absolute() && is_plain(Path::new(&image.directory)), "{bind:?}");
                assert!(bind.read_only && image.object != Some(0), "{bind:?}");
            }
            BindSource::Tmpfs { .. } => {}
            BindSource::MinimalDev => panic!("nobody can ask for that: {bind:?}"),
        }
    }
}
