//! A real registry (Debian's docker-registry) that wants a login, or speaks TLS: on loopback, or at an address in a network
//! of its own, where it is as any other machine, and nobody outside can see it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{self, Output, Running, wait_until};
use crate::environment::{PATIENCE, TestEnv, WorkDir};

/// Who may come in.
pub const USER: &str = "me";
/// With what.
pub const PASSWORD: &str = "correct-horse-battery";
/// bcrypt, of few rounds, of [`PASSWORD`].
const HASH: &str = "$2a$05$abcdefghijklmnopqrstuuSnF5tLPqPFqc0z9CY0HcSLFbSRlL67u";
/// An address for documentation (RFC 5737), which no network has.
const ELSEWHERE: &str = "198.51.100.7";
/// Serves, and writes a line about each request into a file; in a network of its own has the address first.
const SERVE: &str = "[ -z \"$3\" ] || { ip link set lo up && ip address add \"$3/32\" dev lo; } || exit; \
                     exec docker-registry serve \"$1\" >>\"$2\" 2>&1";

/// An authority, a certificate of it for the address $1, and one for a client.
const CERTIFY: &str = "new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes' && \
     openssl req -x509 $new -days 2 -subj /CN=authority -keyout ca.key -out ca.crt && \
     openssl req $new -subj /CN=registry -keyout key.pem -out request.pem && \
     echo subjectAltName=IP:$1 >extensions && \
     openssl x509 -req -in request.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem && \
     mkdir client && openssl req $new -subj /CN=client -keyout client/client.key -out request.pem && \
     echo extendedKeyUsage=clientAuth >extensions && \
     openssl x509 -req -in request.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out client/client.cert";

/// Where the registry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// At the loopback address of this machine.
    Loopback,
    /// At an address that is no loopback one, which a network namespace of its own has.
    Own,
}

/// What a registry keeps of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A manifest.
    Manifest,
    /// A layer, or a configuration.
    Blob,
}

/// How the registry is spoken to, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// In clear, by whoever has the password.
    Clear,
    /// TLS, by everybody.
    Tls,
    /// TLS, by whoever has a certificate of its authority.
    TlsToClients,
}

/// A registry that runs as long as this lives.
#[derive(Debug)]
pub struct PrivateRegistry {
    /// `HOST:PORT`.
    pub address: String,
    dir: WorkDir,
    running: Option<Running>,
    network: Network,
}

impl PrivateRegistry {
    /// Starts one, with the image `tiny:1`.
    ///
    /// # Errors
    /// It does not start, or takes nothing.
    pub fn serve(env: &TestEnv, network: Network) -> Result<Self, String> {
        Self::start(env, network, Speaks::Clear)
    }

    /// Starts one for everybody that speaks TLS alone, in a network of its own: loopback is spoken to in clear.
    ///
    /// # Errors
    /// It does not start, or takes nothing.
    pub fn serve_over_tls(env: &TestEnv) -> Result<Self, String> {
        Self::start(env, Network::Own, Speaks::Tls)
    }

    /// The same, for clients alone that have a certificate.
    ///
    /// # Errors
    /// It does not start, or takes nothing.
    pub fn serve_to_clients_over_tls(env: &TestEnv) -> Result<Self, String> {
        Self::start(env, Network::Own, Speaks::TlsToClients)
    }

    /// The certificate of the authority that vouches for one that speaks TLS.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A client's certificate of that authority, and the key to it.
    #[must_use]
    pub fn client(&self) -> (PathBuf, PathBuf) {
        let place = self.dir.path().join("client");
        (place.join("client.cert"), place.join("client.key"))
    }

    fn start(env: &TestEnv, network: Network, speaks: Speaks) -> Result<Self, String> {
        let dir = env.work_dir("registry")?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(|e| format!("no port for a registry: {e}"))?.port();
        let (first, host, own) = match network {
            Network::Loopback => ("env", "127.0.0.1", ""),
            Network::Own => ("unshare", ELSEWHERE, ELSEWHERE),
        };
        let (address, place) = (format!("{host}:{port}"), dir.path().display().to_string());
        dir.write("users", &format!("{USER}:{HASH}\n"))?;
        let auth = format!("auth: {{htpasswd: {{realm: private, path: {place}/users}}}}\n");
        let files = format!("certificate: {place}/cert.pem, key: {place}/key.pem");
        let (secure, auth) = match speaks {
            Speaks::Clear => (String::new(), auth),
            Speaks::Tls => (format!(", tls: {{{files}}}"), String::new()),
            Speaks::TlsToClients => {
                (format!(", tls: {{{files}, clientcas: [{place}/ca.crt]}}"), String::new())
            }
        };
        if speaks != Speaks::Clear {
            let mut certify = Command::new("sh");
            certify.args(["-c", CERTIFY, "sh", host]).current_dir(dir.path());
            command::run(certify, PATIENCE)?.success()?;
        }
        let config = format!(
            "version: 0.1\nlog: {{level: debug}}\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\n\
             http: {{addr: \"{address}\"{secure}}}\n{auth}"
        );
        let config = dir.write("config.yml", &config)?.display().to_string();
        let log = format!("{place}/log");
        let mut server = Command::new(first);
        server.args((network == Network::Own).then_some("--net"));
        server.args(["sh", "-c", SERVE, "sh", &config, &log, own]);
        let registry = Self { address, dir, running: Some(command::start(server)?), network };
        if !wait_until(PATIENCE, || registry.log().contains("listening on")) {
            return Err(format!("the private registry does not listen: {}", registry.log()));
        }
        let layout = format!("oci:{}:1", env.image_layout("tiny").display());
        let target = format!("docker://{}/tiny:1", registry.address);
        let login = format!("--dest-creds={USER}:{PASSWORD}");
        let certificates = format!("--dest-cert-dir={place}/client");
        let proof = if speaks == Speaks::TlsToClients { &certificates } else { &login };
        let words =
            ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", proof, &layout, &target];
        command::run(registry.reach(&command::words(words), Path::new("/")), PATIENCE)?.success()?;
        // What comes from now on is the case's.
        fs::write(registry.dir.path().join("log"), "").map_err(|e| format!("{log}: {e}"))?;
        Ok(registry)
    }

    /// The same command, where it can reach the registry.
    fn reach(&self, command: &Command, cwd: &Path) -> Command {
        let pid = self.running.as_ref().map(Running::pid).unwrap_or_default();
        let mut reaching = match self.network {
            Network::Loopback => Command::new(command.get_program()),
            Network::Own => {
                let mut reaching = Command::new("nsenter");
                reaching.arg(format!("--net=/proc/{pid}/ns/net")).arg(command.get_program());
                reaching
            }
        };
        reaching.args(command.get_args()).current_dir(cwd);
        reaching.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        reaching
    }

    /// Runs a command of the user of `env`, where it can reach the registry.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, env: &TestEnv, cwd: &Path, words: &[&str]) -> Result<Output, String> {
        command::run(self.reach(&env.user_command(cwd, words)?, cwd), PATIENCE)
    }

    /// What the registry has written about requests.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Keeps something under a digest that is taken on trust, as if it had been pushed to `tiny`: what this registry takes by
    /// itself it calls by SHA-256.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, part: Part, digest: &str, content: &[u8]) -> Result<(), String> {
        let (algorithm, hex) = digest.split_once(':').ok_or("no digest")?;
        let data = self.dir.path().join("data/docker/registry/v2");
        let blob = data.join("blobs").join(algorithm).join(hex.get(..2).unwrap_or_default()).join(hex);
        let kind = match part {
            Part::Manifest => "_manifests/revisions",
            Part::Blob => "_layers",
        };
        let link = data.join("repositories/tiny").join(kind).join(algorithm).join(hex);
        for (directory, name, bytes) in [(blob, "data", content), (link, "link", digest.as_bytes())] {
            fs::create_dir_all(&directory)
                .and_then(|()| fs::write(directory.join(name), bytes))
                .map_err(|e| format!("{}: {e}", directory.display()))?;
        }
        Ok(())
    }

    /// How many requests came with a login, right or wrong.
    #[must_use]
    pub fn n_logins(&self) -> usize {
        let noted = ["\"authorized request\"", "error authenticating user"];
        self.log().lines().filter(|line| noted.iter().any(|noted| line.contains(noted))).count()
    }
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // Killed: it serves without end.
            let _ = running.finish_within(Duration::ZERO);
        }
    }
}

/// A proxy in the network of a registry, that makes tunnels to whatever it is asked for, as long as this lives.
#[derive(Debug)]
pub struct Tunnels {
    /// The value of a variable that names it.
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    /// Where this process does not get to: a connection of the same network, which wakes the thread.
    wake: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl PrivateRegistry {
    /// Starts a proxy in its network.
    ///
    /// # Errors
    /// The network cannot be entered.
    pub fn tunnels(&self) -> Result<Tunnels, String> {
        let pid = self.running.as_ref().map(Running::pid).unwrap_or_default();
        let (asked, stop): (Arc<Mutex<Vec<String>>>, Arc<AtomicBool>) = Default::default();
        let (noted, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let (listens, port) = mpsc::channel();
        let (wake, waker) = mpsc::channel::<()>();
        // A thread can be in another network than the others of its process.
        let thread = thread::spawn(move || {
            let listener = enter(pid).and_then(|()| TcpListener::bind("127.0.0.1:0"));
            let address = listener
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|listener| listener.local_addr().map_err(|e| e.to_string()));
            let own = address.clone();
            let _ = listens.send(address);
            let (Ok(listener), Ok(own)) = (listener, own) else { return };
            thread::spawn(move || {
                // Until the proxy is given up.
                let _ = waker.recv();
                let _ = TcpStream::connect(own);
            });
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                // Whoever gets no tunnel sees the connection end.
                let _ = dig(client, &noted);
            }
        });
        let address = port.recv().map_err(|e| e.to_string()).and_then(|address| address);
        let address = address.map_err(|e| format!("a proxy in the network of the registry: {e}"))?;
        Ok(Tunnels { url: format!("http://{address}"), asked, stop, wake, thread: Some(thread) })
    }
}

impl Tunnels {
    /// What it was asked for since the last time.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.wake.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves this thread into the network of a process.
fn enter(pid: u32) -> io::Result<()> {
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    let kind = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), kind)?)
}

/// Reads what a client asks for, and connects it with that.
fn dig(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? > 0 {
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    let Some(host) = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        return client.write_all(b"HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(host)?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    // Both end with their connections.
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut client, &mut server);
        let _ = server.shutdown(Shutdown::Write);
    });
    Ok(())
}
