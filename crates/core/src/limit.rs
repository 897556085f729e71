//! Limits: at most so many units in any window.

use arrayvec::ArrayVec;

use crate::error::{Error, Result};

/// The most units that one limit or one claim may name: 10^12. A million entries of it still fit 64 bits.
pub const MAX_UNITS: u64 = 1_000_000_000_000;

/// The longest window, and the longest duration of any kind: 366 days, in milliseconds.
pub const MAX_WINDOW_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// The most limits in one command or one record.
pub const MAX_LIMITS: usize = 8;

/// At most [`count`](Self::count) units in any window of [`window_ms`](Self::window_ms) milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    count: u64,
    window_ms: u64,
}

impl Limit {
    /// A limit of `count` units (1 to [`MAX_UNITS`]) per `window_ms` (1 to [`MAX_WINDOW_MS`]).
    ///
    /// # Errors
    /// [`Error::Invalid`] outside these ranges.
    pub fn new(count: u64, window_ms: u64) -> Result<Self> {
        if !(1..=MAX_UNITS).contains(&count) {
            return Err(Error::Invalid { what: "count", accepted: "a whole number from 1 to 1000000000000" });
        }
        if !(1..=MAX_WINDOW_MS).contains(&window_ms) {
            return Err(Error::Invalid {
                what: "window",
                accepted: "500ms, 30s, 5m, 2h, 7d or whole seconds, up to 366d",
            });
        }
        Ok(Self { count, window_ms })
    }

    /// Units allowed in any window.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Length of the window in milliseconds.
    #[must_use]
    pub const fn window_ms(&self) -> u64 {
        self.window_ms
    }

    /// Whether the values lie in the accepted ranges: a decoded limit may not.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        Self::new(self.count, self.window_ms).is_ok()
    }
}

/// One to [`MAX_LIMITS`] limits that a claim takes from together.
pub type Limits = ArrayVec<Limit, MAX_LIMITS>;
