//! What the tests stand on: servers to start, a client that hides nothing, replies as plain values, waiting for events.

mod client;
mod cluster;
mod http;
mod reply;
mod sample;
mod server;
mod terminal;
mod tool;

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use client::Client;
pub use cluster::{Cluster, migrate, slot_of};
pub use http::Response;
pub use reply::{Claim, Reply};
pub use sample::{Sample, commands, populate, populate_store, usage_written};
pub use server::{KEYRING, OTHER_KEYRING, Server, Setup, free_port};
pub use terminal::Terminal;
pub use tool::{Serving, nobody, tool, tool_path};

/// The servers that every run covers: a missing one fails the run instead of passing unseen.
const EXPECTED: [&str; 4] = ["redis-7.0", "redis-8.10", "valkey-8.1", "valkey-9.1"];

/// How long an event may take before the test fails: far above what any of them needs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// One test of a table.
pub struct Test {
    pub path: &'static str,
    pub name: &'static str,
    pub run: fn(&Sut),
}

impl Test {
    /// The file that the test stands in.
    pub fn module(&self) -> &'static str {
        self.path.rsplit("::").next().unwrap()
    }
}

/// Makes the table of a file's tests. A function left out of it does not compile: it is dead code.
macro_rules! server_tests {
    ($($name:ident),+ $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] = &[$(
            $crate::harness::Test { path: module_path!(), name: stringify!($name), run: $name },
        )+];
    };
}
pub(crate) use server_tests;

/// The arguments of a command, each of any type that has bytes: `args!["KG.ADDKEY", store, name, &secret]`.
macro_rules! args {
    ($($argument:expr),* $(,)?) => {
        vec![$($crate::harness::Argument::bytes(&$argument)),*]
    };
}
pub(crate) use args;

/// What can stand as an argument of a command.
pub trait Argument {
    fn bytes(&self) -> Vec<u8>;
}

macro_rules! argument {
    ($($bytes:ty),+; $($number:ty),+) => {
        $(impl Argument for $bytes { fn bytes(&self) -> Vec<u8> { AsRef::<[u8]>::as_ref(self).to_vec() } })+
        $(impl Argument for $number { fn bytes(&self) -> Vec<u8> { self.to_string().into_bytes() } })+
    };
}
impl<const N: usize> Argument for &[u8; N] {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

argument!(&str, String, &String, Vec<u8>, &Vec<u8>, &[u8], &&[u8]; i64, u64, i32, u16, usize, &i64, &u64, &usize);

/// The server under test: which program, with which module.
#[derive(Clone)]
pub struct Sut {
    pub name: String,
    program: PathBuf,
    module: Arc<PathBuf>,
}

impl Sut {
    /// A server with the module and the usual keyring.
    pub fn server(&self) -> Server {
        self.setup().start()
    }

    /// A server to be described further.
    pub fn setup(&self) -> Setup {
        Setup::new(self)
    }

    /// The server's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The file of the module.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// Whether it is a Valkey: by name, which is ours.
    pub fn is_valkey(&self) -> bool {
        self.name.starts_with("valkey-")
    }

    /// Whether modules can bring ACL categories of their own, and give their commands the server's.
    pub fn has_module_categories(&self) -> bool {
        self.name != "redis-7.0"
    }
}

/// A place that an environment variable names, or its default under the project's root.
fn path(variable: &str, default: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    env::var_os(variable).map_or_else(|| root.join(default), PathBuf::from)
}

fn servers_folder() -> PathBuf {
    path("KEYGUARD_SERVERS", "target/servers")
}

/// The Python that runs the examples.
pub fn python() -> PathBuf {
    installed("KEYGUARD_PYTHON", "target/python/bin/python")
}

/// What the examples need: the place that the variable names, or its default. Says how to get it when it is missing.
pub fn installed(variable: &str, default: &str) -> PathBuf {
    let found = path(variable, default);
    assert!(found.exists(), "no {}: run scripts/test, which makes it, or name another in {variable}", found.display());
    found
}

fn module_under_test() -> Result<Arc<PathBuf>, String> {
    let module = path("KEYGUARD_MODULE", "target/release/libkeyguard.so");
    let found = module.canonicalize().map(Arc::new);
    found.map_err(|_| format!("no module at {}: build it with cargo build --release", module.display()))
}

/// A server that the module must refuse, unless the run is narrowed to another one.
pub fn server_too_old() -> Option<Result<Sut, String>> {
    const NAME: &str = "redis-6.2";
    if env::var("KEYGUARD_ONLY_SERVER").is_ok_and(|only| only != NAME) {
        return None;
    }
    let program = servers_folder().join(NAME).join("redis-server");
    let found = if program.exists() { Ok(()) } else { Err(format!("no {}: run scripts/servers", program.display())) };
    Some(found.and_then(|()| Ok(Sut { name: NAME.to_owned(), program, module: module_under_test()? })))
}

/// Finds the servers and the module, or says what is missing and how to get it.
pub fn servers_under_test() -> Result<Vec<Sut>, String> {
    let folder = servers_folder();
    let module = module_under_test()?;
    let only = env::var("KEYGUARD_ONLY_SERVER").ok();
    let mut servers = Vec::new();
    for name in EXPECTED.into_iter().filter(|name| only.as_deref().is_none_or(|only| only == *name)) {
        let programs = ["redis-server", "valkey-server"].map(|program| folder.join(name).join(program));
        let program = programs.into_iter().find(|program| program.exists()).ok_or_else(|| {
            format!("no redis-server or valkey-server in {}: run scripts/servers", folder.join(name).display())
        })?;
        servers.push(Sut { name: name.to_owned(), program, module: Arc::clone(&module) });
    }
    if servers.is_empty() {
        return Err(format!("KEYGUARD_ONLY_SERVER names none of {}", EXPECTED.join(", ")));
    }
    Ok(servers)
}

/// Waits until `attempt` succeeds; past the deadline, fails with what was waited for and what was seen last.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > DEADLINE => panic!("waited {DEADLINE:?} for: {what}; seen last: {seen}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// `Ok` if the condition holds; else what was seen, for [`eventually`].
pub fn expect(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}

/// The wall clock, which the servers of a test share with it, in unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Whether `needle` stands anywhere in `haystack`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
