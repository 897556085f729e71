//! Typed outcomes to replies. Maps are maps in RESP3 and flat arrays in RESP2; fields that do not apply are left out.

use arrayvec::ArrayVec;
use keyguard_core::limiter::{Decision, Verdict};
use keyguard_core::record::UnitLimits;
use keyguard_core::scope::Scopes;
use keyguard_core::window::WindowLog;

use crate::ffi::Ctx;

/// A value in a map.
pub enum Value<'a> {
    /// An integer; booleans are 0 and 1.
    Integer(i64),
    /// A number with up to two decimals.
    Decimal(f64),
    /// A string.
    Bytes(&'a [u8]),
    /// An array of strings.
    Strings(Vec<&'a str>),
    /// An array of limits, as texts.
    Limits(&'a UnitLimits<'a>),
    /// An array of scopes.
    Scopes(&'a Scopes<'a>),
    /// An array of maps.
    Maps(Vec<Map<'a>>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl<'a> From<Vec<Map<'a>>> for Value<'a> {
    fn from(value: Vec<Map<'a>>) -> Self {
        Self::Maps(value)
    }
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Integer(integer(value))
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Integer(i64::from(value))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Bytes(value.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Bytes(value.as_bytes())
    }
}

impl<'a> From<&'a UnitLimits<'a>> for Value<'a> {
    fn from(value: &'a UnitLimits<'a>) -> Self {
        Self::Limits(value)
    }
}

impl<'a> From<&'a Scopes<'a>> for Value<'a> {
    fn from(value: &'a Scopes<'a>) -> Self {
        Self::Scopes(value)
    }
}

/// The fields of a map reply, in order.
#[derive(Default)]
pub struct Map<'a>(ArrayVec<(&'static str, Value<'a>), FIELDS>);

/// More fields than the longest map has.
const FIELDS: usize = 32;

impl<'a> Map<'a> {
    /// Adds a field.
    pub fn field(&mut self, name: &'static str, value: impl Into<Value<'a>>) -> &mut Self {
        self.0.push((name, value.into()));
        self
    }

    /// Adds a field that may not apply.
    pub fn optional(&mut self, name: &'static str, value: Option<impl Into<Value<'a>>>) -> &mut Self {
        if let Some(value) = value {
            self.field(name, value);
        }
        self
    }

    /// Sends the map.
    pub fn send(&self, ctx: Ctx<'_>) {
        self.send_first(ctx, 0);
    }

    /// Sends a map that has `more` fields than these, which the caller sends next.
    pub fn send_first(&self, ctx: Ctx<'_>, more: usize) {
        ctx.reply_map(self.0.len() + more);
        for (name, value) in &self.0 {
            ctx.reply_bytes(name.as_bytes());
            match value {
                Value::Integer(value) => ctx.reply_integer(*value),
                Value::Decimal(value) => ctx.reply_decimal(*value),
                Value::Bytes(bytes) => ctx.reply_bytes(bytes),
                Value::Strings(strings) => {
                    ctx.reply_array(strings.len());
                    strings.iter().for_each(|string| ctx.reply_bytes(string.as_bytes()));
                }
                Value::Maps(maps) => {
                    ctx.reply_array(maps.len());
                    maps.iter().for_each(|map| map.send(ctx));
                }
                Value::Scopes(scopes) => {
                    ctx.reply_array(scopes.len());
                    scopes.iter().for_each(|scope| ctx.reply_bytes(scope.as_bytes()));
                }
                Value::Limits(limits) => {
                    ctx.reply_array(limits.len());
                    limits.iter().for_each(|limit| ctx.reply_bytes(limit.to_string().as_bytes()));
                }
            }
        }
    }
}

/// The six integers of `KG.CLAIM` and `KG.REMAINING`.
pub struct ClaimReply([i64; 6]);

impl ClaimReply {
    /// What KG.CLAIM answers.
    pub fn of_claim(decision: &Decision) -> Self {
        let verdict = &decision.verdict;
        Self::new(verdict, verdict.remaining(), verdict.reset_after_ms, decision.claimed_at_ms().unwrap_or(0))
    }

    /// What KG.REMAINING answers: as things stand, without a claim on `log`.
    pub fn of_remaining(decision: &Decision, log: Option<&WindowLog>) -> Self {
        let verdict = &decision.verdict;
        Self::new(verdict, verdict.remaining_before(), decision.reset_before_ms(log), 0)
    }

    fn new(verdict: &Verdict, remaining: u64, reset_after_ms: u64, claimed_at_ms: u64) -> Self {
        Self([
            i64::from(verdict.granted()),
            integer(verdict.limit.count()),
            integer(remaining),
            verdict.retry.as_reply(),
            integer(reset_after_ms),
            integer(claimed_at_ms),
        ])
    }

    /// Sends them.
    pub fn send(&self, ctx: Ctx<'_>) {
        ctx.reply_array(self.0.len());
        self.0.iter().for_each(|value| ctx.reply_integer(*value));
    }
}

/// An unsigned number as replies carry it.
pub fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
