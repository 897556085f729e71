//! Why a command came to nothing, what to do about it, and what the process ends with.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use redis::{ConnectionAddr, ErrorKind, RedisError, ServerErrorKind};

/// Why a command came to nothing. None of these texts holds a secret: the server never repeats its arguments.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The server refused the command: its code, and what it says.
    #[error("{code} {text}")]
    Refused {
        /// The first word of its error, such as `NOSUCH`.
        code: String,
        /// What follows.
        text: String,
    },
    /// The answer, which has been shown, is no: a key that is not let in, a limit that refuses.
    #[error("refused")]
    Answered,
    /// No answer: no server, no way to it, or it took too long.
    #[error("the server does not answer: {0}")]
    Unreachable(String),
    /// A server that cannot be spoken to as the URL has it: TLS, the protocol, what it says before any command.
    #[error("there is no connection to the server: {0}")]
    Misconfigured(String),
    /// A server without the module.
    #[error("this server does not have the keyguard module")]
    NoModule,
    /// The server does not let this user in, or not do this.
    #[error("{0}")]
    NotPermitted(String),
    /// What the server answered is not what this program knows.
    #[error("the server's answer is not understood: {0}")]
    Strange(&'static str),
    /// What `keyguard doctor` has found.
    #[error("{problems} problems, {warnings} warnings")]
    Unwell {
        /// What is to be put right.
        problems: usize,
        /// What is to be looked at.
        warnings: usize,
    },
    /// Terminal, files, sockets of our own.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Failure {
    /// What to do about it, if there is anything to say.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable(_) => "is it running, and is --url (or KEYGUARD_URL) where it listens?",
            Self::Misconfigured(_) => {
                "does --url (or KEYGUARD_URL) fit the server: rediss:// for TLS, a certificate that is known here, its database?"
            }
            Self::NoModule => {
                "load it: redis-cli MODULE LOAD /path/to/libkeyguard.so, or loadmodule in the server's configuration"
            }
            Self::NotPermitted(_) => {
                "name a user in --url (or KEYGUARD_URL) that may: redis://user:password@host, and see ACL WHOAMI and ACL GETUSER"
            }
            Self::Strange(_) => {
                "are this program and the module of one version? See keyguard --version and INFO keyguard"
            }
            _ => return None,
        })
    }

    /// 1 for what the server refused, an answer that is no, and problems that the doctor found; 2 for what the command line has wrong (as
    /// clap has it), 3 for a server that does not answer, 4 for one without the module or with another version, 5 for a user who may
    /// not, 6 for what this machine refused.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Refused { .. } | Self::Answered | Self::Unwell { .. } => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) | Self::Misconfigured(_) => 3,
            Self::NoModule | Self::Strange(_) => 4,
            Self::NotPermitted(_) => 5,
            Self::Io(_) => 6,
        })
    }

    /// The server's code for a refusal, such as `NOSUCH`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl Failure {
    /// Why there is no connection to this address: whatever it is, no command was refused.
    pub fn connecting(address: &ConnectionAddr, error: RedisError) -> Self {
        match Self::from(error) {
            Self::Unreachable(why) => Self::Unreachable(format!("cannot connect to {address}: {why}")),
            Self::Refused { code, text } if code == "ERR" && text.contains("max number of clients") => {
                Self::Unreachable(format!("{address} takes no more clients"))
            }
            Self::Refused { code, text } if code == "ERR" => Self::Misconfigured(format!("{address} says: {text}")),
            Self::Misconfigured(why) => Self::Misconfigured(format!("{address}: {why}")),
            Self::Strange(_) => Self::Misconfigured(format!("{address} speaks another protocol")),
            other => other,
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let text = || error.detail().unwrap_or_default().to_owned();
        match (error.kind(), error.code()) {
            (_, Some("NOAUTH")) => Self::NotPermitted("the server wants a password".to_owned()),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOPERM" | "WRONGPASS")) => {
                Self::NotPermitted(match error.detail() {
                    Some(detail) => detail.to_owned(),
                    None => "the server does not let this user in".to_owned(),
                })
            }
            (ErrorKind::Server(ServerErrorKind::ResponseError), _) => match unknown_command(&text()) {
                Some(name) if name.to_ascii_lowercase().starts_with("kg.") => Self::NoModule,
                // What follows are the arguments.
                Some(name) => Self::Refused { code: "ERR".to_owned(), text: format!("unknown command '{name}'") },
                None => Self::Refused { code: "ERR".to_owned(), text: text() },
            },
            (ErrorKind::InvalidClientConfig, _) => Self::Usage(format!("--url: {}", described(&error))),
            (_, Some(code)) => Self::Refused { code: code.to_owned(), text: text() },
            (ErrorKind::UnexpectedReturnType | ErrorKind::Parse, _) => Self::Strange("of another type"),
            (ErrorKind::Io | ErrorKind::ClusterConnectionNotFound, _) if is_absence(&error) => {
                Self::Unreachable(described(&error))
            }
            _ => Self::Misconfigured(described(&error)),
        }
    }
}

/// The name of the command that the server says it does not know.
fn unknown_command(text: &str) -> Option<&str> {
    let (_, name) = text.split_once("unknown command ")?;
    name.trim_start_matches(['\'', '`', '"']).split(['\'', '`', '"', ',']).next()
}

/// Without the kind that the client puts behind words of its own.
fn described(error: &RedisError) -> String {
    let text = error.to_string();
    let kind = format!(" - {:?}", error.kind());
    match text.split_once(&kind) {
        Some((words, detail)) => format!("{words}{detail}"),
        None => text,
    }
}

/// Whether the server is not there, or has gone, and not merely spoken to in a wrong way, as without TLS, which would not pass.
fn is_absence(error: &RedisError) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, NotFound, TimedOut, UnexpectedEof, WouldBlock,
    };
    type Cause = std::sync::Arc<dyn Error + Send + Sync>;
    // Words of the client's own are about a connection that was lost, unless they stand for another reason.
    let Some(source) = error.source() else {
        return error.kind() != ErrorKind::Io || error.detail().is_none();
    };
    let cause = source.downcast_ref::<Cause>().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.or_else(|| source.downcast_ref()).is_some_and(|cause| match cause.kind() {
        BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable | NetworkDown
        | NetworkUnreachable | NotConnected | NotFound | TimedOut | UnexpectedEof | WouldBlock => true,
        // Names that are not resolved have no kind of their own.
        _ => cause.to_string().starts_with("failed to lookup address"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use redis::IntoConnectionInfo as _;

    use super::*;

    fn from_server(line: &str) -> RedisError {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        reply.and_then(redis::Value::extract_error).unwrap_err()
    }

    /// Its name, and what it says.
    fn shown(failure: Failure) -> (String, String) {
        let name = format!("{failure:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
        (name, failure.to_string())
    }

    #[test]
    fn only_a_server_that_is_not_there_is_unreachable() {
        let of_io = |kind: io::ErrorKind| RedisError::from(io::Error::new(kind, "why"));
        for (error, name) in [
            (of_io(io::ErrorKind::ConnectionRefused), "Unreachable"),
            (of_io(io::ErrorKind::UnexpectedEof), "Unreachable"),
            (of_io(io::ErrorKind::TimedOut), "Unreachable"),
            (of_io(io::ErrorKind::NotFound), "Unreachable"),
            (io::Error::other("failed to lookup address information: Name or service not known").into(), "Unreachable"),
            ((ErrorKind::Io, "it was lost").into(), "Unreachable"),
            ((ErrorKind::ClusterConnectionNotFound, "none").into(), "Unreachable"),
            // A certificate that is not known, an answer without TLS.
            (of_io(io::ErrorKind::InvalidData), "Misconfigured"),
            (of_io(io::ErrorKind::PermissionDenied), "Misconfigured"),
            // Too many open files are ours.
            (io::Error::from_raw_os_error(24).into(), "Misconfigured"),
            (
                (ErrorKind::Io, "Failed to create initial connections", "for whatever reason".to_owned()).into(),
                "Misconfigured",
            ),
            ((ErrorKind::RESP3NotSupported, "no").into(), "Misconfigured"),
            ((ErrorKind::Client, "no").into(), "Misconfigured"),
            ((ErrorKind::Parse, "no").into(), "Strange"),
            (from_server("NOAUTH Authentication required."), "NotPermitted"),
            (from_server("WRONGPASS invalid"), "NotPermitted"),
            (from_server("NOPERM no"), "NotPermitted"),
            (from_server("LOADING wait"), "Refused"),
            (from_server("ASK 1 127.0.0.1:7000"), "Refused"),
            (from_server("NOPROTO no"), "Refused"),
            (from_server("ERR unknown command 'KG.AUTH', with args beginning with: 'acme' "), "NoModule"),
            (from_server("ERR unknown command `kg.auth`, with args beginning with: "), "NoModule"),
            (from_server("ERR unknown command 'CONFIG', with args beginning with: 'GET' "), "Refused"),
        ] {
            assert_eq!(shown(error.clone().into()).0, name, "{error}");
        }
    }

    #[test]
    fn what_a_server_says_of_a_command_repeats_no_arguments() {
        let failure = Failure::from(from_server("ERR unknown command 'CONFIG', with args beginning with: 'x' "));
        assert_eq!(failure.to_string(), "ERR unknown command 'CONFIG'");
    }

    #[test]
    fn why_there_is_no_connection_names_the_address_and_no_password() {
        let info = "redis://user:hidden@localhost:7000".into_connection_info().unwrap();
        for (error, name, wanted) in [
            (io::Error::from(io::ErrorKind::ConnectionRefused).into(), "Unreachable", "localhost:7000"),
            (from_server("ERR max number of clients reached"), "Unreachable", "localhost:7000 takes no more clients"),
            (from_server("ERR DB index is out of range"), "Misconfigured", "DB index is out of range"),
            ((ErrorKind::Parse, "no").into(), "Misconfigured", "localhost:7000 speaks another protocol"),
        ] {
            let (found, text) = shown(Failure::connecting(info.addr(), error));
            assert_eq!(found, name, "{text}");
            assert!(text.contains(wanted) && !text.contains("hidden"), "{text}");
        }
    }
}
