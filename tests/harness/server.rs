//! A server of a test: started on a free port in a directory of its own, ended with the test.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tempfile::TempDir;

use super::{Client, Reply, Sut, eventually, expect};

/// The keyring file that servers have unless told otherwise.
pub const KEYRING: &str =
    r#"{"version":1,"keys":[{"key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","created":"2026-01-01T00:00:00Z"}]}"#;

/// Another one, with another key.
pub const OTHER_KEYRING: &str =
    r#"{"version":1,"keys":[{"key":"ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=","created":"2026-02-01T00:00:00Z"}]}"#;

/// Words that no server's log may hold at the end of a test.
const FORBIDDEN: [&str; 5] = ["panicked", "ASSERTION", "crashed", "CRITICAL", "internal error"];

/// How often a port that another process took meanwhile is exchanged for a new one.
const PORT_ATTEMPTS: usize = 10;

/// How a server is to be started.
pub struct Setup {
    sut: Sut,
    directory: TempDir,
    arguments: Vec<String>,
    module: Option<Vec<String>>,
    environment: Vec<(String, String)>,
    configuration: Option<PathBuf>,
    cluster: bool,
    files_at_most: Option<u64>,
}

impl Setup {
    pub(super) fn new(sut: &Sut) -> Self {
        let directory = tempfile::Builder::new().prefix("keyguard-").tempdir().expect("a temporary directory");
        let setup = Self {
            sut: sut.clone(),
            directory,
            arguments: Vec::new(),
            module: None,
            environment: Vec::new(),
            configuration: None,
            cluster: false,
            files_at_most: None,
        };
        setup.keyring(KEYRING)
    }

    /// One more setting of the server.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([format!("--{name}"), value.to_owned()]);
        self
    }

    /// Another content of the keyring file.
    pub fn keyring(self, content: &str) -> Self {
        self.keyring_with_mode(content, 0o600)
    }

    /// The same, with any mode.
    pub fn keyring_with_mode(mut self, content: &str, mode: u32) -> Self {
        let file = self.directory.path().join("keyring");
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file).unwrap();
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let snapshots = self.directory.path().join("snapshots");
        fs::create_dir_all(&snapshots).unwrap();
        let (path, snapshots) = (file.display().to_string(), snapshots.display().to_string());
        let arguments = ["keyring-file", &path, "snapshot-dir", &snapshots, "usage", "no"];
        self.module = Some(arguments.map(str::to_owned).to_vec());
        self
    }

    /// No file of the server may grow beyond this size, in bytes: a write that would is an error, as on a full disk.
    pub fn files_at_most(mut self, bytes: u64) -> Self {
        self.files_at_most = Some(bytes);
        self
    }

    /// Calls are counted and logged, as they are on every server but those of tests: of these, most look at what a call has changed
    /// and nothing else, and what was counted would come a second later.
    pub fn counting_usage(mut self) -> Self {
        let arguments = self.module.get_or_insert_default();
        let value = arguments.iter().position(|argument| argument == "usage").and_then(|at| arguments.get_mut(at + 1));
        *value.expect("an argument of the usual module") = "yes".to_owned();
        self
    }

    /// The module is loaded with exactly these arguments.
    pub fn module_arguments(mut self, arguments: &[&str]) -> Self {
        self.module = Some(arguments.iter().map(|&argument| argument.to_owned()).collect());
        self
    }

    /// A variable of its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Nothing but this configuration file, read from the server's directory, a free port, and what `with` adds.
    pub fn configuration(mut self, file: &Path) -> Self {
        self.configuration = Some(file.to_owned());
        self
    }

    /// The module is not loaded.
    pub fn without_module(mut self) -> Self {
        self.module = None;
        self
    }

    /// A keyring file that is not there, and may be made by the server or not.
    pub fn keyring_to_be_made(mut self, allowed: &str) -> Self {
        let file = self.directory.path().join("keyring");
        fs::remove_file(&file).expect("the file of the usual keyring");
        let arguments = ["keyring-file", &file.display().to_string(), "keyring-auto-create", allowed, "usage", "no"];
        self.module = Some(arguments.map(str::to_owned).to_vec());
        self
    }

    /// A node of a cluster that counts others as failing after this time.
    pub fn cluster(mut self, node_timeout_ms: u32) -> Self {
        self.cluster = true;
        self.with("cluster-node-timeout", &node_timeout_ms.to_string())
    }

    /// A replica of that server.
    pub fn replica_of(self, primary: &Server) -> Self {
        self.with("replicaof", &format!("127.0.0.1 {}", primary.port()))
    }

    /// A sentinel, which watches that server under the name `it`, with a quorum of two.
    pub fn sentinel_of(mut self, primary: &Server) -> Self {
        let file = self.directory.path().join("sentinel.conf");
        let lines = [
            "bind 127.0.0.1".to_owned(),
            format!("sentinel monitor it 127.0.0.1 {} 2", primary.port()),
            "sentinel down-after-milliseconds it 1000".to_owned(),
            "sentinel failover-timeout it 3000".to_owned(),
        ];
        fs::write(&file, lines.join("\n")).unwrap();
        self.arguments.push("--sentinel".to_owned());
        self.configuration(&file)
    }

    /// The directory of the server to be.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Server {
        let mut server = Server { setup: self, child: None, ports: free_ports(), watch_log: true };
        server.start_again();
        server
    }

    /// Starts it and waits until it gives up; what it said.
    pub fn start_in_vain(self) -> String {
        let mut server = Server { setup: self, child: None, ports: free_ports(), watch_log: false };
        server.spawn();
        let status = eventually("the server giving up", || match server.child.as_mut().unwrap().try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(server.log()),
        });
        server.child = None;
        assert!(!status.success(), "a server that does not start says so by its exit status");
        server.log()
    }
}

/// A running server (or one between two runs).
pub struct Server {
    setup: Setup,
    child: Option<Child>,
    /// For clients and for the cluster's bus: the same over all its runs, so that others find it again.
    ports: [u16; 2],
    watch_log: bool,
}

impl Server {
    /// Its port.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Its directory: keyring, log, append-only files, dump.
    pub fn directory(&self) -> &Path {
        self.setup.directory()
    }

    /// Where its keyring is, or would be.
    pub fn keyring_file(&self) -> PathBuf {
        self.directory().join("keyring")
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::try_connect(self.port()).expect("the server takes a connection")
    }

    /// All that it has said so far, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Ends it at once, as a crash of the machine would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// Starts it again in the same directory, after [`kill`](Self::kill), and waits until it answers.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server already runs");
        for _ in 0..PORT_ATTEMPTS {
            if self.try_start() {
                return;
            }
            // The port was taken between our look and the server's: its log says so and counts for nothing.
            let _ = fs::remove_file(self.log_file());
            self.ports = free_ports();
        }
        panic!("no free port in {PORT_ATTEMPTS} attempts");
    }

    /// Restarts it as after a crash.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Waits until all that this server has written so far has reached the replica.
    pub fn wait_for(&self, replica: &Server) {
        let (mut ours, mut theirs) = (self.client(), replica.client());
        let online = format!("port={},state=online", replica.port());
        eventually("the replica having caught up", || {
            let wanted = ours.info_number("replication", "master_repl_offset");
            let known = ours.ok("INFO replication").text().contains(&online);
            let link = theirs.info("replication", "master_link_status");
            let reached = theirs.info_number("replication", "master_repl_offset");
            expect(known && link.as_deref() == Some("up") && reached >= wanted, || {
                format!("online {known}, link {link:?}, offset {reached} of {wanted}")
            })
        });
    }

    /// Whether it now runs; `false` if its port was taken by another process.
    fn try_start(&mut self) -> bool {
        self.spawn();
        let pid = self.child.as_ref().unwrap().id().to_string();
        let outcome = eventually("the server answering PING", || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return Ok(Err(status));
            }
            let Ok(mut client) = Client::try_connect(self.port()) else { return Err(self.log()) };
            if client.send_bytes(b"*1\r\n$4\r\nPING\r\n").is_err() || client.try_receive().is_none_or(|r| r.is_error())
            {
                return Err(self.log());
            }
            // Another server may have had the port first: ours is then about to end.
            let found = client.info("server", "process_id").ok_or_else(|| self.log())?;
            expect(found == pid, || format!("process {found} has the port, not {pid}")).map(Ok)
        });
        match outcome {
            Ok(()) => true,
            Err(status) => {
                self.child = None;
                let log = self.log();
                let port_taken = ["Address already in use", "Failed listening"].iter().any(|text| log.contains(text));
                assert!(port_taken, "{} did not start ({status}):\n{log}", self.setup.sut.name);
                false
            }
        }
    }

    fn spawn(&mut self) {
        let [port, bus_port] = self.ports;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = match self.setup.files_at_most {
            None => Command::new(&self.setup.sut.program),
            Some(bytes) => {
                // The signal that would end the server is ignored, also by what the shell turns into.
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(script).arg(&self.setup.sut.program);
                shell
            }
        };
        if let Some(file) = &self.setup.configuration {
            command.arg(file).args(["--port", &port.to_string()]).args(&self.setup.arguments);
        } else {
            let directory = self.directory().display().to_string();
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir", &directory]);
            command.args(["--save", "", "--protected-mode", "no", "--repl-diskless-sync-delay", "0"]);
            command.args(["--enable-debug-command", "yes", "--enable-module-command", "yes"]);
            if self.setup.cluster {
                command.args(["--cluster-enabled", "yes", "--cluster-port", &bus_port.to_string()]);
            }
            command.args(&self.setup.arguments);
            if let Some(arguments) = &self.setup.module {
                command.arg("--loadmodule").arg(self.setup.sut.module()).args(arguments);
            }
        }
        command.current_dir(self.directory()).env_remove("KEYGUARD_KEYRING").env("HOME", self.directory());
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("the server's program can be started"));
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("server.log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of {} at port {}:\n{}\n---", self.setup.sut.name, self.port(), telling_part(&log));
        } else if self.watch_log {
            for word in FORBIDDEN {
                assert!(!log.contains(word), "the log holds {word:?}:\n{log}");
            }
        }
    }
}

/// What of a log says most: from the first line that tells of a crash, else its end.
fn telling_part(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let crash = lines.iter().position(|line| FORBIDDEN[..3].iter().any(|word| line.contains(word)));
    let begin = crash.map_or(lines.len().saturating_sub(60), |crash| crash.saturating_sub(3));
    lines[begin..].iter().take(60).copied().collect::<Vec<_>>().join("\n")
}

/// One of [`free_ports`], for what is no server.
pub fn free_port() -> u16 {
    free_ports()[0]
}

/// Two ports that nobody listened on a moment ago, and that no other server of this run is given: one that ends for a while
/// finds its own free again. They lie below those from which the system takes one for each outgoing connection.
fn free_ports() -> [u16; 2] {
    const FIRST: usize = 10_000;
    const COUNT: usize = 22_000;
    static NEXT: LazyLock<AtomicUsize> = LazyLock::new(|| AtomicUsize::new(rand::random_range(0..COUNT)));
    [(); 2].map(|()| {
        let ports = (0..COUNT).map(|_| (FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) as u16);
        let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        ports.into_iter().find(is_free).expect("a free port")
    })
}
