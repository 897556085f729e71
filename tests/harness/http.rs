//! A client for HTTP that sends what it is told, and hides nothing of what comes back.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

/// The headers that the table in README.md is about.
const TOLD: [&str; 7] = [
    "www-authenticate",
    "retry-after",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit-policy",
    "ratelimit",
];

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// By their names in small letters.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Response {
    /// What a server on this machine answers to a request whose body is JSON.
    pub fn of(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it takes connections");
        Self::over(connection, method, path, headers, body).expect("an answer")
    }

    /// The same, over a connection of one's own; if it is answered.
    pub fn over(
        mut connection: TcpStream,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Self> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        connection.write_all(text.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::parse(&answer))
    }

    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not HTTP: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status: status.expect("a status"), headers, body: body.to_owned() }
    }

    /// It has this status, of [`TOLD`] exactly these headers, and if it refuses, this code.
    pub fn check(&self, about: &str, status: u16, code: &str, headers: &[(&str, &str)]) {
        assert_eq!(self.status, status, "{about}: {self:?}");
        for name in TOLD {
            let wanted = headers.iter().find(|(wanted, _)| *wanted == name).map(|(_, value)| *value);
            match (wanted, self.headers.get(name)) {
                (None, None) => {}
                (Some(wanted), Some(found)) => {
                    assert!(matches(wanted, found), "{about}: {name}: {found}, not {wanted}")
                }
                (wanted, found) => panic!("{about}: {name}: {found:?}, not {wanted:?}"),
            }
        }
        if status >= 400 && !code.is_empty() {
            let kind = &self.headers["content-type"];
            assert!(kind.starts_with("application/problem+json"), "{about}: {kind}");
            let mut body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
            // What is wrong with a request is said in words of no fixed form.
            let detail = body.as_object_mut().expect("an object").remove("detail");
            assert!(detail.is_none_or(|detail| code == "BAD_REQUEST" && detail.is_string()), "{about}: {}", self.body);
            assert_eq!(body, serde_json::json!({"status": status, "code": code}), "{about}");
        }
    }

    /// For what ends at an instant that the test does not know: a wait of at most so many seconds.
    pub fn check_status_and_wait(&self, about: &str, status: u16, code: &str, at_most: u64) {
        let wait = self.headers.get("retry-after").and_then(|wait| wait.parse().ok());
        assert!(wait.is_some_and(|wait: u64| (1..=at_most).contains(&wait)), "{about}: {self:?}");
        assert_eq!(self.status, status, "{about}");
        assert!(self.body.contains(code), "{about}: {self:?}");
    }
}

/// Whether the value is the wanted one, in which `~60` at the end stands for a number of seconds of which a few may be over.
fn matches(wanted: &str, found: &str) -> bool {
    let Some((before, seconds)) = wanted.split_once('~') else { return wanted == found };
    let seconds: u64 = seconds.parse().unwrap();
    let left = found.strip_prefix(before).and_then(|left| left.parse().ok());
    left.is_some_and(|left: u64| (seconds.saturating_sub(60).max(1)..=seconds).contains(&left))
}
