//! What organizations and keys have in common: limits, quotas, instants.

use jiff::Timestamp;
use redis::Cmd;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::extract::long;
use super::problem::Problem;

/// At most so many units within any window of this length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// How many units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000u64)]
    count: u64,
    /// How long: a number and ms, s, m, h or d, or whole seconds; up to 366 days.
    #[schema(min_length = 1, max_length = 32, example = "1m")]
    window: String,
    /// What is counted.
    #[serde(default = "requests")]
    #[schema(min_length = 1, max_length = 32, default = "requests")]
    unit: String,
}

/// At most so many units in a calendar day or month of the store's time zone, or in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000u64)]
    count: u64,
    /// In which time.
    period: Period,
    /// What is counted.
    #[serde(default = "requests")]
    #[schema(min_length = 1, max_length = 32, default = "requests")]
    unit: String,
}

/// The time that a quota is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    Day,
    Month,
    Total,
}

impl Period {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }
}

fn requests() -> String {
    "requests".to_owned()
}

impl Limit {
    /// Of requests within a minute.
    pub fn per_minute(count: u32) -> Self {
        Self { count: count.into(), window: "1m".to_owned(), unit: requests() }
    }

    /// As the module tells of it: `100 60000ms requests`.
    pub fn read(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        let count = words.next()?.parse().ok()?;
        let window = duration(words.next()?.strip_suffix("ms")?.parse().ok()?);
        Some(Self { count, window, unit: words.next()?.to_owned() })
    }

    /// How many requests it allows in a minute, if that is what it says.
    pub fn requests_per_minute(&self) -> Option<u64> {
        (self.window == "1m" && self.unit == "requests").then_some(self.count)
    }

    /// Adds it to a command.
    ///
    /// # Errors
    /// A window that is not a duration at all; whether it is a good one, the module says.
    pub fn add_to(&self, command: &mut Cmd) -> Result<(), Problem> {
        command.arg("LIMIT").arg(self.count).arg(given_duration("window", &self.window)?).arg("UNIT").arg(&self.unit);
        Ok(())
    }
}

impl Quota {
    /// As the module tells of it: `100 month requests`.
    pub fn read(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        let count = words.next()?.parse().ok()?;
        let period = words.next()?;
        let period = [Period::Day, Period::Month, Period::Total].into_iter().find(|known| known.as_str() == period)?;
        Some(Self { count, period, unit: words.next()?.to_owned() })
    }

    /// Adds it to a command.
    pub fn add_to(&self, command: &mut Cmd) {
        command.arg("QUOTA").arg(self.count).arg(self.period.as_str()).arg("UNIT").arg(&self.unit);
    }
}

/// A duration, to be handed on: it begins with a digit, so that it is not taken for an option.
///
/// # Errors
/// What it must be.
pub fn given_duration<'t>(what: &str, text: &'t str) -> Result<&'t str, Problem> {
    long(what, text, 1..=32)?;
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(text);
    }
    Err(Problem::invalid(format!("{what} must be a duration such as 500ms, 30s, 5m, 2h, 7d or whole seconds.")))
}

/// A duration in the largest unit that it is a multiple of.
fn duration(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = units.into_iter().find(|(_, of)| ms >= *of && ms.is_multiple_of(*of));
    unit.map_or_else(|| format!("{ms}ms"), |(name, of)| format!("{}{name}", ms / of))
}

/// An instant of the module, unix milliseconds, in RFC 3339.
pub fn instant(ms: i64) -> String {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX).to_string()
}

/// An instant as the module was given it, RFC 3339 or unix seconds, in RFC 3339; 0 is none.
pub fn given_instant(text: &str) -> Option<String> {
    match text.parse::<i64>() {
        Ok(0) => None,
        Ok(seconds) => Timestamp::from_second(seconds).ok(),
        Err(_) => text.parse().ok(),
    }
    .map(|instant: Timestamp| instant.to_string())
}

/// Of a field that null clears: a null that is there, rather than nothing.
#[allow(clippy::option_option)]
pub fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(input).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_in_their_largest_unit() {
        for (ms, told) in
            [(1, "1ms"), (1500, "1500ms"), (60_000, "1m"), (90_000, "90s"), (7_200_000, "2h"), (604_800_000, "7d")]
        {
            assert_eq!(duration(ms), told);
        }
    }
}
