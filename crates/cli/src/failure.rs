//! Why a command came to nothing, what to do about it, and what the process ends with.

use std::io;
use std::process::ExitCode;

use redis::{ErrorKind, RedisError, ServerErrorKind};

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
            Self::Unreachable(_) => 3,
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

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let text = || error.detail().unwrap_or_default().to_owned();
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "NOPERM" | "WRONGPASS")) => {
                Self::NotPermitted(match error.detail() {
                    Some(detail) => detail.to_owned(),
                    None => "the server does not let this user in".to_owned(),
                })
            }
            (ErrorKind::Server(ServerErrorKind::ResponseError), _)
                if text().to_lowercase().contains("unknown command") =>
            {
                Self::NoModule
            }
            (ErrorKind::InvalidClientConfig, _) => Self::Usage(format!("--url: {error}")),
            (_, Some(code)) => Self::Refused { code: code.to_owned(), text: text() },
            (ErrorKind::UnexpectedReturnType | ErrorKind::Parse, _) => Self::Strange("of another type"),
            _ => Self::Unreachable(error.to_string()),
        }
    }
}
