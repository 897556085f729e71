//! Admin tokens: who may call the admin API, and `keyguard token new`, which makes one.
//!
//! A token is `kga_` and 32 random bytes in base64url. The file that `keyguard serve` reads keeps its SHA-256 alone, one token a line:
//! `role name sha256:<hex>`. A fast digest without salt is right for these, as it is not for passwords: nobody guesses 256 random
//! bits, however fast, and no two tokens are equal. What is not of this form is no token, whatever its digest, so that nobody's line
//! can stand for a word that could be guessed.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand, ValueEnum};
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::output::Output;

/// What every token begins with, so that scanners of repositories can know one.
const PREFIX: &str = "kga_";

/// How many random bytes a token has.
const RANDOM_BYTES: usize = 32;

/// The longest name of a token, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The largest file of tokens that is read, in bytes: some ten thousand of them.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What can be done with admin tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an admin token: it goes to standard output, this once, and its line for the file to standard error, or into the file.
    ///
    /// With --json both are fields of what goes to standard output: `token` and `line`.
    New(New),
}

/// What `keyguard token new` takes.
#[derive(Debug, Args)]
pub struct New {
    /// What its holder may do: read, or read and write.
    #[arg(long)]
    role: Role,

    /// Whose it is: 1 to 64 of A-Z a-z 0-9 . _ -; the log of `keyguard serve` names who changed something.
    #[arg(long)]
    name: Name,

    /// The file of `keyguard serve --admin-tokens` that the line is added to; it is made, with mode 0600, if it is not there.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// What the holder of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Look, but change nothing.
    Read,
    /// All that there is.
    Write,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The name of a token: 1 to [`MAX_NAME_BYTES`] of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err("1 to 64 of A-Z a-z 0-9 . _ -")
        }
    }
}

/// The SHA-256 of a token.
#[derive(Clone, Copy)]
struct Digest([u8; 32]);

impl Digest {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// `sha256:` and 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    fn line(&self, role: Role, name: &Name) -> String {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {} sha256:{digits}\n", role.as_str(), name.as_str())
    }
}

/// A token that is known: whose it is, and what it allows.
#[derive(Clone)]
pub struct Token {
    pub role: Role,
    pub name: Name,
    digest: Digest,
}

/// The tokens of a file.
pub struct Tokens(Vec<Token>);

impl Tokens {
    /// Reads a file: a token a line, empty lines and those that begin with `#` aside.
    ///
    /// # Errors
    /// A file that is not there, that others may read, that holds no token, or a line that is none: its number, not its text.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let tokens = Self::read_any(path)?;
        if tokens.0.is_empty() {
            let advice = "keyguard token new --role write --name me --file makes one";
            return Err(Failure::Usage(format!("{}: no token in it; {advice}", path.display())));
        }
        Ok(tokens)
    }

    /// The same, but the file may hold no token: when it is read again, that says that nobody is let in any more.
    ///
    /// # Errors
    /// As [`read`](Self::read), but for that.
    pub fn read_any(path: &Path) -> Result<Self, Failure> {
        let at = |error: io::Error| Failure::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
        let wrong = |why: &str| Failure::Usage(format!("{}: {why}", path.display()));
        let file = OpenOptions::new().read(true).open(path).map_err(at)?;
        // Of the file that is open, which nobody exchanges any more.
        let about = file.metadata().map_err(at)?;
        if !about.is_file() {
            return Err(wrong("not a file"));
        }
        if about.permissions().mode() & 0o077 != 0 {
            return Err(wrong("other users may read or change it: chmod 600"));
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(at)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(wrong("more than 1 MiB"));
        }
        let mut tokens: Vec<Token> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = parse_line(line)
                .ok_or_else(|| wrong(&format!("line {number} is not: read or write, a name, sha256:<64 digits>")))?;
            if tokens.iter().any(|other| other.name == token.name || other.digest.0 == token.digest.0) {
                return Err(wrong(&format!("line {number} has the name or the token of another line")));
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// Which token this is. It takes the same time for every one that is known, and for one that is not.
    pub fn find(&self, presented: &str) -> Option<&Token> {
        let random = presented.strip_prefix(PREFIX).and_then(|random| URL_SAFE_NO_PAD.decode(random).ok());
        let formed = random.is_some_and(|random| random.len() == RANDOM_BYTES);
        let digest = Digest::of(presented);
        let mut found = u32::MAX;
        for (at, token) in (0..).zip(&self.0) {
            let same: Choice = token.digest.0.ct_eq(&digest.0);
            found.conditional_assign(&at, same);
        }
        self.0.get(usize::try_from(found).ok()?).filter(|_| formed)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn parse_line(line: &str) -> Option<Token> {
    let mut words = line.split_ascii_whitespace();
    let role = match words.next()? {
        "read" => Role::Read,
        "write" => Role::Write,
        _ => return None,
    };
    let name = words.next()?.parse().ok()?;
    let digest = Digest::parse(words.next()?)?;
    words.next().is_none().then_some(Token { role, name, digest })
}

/// Does what the command line says.
///
/// # Errors
/// A file that cannot be added to; then no token is shown.
pub fn run(out: Output, command: &Command) -> Result<(), Failure> {
    let Command::New(new) = command;
    let mut random = Zeroizing::new([0; RANDOM_BYTES]);
    SysRng.try_fill_bytes(random.as_mut_slice()).map_err(io::Error::other)?;
    let token = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random.as_slice())));
    let line = Digest::of(&token).line(new.role, &new.name);
    // First what may fail: a token that no file knows would be of no use.
    match &new.file {
        Some(path) => add_line(path, &new.name, &line)?,
        None if out.json => {}
        // Here the line is as good as the token: that nobody reads it is no end of a pipe that goes well.
        None => io::stderr().write_all(line.as_bytes()).map_err(io::Error::other)?,
    }
    let shown = if out.json {
        Zeroizing::new(json!({"line": line.trim_end(), "token": token.as_str()}).to_string())
    } else {
        token
    };
    out.secret(shown.as_bytes()).map_err(|failure| match &new.file {
        Some(path) => Failure::Io(io::Error::other(format!("{failure}; take its line out of {}", path.display()))),
        None => failure,
    })
}

/// Adds a line to a file that can be read afterwards.
fn add_line(path: &Path, name: &Name, line: &str) -> Result<(), Failure> {
    let at = |error: io::Error| Failure::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(at)?;
    if Tokens::read_any(path)?.0.iter().any(|token| token.name == *name) {
        return Err(Failure::Usage(format!("{}: it has a token of this name", path.display())));
    }
    // Behind a last line that somebody left without its end.
    let ends = std::fs::read(path).map_err(at)?.last().is_none_or(|last| *last == b'\n');
    let line = if ends { line.to_owned() } else { format!("\n{line}") };
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn tokens(of: &[(&str, Role)]) -> Tokens {
        let one = |(n, (token, role)): (usize, &(&str, Role))| Token {
            role: *role,
            name: format!("n{n}").parse().unwrap(),
            digest: Digest::of(token),
        };
        Tokens(of.iter().enumerate().map(one).collect())
    }

    fn token(byte: u8) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([byte; RANDOM_BYTES]))
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let name: Name = "ci.deploy-1".parse().unwrap();
        let read = parse_line(Digest::of("x").line(Role::Read, &name).trim()).unwrap();
        assert_eq!((read.role, read.name, read.digest.0), (Role::Read, name, Digest::of("x").0));
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let digest = "ab".repeat(32);
        assert!(parse_line(&format!("read a sha256:{digest}")).is_some());
        for line in [
            format!("admin a sha256:{digest}"),
            format!("read a sha1:{digest}"),
            format!("read a sha256:{digest}00"),
            format!("read a sha256:{} more", digest),
            format!("read a sha256:+{}", &digest[1..]),
            format!("read \u{e4} sha256:{digest}"),
            format!("read sha256:{digest}"),
        ] {
            assert!(parse_line(&line).is_none(), "{line}");
        }
    }

    #[test]
    fn each_token_is_found_and_nothing_else() {
        let (first, second) = (token(1), token(2));
        let known = tokens(&[(&first, Role::Read), (&second, Role::Write)]);
        assert_eq!(known.find(&first).unwrap().role, Role::Read);
        assert_eq!(known.find(&second).unwrap().name.as_str(), "n1");
        for unknown in [&token(3), "", PREFIX, &first[..first.len() - 1], &format!("{first} ")] {
            assert!(known.find(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn a_word_that_can_be_guessed_is_no_token_even_if_its_digest_is_there() {
        assert!(tokens(&[("my-secret", Role::Write)]).find("my-secret").is_none());
    }
}
