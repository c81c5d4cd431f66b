//! A way to a registry that is as bad as a case needs it: bytes pass at a pace, or stop, or one of them is changed;
//! connections break off.
//!
//! What answers is the real registry. Only the direction from the registry is disturbed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How much passes at once; small against a layer, so that a pace is smooth.
const PIECE: usize = 4096;

/// Everything passes at once.
pub const UNLIMITED: u64 = u64::MAX;

/// A listening proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct SlowProxy {
    address: String,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    upstream: String,
    /// Bytes for each second; 0: nothing passes.
    pace: AtomicU64,
    /// Bytes that may pass before the pace falls to 0.
    allowance: AtomicU64,
    passed: AtomicU64,
    connections: AtomicU64,
    /// After so many bytes a connection breaks off, for so many connections.
    cut_after: AtomicU64,
    cuts_left: AtomicU64,
    /// Which of all bytes that pass is changed.
    lie_at: AtomicU64,
    stop: AtomicBool,
}

impl SlowProxy {
    /// Listens on a free loopback port and forwards to `upstream` (`HOST:PORT`).
    ///
    /// # Errors
    /// There is no port.
    pub fn before(upstream: &str) -> Result<Self, String> {
        Self::at("127.0.0.1", upstream)
    }

    /// As [`SlowProxy::before`], on a free port of another address of this machine.
    ///
    /// # Errors
    /// There is no port, or no such address.
    pub fn at(host: &str, upstream: &str) -> Result<Self, String> {
        let io = |e: std::io::Error| format!("the slow proxy: {e}");
        let listener = TcpListener::bind((host, 0)).map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            pace: AtomicU64::new(UNLIMITED),
            allowance: AtomicU64::new(UNLIMITED),
            passed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cut_after: AtomicU64::new(UNLIMITED),
            cuts_left: AtomicU64::new(0),
            lie_at: AtomicU64::new(UNLIMITED),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.stop.load(Ordering::Acquire) {
                    break;
                }
                let state = Arc::clone(&shared);
                state.connections.fetch_add(1, Ordering::AcqRel);
                thread::spawn(move || forward(client, &state));
            }
        });
        Ok(Self { address, state })
    }

    /// `HOST:PORT` of the proxy.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lets so many bytes pass in a second from now on, without end.
    pub fn pace(&self, bytes_per_second: u64) {
        self.state.allowance.store(UNLIMITED, Ordering::Release);
        self.state.pace.store(bytes_per_second, Ordering::Release);
    }

    /// Lets so many bytes pass, at once, and then none.
    pub fn hold_after(&self, bytes: u64) {
        self.state.allowance.store(bytes, Ordering::Release);
        self.state.pace.store(UNLIMITED, Ordering::Release);
    }

    /// Breaks connections off that have carried so many bytes, so many times.
    pub fn cut(&self, after: u64, times: u64) {
        self.state.cut_after.store(after, Ordering::Release);
        self.state.cuts_left.store(times, Ordering::Release);
    }

    /// How often connections are still to be broken off.
    #[must_use]
    pub fn cuts_left(&self) -> u64 {
        self.state.cuts_left.load(Ordering::Acquire)
    }

    /// Changes one byte, so many bytes from now on.
    pub fn lie_after(&self, bytes: u64) {
        self.state.lie_at.store(self.passed() + bytes, Ordering::Release);
    }

    /// Whether it lets nothing pass.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.state.allowance.load(Ordering::Acquire) == 0
    }

    /// How many connections have been made through it.
    #[must_use]
    pub fn n_connections(&self) -> u64 {
        self.state.connections.load(Ordering::Acquire)
    }

    /// All bytes that have come through.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Acquire)
    }
}

impl Drop for SlowProxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        // Wakes the listening thread, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

/// Carries one connection until one side has gone.
fn forward(client: TcpStream, state: &State) {
    let Ok(server) = TcpStream::connect(&state.upstream) else { return };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let requests = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    answers(server, &client, state);
    let _ = client.shutdown(Shutdown::Both);
    let _ = requests.join();
}

fn answers(mut from: TcpStream, mut to: &TcpStream, state: &State) {
    let mut piece = [0; PIECE];
    let mut carried = 0;
    loop {
        let n = match from.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        carried += n as u64;
        if carried > state.cut_after.load(Ordering::Acquire) && take_cut(state) {
            return;
        }
        let Some(before) = pass(state, n as u64) else { return };
        let lie =
            state.lie_at.load(Ordering::Acquire).checked_sub(before).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = lie.and_then(|at| piece[..n].get_mut(at)) {
            *byte = !*byte;
        }
        if to.write_all(&piece[..n]).is_err() {
            return;
        }
    }
}

/// Takes one of the cuts that are left.
fn take_cut(state: &State) -> bool {
    let less = |left: u64| left.checked_sub(1);
    state.cuts_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
}

/// Waits until `n` bytes may pass, and gives how many have passed before them; `None` if the proxy ends.
fn pass(state: &State, n: u64) -> Option<u64> {
    /// How often a held connection looks whether it may go on.
    const LOOK: Duration = Duration::from_millis(5);
    loop {
        if state.stop.load(Ordering::Acquire) {
            return None;
        }
        let allowance = state.allowance.load(Ordering::Acquire);
        if allowance == 0 || state.pace.load(Ordering::Acquire) == 0 {
            thread::sleep(LOOK);
            continue;
        }
        if allowance != UNLIMITED {
            // Another connection may have taken it meanwhile: then look again.
            let left = allowance.saturating_sub(n);
            let taken =
                state.allowance.compare_exchange(allowance, left, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_err() {
                continue;
            }
        }
        let pace = state.pace.load(Ordering::Acquire);
        if pace != UNLIMITED {
            thread::sleep(Duration::from_nanos(n.saturating_mul(1_000_000_000) / pace.max(1)));
        }
        return Some(state.passed.fetch_add(n, Ordering::AcqRel));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::wait_until;

    fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || stream.write_all(&[7; 100_000]));
            }
        });
        address
    }

    #[test]
    fn holds_and_lets_go() {
        let proxy = SlowProxy::before(&echo()).unwrap();
        proxy.hold_after(50_000);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert!(wait_until(Duration::from_secs(5), || proxy.holds()));
        let so_far = proxy.passed();
        assert!((50_000..100_000).contains(&so_far), "{so_far}");
        proxy.pace(UNLIMITED);
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 100_000]);
    }

    #[test]
    fn breaks_off_and_lies() {
        let proxy = SlowProxy::before(&echo()).unwrap();
        let all = |proxy: &SlowProxy| {
            let mut all = Vec::new();
            TcpStream::connect(proxy.address()).unwrap().read_to_end(&mut all).unwrap();
            all
        };
        proxy.cut(50_000, 1);
        assert!((40_000..=50_000).contains(&all(&proxy).len()));
        assert_eq!((proxy.cuts_left(), all(&proxy).len()), (0, 100_000));
        proxy.lie_after(70_000);
        let told = all(&proxy);
        assert_eq!(told.iter().position(|byte| *byte != 7), Some(70_000));
        assert_eq!(told.iter().filter(|byte| **byte != 7).count(), 1);
    }
}
