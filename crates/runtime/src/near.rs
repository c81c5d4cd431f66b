//! On which processor a container is built and its image served meanwhile.
//!
//! The process that builds asks the server for one name after the other, and waits for each. Both on one processor, that is two
//! switches; on two processors it is an interrupt each way as well, and the end of an idle state: 12 µs against 45 under a
//! hypervisor. And where the scheduler has put the server to the processor of the thread that decompresses in advance,
//! it waits there for a whole turn, some milliseconds, while another processor has nothing to do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The processors that a thread may use, and the one where it has been put.
#[derive(Debug)]
pub(crate) struct Near {
    all: CpuSet,
    one: usize,
}

impl Near {
    /// Keeps this thread on the processor where it is; `None` where it may use no other, or is not let.
    pub(crate) fn stay() -> Option<Self> {
        Near::at(sched_getcpu())
    }

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

    /// The processor.
    pub(crate) fn processor(&self) -> usize {
        self.one
    }

    /// Lets this thread run where it could before.
    pub(crate) fn leave(&self) {
        // What was allowed a moment ago is; where it is refused, it runs.
        let _ = sched_setaffinity(None, &self.all);
    }
}

/// A thread that keeps out of the way while it has something to do.
#[derive(Debug, Default)]
pub(crate) struct Aside(Mutex<Option<Pid>>);

impl Aside {
    /// Does `work` on this thread.
    pub(crate) fn do_aside(&self, work: impl FnOnce()) {
        let all = sched_getaffinity(None);
        *self.thread() = Some(gettid());
        work();
        // Nobody moves it from here on.
        *self.thread() = None;
        let _ = all.map(|all| sched_setaffinity(None, &all));
    }

    /// Whether the thread is at it.
    pub(crate) fn is_busy(&self) -> bool {
        self.thread().is_some()
    }

    /// Sends the thread away from the processor of `near`.
    pub(crate) fn make_room(&self, near: &Near) {
        let thread = self.thread();
        if let Some(thread) = *thread {
            let mut others = near.all;
            others.unset(near.one);
            let _ = sched_setaffinity(Some(thread), &others);
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    fn allowed() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    #[test]
    fn who_stays_may_go_again() {
        // Threads of their own: what is set here is not for the tests beside it.
        thread::spawn(|| {
            let before = allowed();
            let Some(near) = Near::stay() else {
                assert_eq!(before.count(), 1, "it stays wherever there is another place");
                return;
            };
            let there = allowed();
            assert!(there.count() == 1 && there.is_set(near.processor()));
            assert!(Near::at(near.processor()).is_none(), "no other place is left");
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
        let aside = Aside::default();
        thread::scope(|scope| {
            let ((begun, has_begun), (seen, may_end)) = (channel(), channel());
            let aside = &aside;
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
            assert!(aside.is_busy());
            let near = Near::stay();
            if let Some(near) = &near {
                aside.make_room(near);
            }
            seen.send(()).unwrap();
            let within = worker.join().unwrap();
            assert!(!aside.is_busy());
            if let Some(near) = near {
                assert!(!within.is_set(near.processor()) && within.count() > 0);
                // Nobody is there to be moved.
                aside.make_room(&near);
                near.leave();
            }
        });
    }
}
