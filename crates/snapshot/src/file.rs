//! Where snapshots lie, what they may be called, and what can be wrong with a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::time;

/// The longest name of a file, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 128;

/// What the names of files that a schedule made end in.
const SCHEDULED: &str = ".sqlite";

/// The folder that files are written to and read from: the setting `snapshot-dir`.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder of this path, which must exist. Links in it are followed here, once, and nowhere later.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let real = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileError::NoFolder,
            _ => FileError::of_io(&error),
        })?;
        if !real.is_dir() {
            return Err(FileError::NotAFolder);
        }
        Ok(Self(real))
    }

    /// Deletes all but the newest `keep` files of this prefix that a schedule made (see [`FileName::scheduled`]), and says how many.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune(&self, prefix: &str, keep: usize) -> Result<usize, FileError> {
        let mut scheduled = self.names()?;
        scheduled.retain(|name| is_scheduled(name, prefix) && self.is_plain(name));
        // Their names are in order of their times.
        scheduled.sort_unstable();
        let mut removed = 0;
        for name in scheduled.iter().take(scheduled.len().saturating_sub(keep)) {
            match fs::remove_file(self.0.join(name)) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(FileError::of_io(&error)),
            }
        }
        Ok(removed)
    }

    /// Its real path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The names of what lies in it, as far as they are text.
    pub(crate) fn names(&self) -> Result<Vec<String>, FileError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(|error| FileError::of_io(&error))? {
            let entry = entry.map_err(|error| FileError::of_io(&error))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Whether this is a file, and neither a link to one nor anything else.
    fn is_plain(&self, name: &str) -> bool {
        fs::symlink_metadata(self.0.join(name)).is_ok_and(|metadata| metadata.is_file())
    }
}

/// Whether a schedule made a file of this name for this prefix.
fn is_scheduled(name: &str, prefix: &str) -> bool {
    let at = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(SCHEDULED));
    at.is_some_and(|at| {
        at.len() == 16
            && at.bytes().enumerate().all(|(index, byte)| match index {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            })
    })
}

/// The bare name of a file: 1 to 128 of `A-Z a-z 0-9 . _ - @`, not beginning with a dot or a dash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName(String);

impl FileName {
    /// A client's name; None if it is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
        let sound = (1..=MAX_FILE_NAME_BYTES).contains(&bytes.len())
            && bytes.iter().all(plain)
            && !matches!(bytes.first(), Some(b'.' | b'-'));
        sound.then(|| str::from_utf8(bytes).ok().map(|name| Self(name.to_owned()))).flatten()
    }

    /// `<prefix>-20261122T130000Z.sqlite`, by the time in unix milliseconds.
    #[must_use]
    pub fn scheduled(prefix: &str, at_ms: u64) -> Option<Self> {
        Self::parse(format!("{prefix}-{}{SCHEDULED}", time::compact(at_ms)?).as_bytes())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with a file. It tells no path and nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The folder is not there.
    #[error("snapshot-dir does not exist")]
    NoFolder,
    /// The folder is a file.
    #[error("snapshot-dir is not a directory")]
    NotAFolder,
    /// There is none of this name.
    #[error("there is no such file in snapshot-dir")]
    NoFile,
    /// It is a directory, a link, a pipe or a device.
    #[error("it is no ordinary file: directories, links, pipes and devices are neither read nor replaced")]
    NotAFile,
    /// It may not be replaced.
    #[error("the file of this name is write-protected: choose another name, or let its owner write to it")]
    Protected,
    /// The operating system refused.
    #[error("the operating system denies the server access to snapshot-dir or the file: change their permissions")]
    Denied,
    /// There is no room.
    #[error("the disk is full")]
    DiskFull,
    /// Reading or writing failed.
    #[error("the file could not be read or written: the disk or the file system failed")]
    Io,
    /// It is something else.
    #[error("the file is no SQLite database")]
    NotADatabase,
    /// What belongs to it is not in it yet.
    #[error("a -wal or -journal file belongs to the database: close it everywhere, or copy it with .backup of sqlite3")]
    Unfinished,
    /// Somebody is writing to it.
    #[error("another program is writing to the database: close it there, or copy it with .backup of sqlite3")]
    Busy,
    /// It is damaged.
    #[error("the file is damaged: take another copy")]
    Damaged,
    /// It lacks the tables.
    #[error("the database lacks tables or columns of this FORMAT, or they are no ordinary tables")]
    OtherFormat,
    /// A later version wrote it.
    #[error("a later version of keyguard wrote the snapshot: read it with that version")]
    LaterFormat,
    /// A value or an id is out of range.
    #[error("the store has a value that no snapshot can hold: ids go from 1 to 2^63 - 1, values up to 64 MiB")]
    OutOfRange,
    /// What was written does not stand there.
    #[error("the snapshot failed its own check: try again")]
    Unsound,
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

impl FileError {
    /// Of an operation on files.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoFile,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::DiskFull,
            // What O_NOFOLLOW says of a link; the kind of it has no stable name.
            _ if error.raw_os_error() == Some(libc::ELOOP) => Self::NotAFile,
            _ => Self::Io,
        }
    }

    /// Of SQLite, where it writes.
    pub(crate) fn of_writing(error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::OperationInterrupted) => Self::Stopped,
            Some(ErrorCode::TooBig) => Self::OutOfRange,
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => Self::Denied,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::ConstraintViolation) => {
                Self::Unsound
            }
            _ => Self::Io,
        }
    }

    /// Of SQLite, where it reads: what it cannot read is damaged, unless it is the disk.
    pub(crate) fn of_reading(error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
                Self::Busy
            }
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::Denied,
            Some(ErrorCode::ReadOnly) => Self::Unfinished,
            Some(ErrorCode::SystemIoFailure) => match error.sqlite_error().map(|error| error.extended_code) {
                Some(rusqlite::ffi::SQLITE_IOERR_SHORT_READ) => Self::Damaged,
                _ => Self::Io,
            },
            Some(ErrorCode::OutOfMemory) => Self::Io,
            // A statement that names what is not there, or does what nothing here does.
            Some(ErrorCode::Unknown | ErrorCode::AuthorizationForStatementDenied) => Self::OtherFormat,
            _ => Self::Damaged,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_bare_and_plain() {
        for good in ["a", "acme.sqlite", "a..b", "A-1_2@x", &"x".repeat(128)] {
            assert_eq!(FileName::parse(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", ".a", "-a", "a/b", "/a", "../a", "a\\b", "a b", "a\0", "\u{e9}", "a\n", &"x".repeat(129)]
        {
            assert_eq!(FileName::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_scheduled_name_tells_its_time() {
        let name = FileName::scheduled("acme", 1_795_352_400_000).unwrap();
        assert_eq!(name.as_str(), "acme-20261122T130000Z.sqlite");
        assert!(is_scheduled(name.as_str(), "acme"));
        for (prefix, at_ms) in [("a/b", 0), (".", 0), ("", 0), ("acme", u64::MAX), (&*"x".repeat(120), 0)] {
            assert_eq!(FileName::scheduled(prefix, at_ms), None, "{prefix}");
        }
    }

    #[test]
    fn pruning_deletes_the_oldest_of_its_own_prefix_alone() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(folder.path().join(name), "x").unwrap();
        let of_hour = |prefix: &str, hour: u64| FileName::scheduled(prefix, hour * 3_600_000).unwrap().0;
        (0..5).for_each(|hour| write(&of_hour("acme", hour)));
        let others = [
            "acme.sqlite",
            "acme-x-19700101T000000Z.sqlite",
            "acme-19700101T000000Z.sqlite.tmp",
            "acme-1970010100000000.sqlite",
        ];
        others.iter().for_each(|name| write(name));
        fs::create_dir(folder.path().join(of_hour("acme", 7))).unwrap();
        std::os::unix::fs::symlink(folder.path().join("acme.sqlite"), folder.path().join(of_hour("acme", 8))).unwrap();
        let open = Folder::open(folder.path()).unwrap();
        assert_eq!(open.prune("acme", 2), Ok(3));
        assert_eq!(open.prune("acme", 2), Ok(0));
        let mut left = open.names().unwrap();
        left.sort();
        let mut expected: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        expected.extend([3, 4, 7, 8].map(|hour| of_hour("acme", hour)));
        expected.sort();
        assert_eq!(left, expected);
        assert_eq!(open.prune("acme", 0), Ok(2));
    }

    #[test]
    fn a_folder_must_be_there_and_be_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(Folder::open(&folder.path().join("none")).err(), Some(FileError::NoFolder));
        assert_eq!(Folder::open(&folder.path().join("file")).err(), Some(FileError::NotAFolder));
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
        assert_eq!(Folder::open(&folder.path().join("link")).unwrap().path(), folder.path().canonicalize().unwrap());
    }
}
