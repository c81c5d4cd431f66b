//! Proofs that a registry accepts: asked for once by however many threads, and renewed before they expire.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use situla_oci::{Registry, Repository};

use super::auth::Challenge;
use super::error::ClientError;
use super::secret::Secret;

/// What is done in a repository, which token services want to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Reading.
    #[default]
    Pull,
    /// Writing, and reading in another repository that blobs are taken from.
    Push {
        /// That repository.
        from: Option<Repository>,
    },
}

impl Access {
    /// The scopes of a token for `repository` (distribution's token specification).
    pub(crate) fn scopes(&self, repository: &Repository) -> Vec<String> {
        match self {
            Self::Pull => vec![format!("repository:{repository}:pull")],
            Self::Push { from } => {
                let others = from.iter().filter(|from| *from != repository);
                let others = others.map(|from| format!("repository:{from}:pull"));
                std::iter::once(format!("repository:{repository}:pull,push")).chain(others).collect()
            }
        }
    }
}

/// What a proof is for: one registry, one repository of it, and what is done there.
pub(crate) type Purpose = (Registry, Option<Repository>, Access);

/// A value of the `Authorization` header.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    pub(crate) header: Secret,
    /// Where the login was found, if there was one.
    pub(crate) origin: Option<String>,
    /// When it is no longer good; never, for passwords.
    pub(crate) expires: Option<Instant>,
    /// Tells it from the proofs before it.
    serial: u64,
}

impl Proof {
    pub(crate) fn new(header: Secret, origin: Option<String>, lifetime: Option<Duration>) -> Self {
        // A lifetime without end is as good as none. Requests take time, and clocks go at different speed.
        let until = |lifetime: Duration| {
            Instant::now().checked_add(lifetime - lifetime.min(MARGIN).min(lifetime / 10))
        };
        Self { header, origin, expires: lifetime.and_then(until), serial: 0 }
    }
}

/// How long before its end a token is renewed, or a tenth of its lifetime where that is less.
const MARGIN: Duration = Duration::from_secs(10);

/// What is known of a purpose.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// What the registry has asked for.
    challenge: Option<Challenge>,
    proof: Option<Proof>,
    n_proofs: u64,
    /// The refresh token that replaces the one of the login.
    pub(crate) refresh: Option<Secret>,
}

/// The proofs of a client.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    slots: Mutex<HashMap<Purpose, Arc<Mutex<Slot>>>>,
}

impl Proofs {
    fn slot(&self, purpose: &Purpose) -> Arc<Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(purpose.clone()).or_default().clone()
    }

    /// Tells whether there is a proof that a login was used for.
    pub(crate) fn has_login(&self, purpose: &Purpose) -> bool {
        let slot = self.slot(purpose);
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.proof.as_ref().is_some_and(|proof| proof.origin.is_some())
    }

    /// The proof to be sent with a request, if one was asked for before; an expired one is replaced by what `make`
    /// makes. Other threads wait meanwhile and get the same.
    pub(crate) fn current(
        &self,
        purpose: &Purpose,
        make: impl FnOnce(&Challenge, &mut Slot) -> Result<Proof, ClientError>,
    ) -> Result<Option<Proof>, ClientError> {
        let slot = self.slot(purpose);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |proof: &Proof| proof.expires.is_some_and(|expires| expires <= Instant::now());
        match (&slot.proof, &slot.challenge) {
            (Some(proof), Some(challenge)) if is_over(proof) => {
                let challenge = challenge.clone();
                slot.renew(challenge, make).map(Some)
            }
            (proof, _) => Ok(proof.clone()),
        }
    }

    /// The answer to a challenge by which the registry has rejected `sent`: what another thread got meanwhile, or what
    /// `make` makes.
    pub(crate) fn answer(
        &self,
        purpose: &Purpose,
        challenge: Challenge,
        sent: Option<&Proof>,
        make: impl FnOnce(&Challenge, &mut Slot) -> Result<Proof, ClientError>,
    ) -> Result<Proof, ClientError> {
        let slot = self.slot(purpose);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &slot.proof {
            Some(proof) if sent.is_none_or(|sent| sent.serial != proof.serial) => Ok(proof.clone()),
            _ => slot.renew(challenge, make),
        }
    }
}

impl Slot {
    fn renew(
        &mut self,
        challenge: Challenge,
        make: impl FnOnce(&Challenge, &mut Slot) -> Result<Proof, ClientError>,
    ) -> Result<Proof, ClientError> {
        let proof = make(&challenge, self)?;
        self.n_proofs += 1;
        let proof = Proof { serial: self.n_proofs, ..proof };
        self.challenge = Some(challenge);
        self.proof = Some(proof.clone());
        Ok(proof)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn proof(text: &str, lifetime: Option<u64>) -> Proof {
        Proof::new(Secret::new(text), None, lifetime.map(Duration::from_secs))
    }

    fn purpose() -> Purpose {
        ("a.example".parse().unwrap(), "x".parse().ok(), Access::Pull)
    }

    fn no_more(_: &Challenge, _: &mut Slot) -> Result<Proof, ClientError> {
        panic!("nobody has asked for a proof")
    }

    #[test]
    fn proofs_are_renewed_before_they_expire() {
        let proofs = Proofs::default();
        assert!(proofs.current(&purpose(), no_more).unwrap().is_none());
        let made = proofs.answer(&purpose(), Challenge::Basic, None, |_, _| Ok(proof("1", Some(0)))).unwrap();
        assert_eq!(made.header.expose(), "1");
        let other = ("b.example".parse().unwrap(), None, Access::Pull);
        assert!(proofs.current(&other, no_more).unwrap().is_none());
        // Who may read may not write.
        let writing = (purpose().0, purpose().1, Access::Push { from: None });
        assert!(proofs.current(&writing, no_more).unwrap().is_none());
        // It is over, and what was asked for is still known.
        let renewed = proofs.current(&purpose(), |challenge, _| {
            assert_eq!(*challenge, Challenge::Basic);
            Ok(proof("2", Some(60)))
        });
        assert_eq!(renewed.unwrap().unwrap().header.expose(), "2");
        assert_eq!(proofs.current(&purpose(), no_more).unwrap().unwrap().header.expose(), "2");
        // A failure is not kept.
        let stale = proofs.current(&purpose(), no_more).unwrap();
        let failed = |_: &Challenge, _: &mut Slot| Err(ClientError::NotFound { what: "x".to_owned() });
        proofs.answer(&purpose(), Challenge::Basic, stale.as_ref(), failed).unwrap_err();
        assert_eq!(proofs.current(&purpose(), no_more).unwrap().unwrap().header.expose(), "2");
        // What never expires stays; what is good for ever is not beyond the clock's end.
        for lifetime in [None, Some(u64::MAX)] {
            let kept = proof("x", lifetime);
            assert!(kept.expires.is_none_or(|expires| expires > Instant::now()), "{lifetime:?}");
        }
    }

    #[test]
    fn scopes_say_what_is_done() {
        let repository: Repository = "a/b".parse().unwrap();
        let push = |from: Option<&str>| Access::Push { from: from.map(|from| from.parse().unwrap()) };
        for (access, want) in [
            (Access::Pull, &["repository:a/b:pull"][..]),
            (push(None), &["repository:a/b:pull,push"]),
            (push(Some("a/b")), &["repository:a/b:pull,push"]),
            (push(Some("c")), &["repository:a/b:pull,push", "repository:c:pull"]),
        ] {
            assert_eq!(access.scopes(&repository), want, "{access:?}");
        }
    }

    #[test]
    fn many_threads_get_one_proof() {
        let proofs = Proofs::default();
        let stale = proofs.answer(&purpose(), Challenge::Basic, None, |_, _| Ok(proof("old", None))).unwrap();
        let n_made = AtomicUsize::new(0);
        let together = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    together.wait();
                    let fresh = proofs.answer(&purpose(), Challenge::Basic, Some(&stale), |_, _| {
                        n_made.fetch_add(1, Ordering::SeqCst);
                        Ok(proof("new", None))
                    });
                    assert_eq!(fresh.unwrap().header.expose(), "new");
                });
            }
        });
        assert_eq!(n_made.load(Ordering::SeqCst), 1);
    }
}
