//! Where an image is served while its container is built, on two processors.
//!
//! The process that builds asks the server for one name after the other, and waits for each. Both on one processor, that is two
//! switches; on two processors it is an interrupt each way as well, and the end of an idle state: 12 µs against 45 under a
//! hypervisor. And where the scheduler has put the server to the processor of the thread that decompresses in advance,
//! it waits there for a whole turn, some milliseconds, while the other processor has nothing to do.
//!
//! So the serving thread goes to the processor of who builds, and the decompressing one to the other, until it has done. The
//! process that builds, which will be the payload, is left alone: the kernel remembers for good that somebody has chosen
//! processors, and gives such a process no more when its cpuset grows.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// A thread that has been put to one of the processors that it may use.
#[derive(Debug)]
pub(crate) struct Near {
    all: CpuSet,
    one: usize,
}

impl Near {
    /// Puts this thread to the processor `one`; `None` where it may use no other, or is not let.
    pub(crate) fn at(one: usize) -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        if all.count() < 2 || one >= CpuSet::MAX_CPU || !all.is_set(one) {
            return None;
        }
        let mut only = CpuSet::new();
        only.set(one);
        sched_setaffinity(None, &only).ok()?;
        Some(Near { all, one })
    }

    /// Lets this thread run where it could before.
    pub(crate) fn leave(&self) {
        // What was allowed a moment ago is; where it is refused, it runs.
        let _ = sched_setaffinity(None, &self.all);
    }
}

/// A thread that keeps out of the way while it has something to do.
#[derive(Debug, Default)]
pub(crate) struct Aside(Mutex<Work>);

#[derive(Debug, Default)]
struct Work {
    thread: Option<Pid>,
    /// Where it may be meanwhile.
    elsewhere: Option<CpuSet>,
    is_done: bool,
}

impl Aside {
    /// Does the work, once, on this thread.
    pub(crate) fn do_aside(&self, work: impl FnOnce()) {
        let all = sched_getaffinity(None);
        {
            let mut state = self.state();
            state.thread = Some(gettid());
            if let Some(elsewhere) = &state.elsewhere {
                let _ = sched_setaffinity(None, elsewhere);
            }
        }
        work();
        // Nobody moves it from here on.
        self.state().is_done = true;
        let _ = all.map(|all| sched_setaffinity(None, &all));
    }

    /// Whether the work has been done.
    pub(crate) fn is_done(&self) -> bool {
        self.state().is_done
    }

    /// Keeps the thread away from the processor of `near`, also one that comes later.
    pub(crate) fn make_room(&self, near: &Near) {
        let mut elsewhere = near.all;
        elsewhere.unset(near.one);
        let mut state = self.state();
        if let Some(thread) = state.thread.filter(|_| !state.is_done) {
            let _ = sched_setaffinity(Some(thread), &elsewhere);
        }
        state.elsewhere = Some(elsewhere);
    }

    fn state(&self) -> MutexGuard<'_, Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::thread::sched_getcpu;

    use super::*;

    fn allowed() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    #[test]
    fn who_is_put_somewhere_may_go_again() {
        // Threads of their own: what is set here is not for the tests beside it.
        thread::spawn(|| {
            let before = allowed();
            let Some(near) = Near::at(sched_getcpu()) else {
                assert_eq!(before.count(), 1, "it is left alone where there is another place");
                return;
            };
            let there = allowed();
            assert!(there.count() == 1 && there.is_set(near.one));
            assert!(Near::at(near.one).is_none(), "no other place is left");
            near.leave();
            assert_eq!(allowed(), before);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_may_not_be_there_stays_away() {
        for nowhere in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
            let before = allowed();
            if nowhere >= CpuSet::MAX_CPU || !before.is_set(nowhere) {
                assert!(Near::at(nowhere).is_none());
                assert_eq!(allowed(), before);
            }
        }
    }

    #[test]
    fn who_works_aside_makes_room_and_comes_back() {
        for asked_before in [false, true] {
            let aside = Aside::default();
            thread::scope(|scope| {
                let ((begun, has_begun), (seen, may_end)) = (channel(), channel());
                let aside = &aside;
                let asks = || {
                    let near = Near::at(sched_getcpu());
                    near.iter().for_each(|near| aside.make_room(near));
                    near
                };
                let mut near = if asked_before { asks() } else { None };
                near.iter().for_each(Near::leave);
                let worker = scope.spawn(move || {
                    let before = allowed();
                    let mut within = None;
                    aside.do_aside(|| {
                        begun.send(()).unwrap();
                        may_end.recv().unwrap();
                        within = Some(allowed());
                    });
                    assert_eq!(allowed(), before);
                    within.unwrap()
                });
                has_begun.recv().unwrap();
                assert!(!aside.is_done());
                if !asked_before {
                    near = asks();
                }
                seen.send(()).unwrap();
                let within = worker.join().unwrap();
                assert!(aside.is_done());
                if let Some(near) = near {
                    assert!(!within.is_set(near.one) && within.count() > 0);
                    // Nobody is there to be moved.
                    aside.make_room(&near);
                    near.leave();
                }
            });
        }
    }
}
