//! Where the keyring comes from, and the one that is in force.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use keyguard_core::keyring::{Fingerprint, Keyring, KeyringError, RootKey, SourceError, new_file};
use keyguard_core::secret::Secret;
use keyguard_core::{Error, Result};
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use crate::config::{Settings, settings};
use crate::ffi::{Ctx, Level, raw};
use crate::survey::{Findings, Survey};

/// The environment variable and the `.netrc` machine that may hold a keyring.
const VARIABLE: &str = "KEYGUARD_KEYRING";

/// Where a keyring is made when no file is named: in the server's working directory.
const DEFAULT_FILE: &str = "keyguard.keyring";

/// The largest file that may be a keyring, in bytes: 64 keys with notes take a fraction of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

const NO_KEYRING: Error = Error::NoKeyring {
    why: "this server has no keyring: set keyguard.keyring-file, the environment variable KEYGUARD_KEYRING or a .netrc entry of that name",
};

/// How many keyrings have been in force.
static INSTALLATIONS: AtomicU64 = AtomicU64::new(0);

static KEYRING: RwLock<Option<Arc<Keyring>>> = RwLock::new(None);

/// How far the search for stores has come, when a keyring may have to be made.
static SURVEY: Mutex<Option<Survey>> = Mutex::new(None);

/// Where the keyring in force came from, for INFO.
static SOURCE: Mutex<&str> = Mutex::new("none");

/// Reads the keyring when the module is loaded.
///
/// # Errors
/// What is wrong with it, in words. That there is none is no error: the limiter needs none.
pub fn load() -> Result<Option<Arc<Keyring>>, String> {
    let found = find(&settings()).map_err(|why| why.to_string())?;
    let Some((keyring, source)) = found else { return Ok(None) };
    Ok(Some(install(keyring, source)))
}

/// Reads the keyring again from where it lies, and puts it in force; the first one too. That of the environment is what the server
/// was started with.
///
/// # Errors
/// [`Error::Unreloaded`] where it cannot be read, [`Error::KeyWouldGo`] for one that lacks a key or a pepper in force. Then nothing
/// changed.
pub fn reload() -> Result<()> {
    let found = find(&settings()).map_err(|why| Error::Unreloaded { why })?;
    let (keyring, source) = found.ok_or(Error::Unreloaded { why: SourceError::Nowhere })?;
    if let Some(fingerprint) = installed().and_then(|in_force| in_force.lacking_in(&keyring)) {
        return Err(Error::KeyWouldGo { fingerprint });
    }
    install(keyring, source);
    Ok(())
}

/// Whether the keyring in force holds this key or pepper, and may do without it once no record uses it.
///
/// # Errors
/// [`Error::NoSuchKey`] or [`Error::NewestKey`].
pub fn confirm_droppable(fingerprint: Fingerprint) -> Result<()> {
    let keyring = installed().ok_or(NO_KEYRING)?;
    if !keyring.holds(fingerprint) {
        return Err(Error::NoSuchKey);
    }
    if keyring.newest().fingerprint() == fingerprint { Err(Error::NewestKey) } else { Ok(()) }
}

/// Forgets a key that no store uses.
///
/// The survey whose findings these are must have ended just now. New records use the newest key only, and a survey starts over
/// when a keyring is put in force, so that meanwhile no record can have come to use this key: unless an operator restores one, or
/// moves a store's keys from one database to another, by hand; or, on a replica, unless it is still the newest key of the primary.
/// Then INFO names it as lacking after the next survey, and RELOAD brings it back as long as it is in the file.
///
/// # Errors
/// [`Error::KeyInUse`], or as [`confirm_droppable`].
pub fn drop_key(fingerprint: Fingerprint, findings: &Findings) -> Result<()> {
    confirm_droppable(fingerprint)?;
    // It adds records under whatever key they come with.
    #[cfg(feature = "snapshot")]
    if crate::import::is_running() {
        return Err(Error::Busy { what: "an import" });
    }
    match findings.using.get(&fingerprint) {
        None | Some(0) => {}
        Some(&records) => return Err(Error::KeyInUse { records }),
    }
    let without = installed().and_then(|keyring| keyring.without(fingerprint)).ok_or(Error::NoSuchKey)?;
    install(without, source());
    Ok(())
}

/// The keyring in force; made now, if there is none and that is allowed.
///
/// # Errors
/// [`Error::NoKeyring`].
pub fn current(ctx: Ctx<'_>) -> Result<Arc<Keyring>> {
    match installed() {
        Some(keyring) => Ok(keyring),
        None => create(ctx),
    }
}

/// The keyring in force, if there is one.
pub fn installed() -> Option<Arc<Keyring>> {
    KEYRING.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Where the keyring in force came from: `file`, `environment`, `netrc`, `created` or `none`.
pub fn source() -> &'static str {
    *SOURCE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which keyring is in force: a number that is another one whenever one was put in force.
pub fn installation() -> u64 {
    INSTALLATIONS.load(Ordering::Relaxed)
}

/// Fills a buffer from the system's generator.
///
/// # Errors
/// [`Error::Internal`] if the system has no randomness to give.
pub fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    SysRng.try_fill_bytes(&mut *bytes).map_err(|_| Error::Internal)?;
    Ok(bytes)
}

fn install(keyring: Keyring, source: &'static str) -> Arc<Keyring> {
    let keyring = Arc::new(keyring);
    *KEYRING.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&keyring));
    *SOURCE.lock().unwrap_or_else(PoisonError::into_inner) = source;
    INSTALLATIONS.fetch_add(1, Ordering::Relaxed);
    keyring
}

fn find(settings: &Settings) -> Result<Option<(Keyring, &'static str)>, SourceError> {
    let content = |source_name| move |why: KeyringError| SourceError::Content { source_name, why };
    let named = !settings.keyring_file.is_empty();
    if named || settings.keyring_auto_create {
        let path = file(settings);
        if let Some(text) = read_private(&path)? {
            let keyring = Keyring::parse(text.expose()).map_err(content("keyring-file"))?;
            return Ok(Some((keyring, "file")));
        }
        if named && !settings.keyring_auto_create {
            return Err(SourceError::NoFile);
        }
    }
    if let Some(text) = std::env::var_os(VARIABLE).map(|text| Secret::new(text.into_encoded_bytes())) {
        let keyring = Keyring::parse(text.expose()).map_err(content(VARIABLE))?;
        return Ok(Some((keyring, "environment")));
    }
    let Some(home) = std::env::var_os("HOME") else { return Ok(None) };
    let netrc = Path::new(&home).join(".netrc");
    // A .netrc of others' making is none of our business unless it holds our entry: only then its mode matters.
    let Ok(Some(text)) = open_file(&netrc).and_then(|file| file.map(read).transpose()) else { return Ok(None) };
    let found = Keyring::from_netrc(text.expose()).map_err(content(".netrc"))?;
    match found {
        None => Ok(None),
        Some(_) if read_private(&netrc)?.is_none() => Ok(None),
        Some(keyring) => Ok(Some((keyring, "netrc"))),
    }
}

fn file(settings: &Settings) -> PathBuf {
    let name = if settings.keyring_file.is_empty() { DEFAULT_FILE } else { &settings.keyring_file };
    PathBuf::from(name)
}

/// Reads a file that nobody else may read; `None` if there is none.
fn read_private(path: &Path) -> Result<Option<Secret>, SourceError> {
    let Some(file) = open_file(path)? else { return Ok(None) };
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if matches!(mode, 0o400 | 0o600) { read(file).map(Some) } else { Err(SourceError::Mode(mode)) }
}

/// Opens a regular file; `None` if there is none. To open a pipe would hold the server until somebody writes to it.
fn open_file(path: &Path) -> Result<Option<File>, SourceError> {
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) if !metadata.is_file() => return Err(SourceError::NotAFile),
        Ok(_) => {}
    }
    File::open(path).map(Some).map_err(unreadable)
}

fn read(file: File) -> Result<Secret, SourceError> {
    // The whole capacity at once: a buffer that grows leaves copies of the keys behind.
    let size = file.metadata().map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(SourceError::TooLarge);
    }
    let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    let read = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
    // Wiped when dropped, also if it could only be read in part.
    let text = Secret::new(text);
    read.map(|_| text).map_err(unreadable)
}

fn unreadable(error: std::io::Error) -> SourceError {
    SourceError::Unreadable(error.kind())
}

/// Makes a keyring where nothing can have been written under another one: the server is alone and holds no store.
fn create(ctx: Ctx<'_>) -> Result<Arc<Keyring>> {
    const REPLICA_OR_CLUSTER: Error = Error::NoKeyring {
        why: "keyring-auto-create is for a server that is alone: give every server of a cluster or with replicas the same keyguard.keyring-file",
    };
    const STORES: Error = Error::NoKeyring {
        why: "this server holds stores made under another keyring: give it the keyguard.keyring-file that they were made with",
    };
    const LOOKING: Error =
        Error::NoKeyring { why: "this server is still looking for stores made under another keyring; try again" };
    const UNWRITABLE: Error = Error::NoKeyring { why: "the keyring file could not be made; the server's log says why" };
    let settings = settings();
    if !settings.keyring_auto_create {
        return Err(NO_KEYRING);
    }
    let clustered = ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_CLUSTER);
    let primary = ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_MASTER);
    let alone = ctx.server_info(c"replication", c"connected_slaves").is_some_and(|count| count == "0");
    if clustered || !primary || !alone {
        return Err(REPLICA_OR_CLUSTER);
    }
    let mut survey = SURVEY.lock().unwrap_or_else(PoisonError::into_inner);
    match survey.get_or_insert_default().go_on(ctx) {
        None => return Err(LOOKING),
        Some(findings) => {
            *survey = None;
            if findings.records {
                return Err(STORES);
            }
        }
    }
    let path = file(&settings);
    match write_new(&path) {
        Ok(keyring) => {
            ctx.log(Level::Notice, "made a keyring; keep a copy of the file, without it no secret can be read");
            Ok(install(keyring, "created"))
        }
        Err(error) => {
            ctx.log(Level::Warning, &format!("the keyring file could not be made: {error}"));
            Err(UNWRITABLE)
        }
    }
}

/// Writes a fresh keyring beside its place, then moves it there: a crash leaves no half file.
fn write_new(path: &Path) -> Result<Keyring, String> {
    let in_words = |error: std::io::Error| error.kind().to_string();
    let root = RootKey::new(&*random().map_err(|error| error.to_string())?).ok_or("no randomness")?;
    let text = new_file(&root, &made_at());
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(in_words)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(in_words)?;
    // A link fails where a file already stands: what another process wrote meanwhile is not lost.
    let linked = std::fs::hard_link(&beside, path).map_err(in_words);
    let _ = std::fs::remove_file(&beside);
    linked?;
    Keyring::parse(text.as_bytes()).map_err(|error| error.to_string())
}

/// When a keyring was made, for people who look into the file.
fn made_at() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    keyguard_core::parse::rfc3339(seconds)
}
