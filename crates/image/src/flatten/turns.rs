//! Whose turn it is among the layers, and how far the others may work ahead.
//!
//! Layers are merged one after the other, from the top (position 0), while others are fetched. What those
//! have uncompressed waits in memory; all of it together has one limit, however many layers there are. The
//! layer whose turn it is never waits for that room, and with that the merge always goes on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The state that fetching threads and the merging one share.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    turn: usize,
    room: usize,
    cancelled: bool,
}

/// Room for one chunk, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room<'t>(&'t Turns);

/// The merge has ended early: nobody wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cancelled;

impl Turns {
    /// Starts with position 0 and room for so many chunks of the others.
    pub(crate) fn new(room: usize) -> Self {
        Self { state: Mutex::new(State { turn: 0, room, cancelled: false }), changed: Condvar::new() }
    }

    /// Waits until the layer at `position` may hand over a chunk. Without a guard if its turn has come: then
    /// the queue alone limits it.
    pub(crate) fn room(&self, position: usize) -> Result<Option<Room<'_>>, Cancelled> {
        let mut state = self.lock();
        loop {
            if state.cancelled {
                return Err(Cancelled);
            }
            if state.turn >= position {
                return Ok(None);
            }
            if state.room > 0 {
                state.room -= 1;
                return Ok(Some(Room(self)));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the turn of the layer at `position`.
    pub(crate) fn wait_for(&self, position: usize) -> Result<(), Cancelled> {
        let state = self.lock();
        let before = |state: &mut State| !state.cancelled && state.turn < position;
        let state = self.changed.wait_while(state, before).unwrap_or_else(PoisonError::into_inner);
        if state.cancelled { Err(Cancelled) } else { Ok(()) }
    }

    /// Gives the turn to the layer at `position`.
    pub(crate) fn give_to(&self, position: usize) {
        self.lock().turn = position;
        self.changed.notify_all();
    }

    /// Returns a guard that ends all waiting when dropped.
    pub(crate) fn cancel_on_drop(&self) -> CancelOnDrop<'_> {
        CancelOnDrop(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.lock().room += 1;
        self.0.changed.notify_all();
    }
}

/// See [`Turns::cancel_on_drop`].
#[derive(Debug)]
pub(crate) struct CancelOnDrop<'t>(&'t Turns);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().cancelled = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_by_all_but_the_one_whose_turn_it_is() {
        let turns = Turns::new(2);
        let (one, two) = (turns.room(1).unwrap(), turns.room(7).unwrap());
        assert!(one.is_some() && two.is_some());
        for _ in 0..100 {
            assert!(turns.room(0).unwrap().is_none());
        }
        turns.give_to(1);
        assert!(turns.room(1).unwrap().is_none());
        drop(one);
        assert!(turns.room(2).unwrap().is_some());
        std::thread::scope(|scope| {
            let held = turns.room(3).unwrap();
            let waiting = scope.spawn(|| turns.room(4).map(|room| room.is_none()));
            let for_turn = scope.spawn(|| turns.wait_for(4));
            turns.give_to(4);
            assert_eq!(waiting.join().unwrap(), Ok(true));
            assert_eq!(for_turn.join().unwrap(), Ok(()));
            drop(held);
        });
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.wait_for(9));
            drop(turns.cancel_on_drop());
            assert_eq!(waiting.join().unwrap(), Err(Cancelled));
        });
        assert_eq!(turns.room(9).unwrap_err(), Cancelled);
    }
}
