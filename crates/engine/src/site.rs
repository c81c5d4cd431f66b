//! What the site has decided: its policy file.

use std::path::{Path, PathBuf};

use situla_policy::Policy;

use crate::error::EngineError;

/// The site's settings.
#[derive(Debug, Default)]
pub struct Site {
    /// The policy.
    pub policy: Policy,
}

impl Site {
    /// Loads the site's policy: the first of `etc/situla/policy.toml` beside the installation that
    /// `executable` belongs to (`/opt/situla/bin/situla` has `/opt/situla/etc/...`) and
    /// `/etc/situla/policy.toml`. The place is not for the user to choose. Without a file everything
    /// is allowed.
    ///
    /// # Errors
    /// A file that exists but cannot be read or understood: a policy is never half applied.
    pub fn load(executable: &Path) -> Result<Self, EngineError> {
        let own =
            executable.parent().and_then(Path::parent).map(|prefix| prefix.join("etc/situla/policy.toml"));
        let candidates = own.into_iter().chain([PathBuf::from("/etc/situla/policy.toml")]);
        for path in candidates {
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(EngineError::ReadPolicy { path, source }),
            };
            let policy = Policy::parse(&text, &path.to_string_lossy())?;
            return Ok(Site { policy });
        }
        Ok(Site::default())
    }
}
