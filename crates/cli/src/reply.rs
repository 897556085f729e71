//! Answers of the server as JSON: one form for tables, for `--json` and for the admin API.

use redis::Value;
use serde_json::{Map, Number};

/// JSON as serde has it; [`redis::Value`] is the other value.
pub type Json = serde_json::Value;

/// An answer as JSON, the names of maps in the order of the alphabet. Bytes that are no UTF-8, which only a secret can be, are shown with
/// replacement characters: whoever shows one takes the bytes.
pub fn json(value: Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Int(number) => Json::Number(number.into()),
        Value::Double(number) => Number::from_f64(number).map_or(Json::Null, Json::Number),
        Value::Boolean(truth) => Json::Bool(truth),
        Value::BulkString(bytes) => Json::String(text(bytes)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Json::String(text),
        Value::Okay => Json::String("OK".to_owned()),
        Value::BigNumber(bytes) => Json::String(text(bytes.to_vec())),
        Value::Array(values) | Value::Set(values) => Json::Array(values.into_iter().map(json).collect()),
        Value::Push { data, .. } => Json::Array(data.into_iter().map(json).collect()),
        Value::Attribute { data, .. } => json(*data),
        Value::Map(pairs) => {
            Json::Object(pairs.into_iter().map(|(name, value)| (name_of(name), json(value))).collect::<Map<_, _>>())
        }
        Value::ServerError(error) => Json::String(error.to_string()),
        _ => Json::Null,
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn name_of(value: Value) -> String {
    match json(value) {
        Json::String(name) => name,
        other => other.to_string(),
    }
}
