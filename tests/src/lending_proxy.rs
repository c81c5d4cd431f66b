//! A way to a registry that wants a login, on which everybody sees the manifests: the proxy lends its own login for those.
//! What is asked for beside them the registry gets as it came.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// More than the head of a request has.
const MAX_HEAD: usize = 64 * 1024;

/// A listening proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct LendingProxy {
    address: String,
    stop: Arc<AtomicBool>,
}

impl LendingProxy {
    /// Listens on a free loopback port and forwards to `upstream` (`HOST:PORT`); `authorization` is what it lends.
    ///
    /// # Errors
    /// There is no port.
    pub fn before(upstream: &str, authorization: &str) -> Result<Self, String> {
        let io = |e: std::io::Error| format!("the lending proxy: {e}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, upstream, lent) = (Arc::clone(&stop), upstream.to_owned(), authorization.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let (upstream, lent) = (upstream.clone(), lent.clone());
                // Whoever has gone gets no answer.
                thread::spawn(move || forward(client, &upstream, &lent));
            }
        });
        Ok(Self { address, stop })
    }

    /// `HOST:PORT` of the proxy.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for LendingProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listening thread, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

/// Carries one request, of those that fetch and so have no body, and its answer.
fn forward(mut client: TcpStream, upstream: &str, lent: &str) -> std::io::Result<()> {
    let head = read_head(&mut client)?;
    let mut lines = head.trim_end().split("\r\n");
    let request = lines.next().unwrap_or_default();
    let mut asked = format!("{request}\r\nConnection: close\r\n");
    let mut has_login = false;
    for line in lines {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        has_login |= name == "authorization";
        if name != "connection" {
            asked.push_str(line);
            asked.push_str("\r\n");
        }
    }
    if request.contains("/manifests/") && !has_login {
        asked.push_str(&format!("Authorization: {lent}\r\n"));
    }
    asked.push_str("\r\n");
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(asked.as_bytes())?;
    std::io::copy(&mut server, &mut client).map(drop)
}

fn read_head(client: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let n = client.read(&mut piece)?;
        if n == 0 || head.len() > MAX_HEAD {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        head.extend(piece.iter().take(n));
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
