//! A client that sends any bytes and hides no reply: errors are values, and nothing is retried or redirected.

use std::{
    fmt::Debug,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use redis::{Parser, Value};

use super::{Argument, Claim, Reply, args, eventually, expect};

/// How long a reply may take: a server that hangs fails the test instead of holding it.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);

/// A command: words of a text (for what has no blanks in its arguments) or the arguments one by one.
pub trait Args {
    fn into_args(self) -> Vec<Vec<u8>>;
}

impl Args for &str {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.split_ascii_whitespace().map(|word| word.bytes()).map(Iterator::collect).collect()
    }
}

impl Args for &String {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_str().into_args()
    }
}

impl Args for String {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_str().into_args()
    }
}

impl<A: Argument> Args for Vec<A> {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.iter().map(Argument::bytes).collect()
    }
}

impl<A: Argument> Args for &[A] {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.iter().map(Argument::bytes).collect()
    }
}

impl<A: Argument> Args for &Vec<A> {
    fn into_args(self) -> Vec<Vec<u8>> {
        self.as_slice().into_args()
    }
}

/// The fields that hold the packed form of a record, and how much each of them takes.
const PACKED: [&str; 4] = ["r", "r2", "r3", "r4"];
const PIECE: usize = 64;

/// One connection.
pub struct Client {
    stream: TcpStream,
    parser: Parser,
    port: u16,
}

impl Client {
    /// Connects to a server on this machine, or says why not.
    pub fn try_connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_DEADLINE))?;
        stream.set_write_timeout(Some(REPLY_DEADLINE))?;
        Ok(Self { stream, parser: Parser::new(), port })
    }

    /// The same connection speaking RESP3.
    pub fn resp3(mut self) -> Self {
        self.ok("HELLO 3");
        self
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends a command without waiting for its reply.
    pub fn send(&mut self, command: impl Args) {
        self.stream.write_all(&redis::pack_command(&command.into_args())).expect("the server takes the command");
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next reply; `None` if the connection has ended.
    pub fn try_receive(&mut self) -> Option<Value> {
        self.parser.parse_value(&mut self.stream).ok()
    }

    /// The next reply.
    pub fn receive(&mut self) -> Value {
        match self.parser.parse_value(&mut self.stream) {
            Ok(value) => value,
            Err(error) => panic!("no reply from the server at port {}: {error:?}", self.port),
        }
    }

    /// Sends a command; the reply may be an error.
    pub fn call(&mut self, command: impl Args) -> Value {
        self.send(command);
        self.receive()
    }

    /// Sends a command that must not answer an error.
    pub fn ok(&mut self, command: impl Args) -> Value {
        let command = command.into_args();
        let reply = self.call(&command);
        assert!(!reply.is_error(), "{} answered an error: {}", shown(&command), reply.error());
        reply
    }

    /// Sends a command that must answer an error; its whole text.
    pub fn err(&mut self, command: impl Args) -> String {
        let command = command.into_args();
        let reply = self.call(&command);
        assert!(reply.is_error(), "{} should have answered an error, not {reply:?}", shown(&command));
        reply.error()
    }

    /// Sends a command that must answer an error with this code.
    pub fn refused(&mut self, code: &str, command: impl Args + Clone + Debug) -> String {
        let text = self.err(command.clone());
        assert_eq!(text.split(' ').next(), Some(code), "{command:?} answered: {text}");
        text
    }

    /// Sends many commands at once; all their replies, errors among them.
    pub fn pipeline(&mut self, commands: &[Vec<Vec<u8>>]) -> Vec<Value> {
        // In portions that fit the socket's buffers: else both sides could wait for the other to read.
        let mut replies = Vec::with_capacity(commands.len());
        for portion in commands.chunks(32) {
            let bytes: Vec<u8> = portion.iter().flat_map(|command| redis::pack_command(command)).collect();
            self.stream.write_all(&bytes).expect("the server takes the commands");
            replies.extend(portion.iter().map(|_| self.receive()));
        }
        replies
    }

    /// `KG.CLAIM` with these arguments.
    pub fn claim(&mut self, arguments: &str) -> Claim {
        Claim::from(&self.ok(format!("KG.CLAIM {arguments}")))
    }

    /// `KG.REMAINING` with these arguments.
    pub fn remaining(&mut self, arguments: &str) -> Claim {
        Claim::from(&self.ok(format!("KG.REMAINING {arguments}")))
    }

    /// The `code` of a map that a command answers.
    pub fn code(&mut self, command: impl Args) -> String {
        self.ok(command).field("code").text()
    }

    /// A field of a section of INFO.
    pub fn info(&mut self, section: &str, field: &str) -> Option<String> {
        let text = self.ok(format!("INFO {section}")).text();
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()))
    }

    /// A number in a section of INFO.
    pub fn info_number(&mut self, section: &str, field: &str) -> i64 {
        let value = self.info(section, field).unwrap_or_else(|| panic!("INFO {section} has no {field}"));
        value.parse().unwrap_or_else(|_| panic!("{field} of INFO {section} is no number: {value}"))
    }

    /// Waits until the server neither saves nor rewrites in the background.
    pub fn wait_for_background_work(&mut self) {
        eventually("the end of saves and rewrites in the background", || {
            let fields = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled"];
            let running: Vec<&str> =
                fields.into_iter().filter(|field| self.info_number("persistence", field) != 0).collect();
            expect(running.is_empty(), || format!("{running:?}"))
        });
    }

    /// All keys of the database, sorted.
    pub fn keys(&mut self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut cursor = b"0".to_vec();
        loop {
            let reply = self.ok(args!["SCAN", cursor, "COUNT", "1000"]);
            let [next, page] = reply.list() else { panic!("SCAN answers a pair") };
            keys.extend(page.list().iter().map(Reply::bytes));
            cursor = next.bytes();
            if cursor == b"0" {
                keys.sort();
                keys.dedup();
                return keys;
            }
        }
    }

    /// Of every key: its type, digest and expiry. Equal states are equal data.
    pub fn state(&mut self) -> Vec<(String, String)> {
        self.keys().into_iter().map(|key| (String::from_utf8_lossy(&key).into_owned(), self.state_of(&key))).collect()
    }

    /// The packed form of a record, which stands in pieces.
    pub fn packed(&mut self, key: impl AsRef<[u8]>) -> Vec<u8> {
        let pieces = PACKED.map(|field| self.ok(args!["HGET", key.as_ref(), field]));
        pieces.iter().take_while(|piece| **piece != Value::Nil).flat_map(Reply::bytes).collect()
    }

    /// Puts another in its place, in pieces as the module does.
    pub fn set_packed(&mut self, key: impl AsRef<[u8]>, packed: impl AsRef<[u8]>) {
        let (key, packed) = (key.as_ref(), packed.as_ref());
        let piece = if packed.len() > PACKED.len() * PIECE { packed.len() } else { PIECE };
        let mut pieces = packed.chunks(piece);
        self.ok(args!["HSET", key, PACKED[0], pieces.next().unwrap_or_default()]);
        for field in PACKED.into_iter().skip(1) {
            match pieces.next() {
                Some(piece) => self.ok(args!["HSET", key, field, piece]),
                None => self.ok(args!["HDEL", key, field]),
            };
        }
    }

    /// Type, digest and expiry of one key.
    pub fn state_of(&mut self, key: &[u8]) -> String {
        let kind = self.ok(args!["TYPE", key]).text();
        let digest = self.ok(args!["DEBUG", "DIGEST-VALUE", key]).list()[0].text();
        let expiry = self.ok(args!["PEXPIRETIME", key]).int();
        format!("{kind} {digest} {expiry}")
    }
}

/// A command for a failure's text, cut where it is long.
fn shown(command: &[Vec<u8>]) -> String {
    let words: Vec<String> =
        command.iter().take(20).map(|word| word[..word.len().min(80)].escape_ascii().to_string()).collect();
    words.join(" ")
}
