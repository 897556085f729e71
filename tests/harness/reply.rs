//! Replies as plain values, the same for RESP2 and RESP3 where the protocols only differ in form.

use redis::Value;

/// Reading a reply as what it should be; anything else fails the test with the reply shown.
pub trait Reply {
    fn int(&self) -> i64;
    fn bytes(&self) -> Vec<u8>;
    fn text(&self) -> String;
    fn list(&self) -> &[Value];
    fn ints(&self) -> Vec<i64>;
    /// The fields of a map, which in RESP2 is a flat array.
    fn fields(&self) -> Vec<(String, Value)>;
    /// A field that must be there.
    fn field(&self, name: &str) -> Value;
    /// A field that may be left out.
    fn get(&self, name: &str) -> Option<Value>;
    fn is_error(&self) -> bool;
    /// The whole text of an error, code first; empty for anything else.
    fn error(&self) -> String;
    /// The code of an error; empty for anything else.
    fn error_code(&self) -> String;
}

impl Reply for Value {
    fn int(&self) -> i64 {
        match self {
            Value::Int(number) => *number,
            other => panic!("an integer expected, not {other:?}"),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Value::BulkString(bytes) => bytes.clone(),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone().into_bytes(),
            Value::Okay => b"OK".to_vec(),
            other => panic!("a string expected, not {other:?}"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn list(&self) -> &[Value] {
        match self {
            Value::Array(items) | Value::Set(items) => items,
            other => panic!("an array expected, not {other:?}"),
        }
    }

    fn ints(&self) -> Vec<i64> {
        self.list().iter().map(Reply::int).collect()
    }

    fn fields(&self) -> Vec<(String, Value)> {
        match self {
            Value::Map(pairs) => pairs.iter().map(|(name, value)| (name.text(), value.clone())).collect(),
            Value::Array(items) if items.len() % 2 == 0 => {
                items.chunks(2).map(|pair| (pair[0].text(), pair[1].clone())).collect()
            }
            other => panic!("a map expected, not {other:?}"),
        }
    }

    fn field(&self, name: &str) -> Value {
        self.get(name).unwrap_or_else(|| panic!("no field {name} in {self:?}"))
    }

    fn get(&self, name: &str) -> Option<Value> {
        self.fields().into_iter().find_map(|(field, value)| (field == name).then_some(value))
    }

    fn is_error(&self) -> bool {
        matches!(self, Value::ServerError(_))
    }

    fn error(&self) -> String {
        match self {
            Value::ServerError(error) => {
                [error.code(), error.details().unwrap_or_default()].join(" ").trim_end().to_owned()
            }
            _ => String::new(),
        }
    }

    fn error_code(&self) -> String {
        match self {
            Value::ServerError(error) => error.code().to_owned(),
            _ => String::new(),
        }
    }
}

/// The six integers of `KG.CLAIM` and `KG.REMAINING`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub claimed: bool,
    pub limit: i64,
    pub remaining: i64,
    pub retry_after_ms: i64,
    pub reset_after_ms: i64,
    pub claimed_at_ms: i64,
}

impl From<&Value> for Claim {
    fn from(reply: &Value) -> Self {
        let [claimed, limit, remaining, retry_after_ms, reset_after_ms, claimed_at_ms] = reply.ints()[..] else {
            panic!("six integers expected, not {reply:?}")
        };
        assert!(claimed == 0 || claimed == 1, "claimed is 0 or 1: {reply:?}");
        Self { claimed: claimed == 1, limit, remaining, retry_after_ms, reset_after_ms, claimed_at_ms }
    }
}
