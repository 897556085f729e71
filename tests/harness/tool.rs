//! The command line of the project, `keyguard`, as a user runs it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::http::Response;
use super::{Server, eventually, expect, free_port, installed};

/// Where the program is.
pub fn tool_path() -> PathBuf {
    installed("KEYGUARD_CLI", "target/debug/keyguard")
}

/// The program, told which server and that the store is `acme`; nothing else of the environment that it heeds.
pub fn tool(server: &Server) -> Command {
    let mut command = Command::new(tool_path());
    command.env("KEYGUARD_URL", format!("redis://127.0.0.1:{}", server.port())).env("KEYGUARD_STORE", "acme");
    command.env("HOME", server.directory()).env("NO_COLOR", "1").current_dir(server.directory()).stdin(Stdio::null());
    command
}

/// What nobody reads. A pipe whose other end is dropped may still be held by a process that another test starts just then.
pub fn nobody() -> Stdio {
    let (end, other) = UnixStream::pair().unwrap();
    other.shutdown(Shutdown::Both).unwrap();
    OwnedFd::from(end).into()
}

/// `keyguard serve`, until this is dropped.
pub struct Serving {
    pub port: u16,
    child: Child,
    log: PathBuf,
}

impl Serving {
    /// Serves this server with these further arguments, on a free port.
    pub fn start(server: &Server, arguments: &[&str]) -> Self {
        Self::by(tool(server), server, arguments)
    }

    /// The same by a command of one's own, to which the arguments are added.
    pub fn by(mut command: Command, server: &Server, arguments: &[&str]) -> Self {
        let port = free_port();
        let log = server.directory().join(format!("serve-{port}.log"));
        let file = File::create(&log).unwrap();
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]).args(arguments);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().expect("it runs");
        let serving = Self { port, child, log };
        eventually("keyguard serve listening", || {
            expect(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), || serving.log())
        });
        serving
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it answers to a request whose body is JSON.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        Response::of(self.port, method, path, headers, body)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs no more.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
