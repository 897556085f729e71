//! Whether a claim may be granted: pure decisions over [`WindowLog`]s.
//!
//! A unit claimed at *t* counts while `now < t + window`. A claim of `cost` units is granted when, for every limit, the units
//! that count plus the cost are at most the limit's count, and the log is not locked. Refusing changes nothing.

use crate::effect::{Claimed, Effect};
use crate::error::{Error, Result};
use crate::limit::Limit;
use crate::window::WindowLog;

/// When a claim takes place, as far as the logs that it touches are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What the clock says, in unix milliseconds.
    pub now_ms: u64,
    /// The instant that the claim is booked at: never before what the log has seen.
    pub at_ms: u64,
    /// The instant that says which units have run out: that of the booking, unless it was put off only so that no two are at
    /// the same one. What is granted is granted now, and nothing may be free sooner for it.
    pub as_of_ms: u64,
}

impl Moment {
    /// A claim that is booked at `at_ms`, and decided as of then.
    #[must_use]
    pub const fn at(now_ms: u64, at_ms: u64) -> Self {
        Self { now_ms, at_ms, as_of_ms: at_ms }
    }
}

/// The moment of a claim on `logs` naming windows up to `longest_ms`, when the clock says `now_ms`.
///
/// Time never goes back within a log: while the clock is behind the latest instant that anything was booked at, the claim is
/// booked at that instant. A clock that is behind by more than the longest window was wrong before (or is now): then the log
/// counts as empty and starts afresh from the clock.
pub fn clock<'a>(logs: impl IntoIterator<Item = &'a WindowLog>, longest_ms: u64, now_ms: u64) -> Moment {
    let at_ms = logs.into_iter().fold(now_ms, |at_ms, log| match log.latest_ms() {
        Some(latest) if latest - latest.min(now_ms) <= longest_ms.max(log.retention_ms()) => at_ms.max(latest),
        _ => at_ms,
    });
    Moment::at(now_ms, at_ms)
}

/// When a refused claim may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// The claim is granted.
    Granted,
    /// In so many milliseconds, and not one earlier, if nobody else claims.
    After(u64),
    /// Never: it costs more than the limit's count.
    Never,
}

impl Retry {
    /// As replies say it: 0 granted, -1 never, else milliseconds.
    #[must_use]
    pub fn as_reply(self) -> i64 {
        match self {
            Self::Granted => 0,
            Self::After(ms) => i64::try_from(ms).unwrap_or(i64::MAX),
            Self::Never => -1,
        }
    }
}

/// What becomes of a claim, told of the limit that matters most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The limit told of: with the longest wait when refused, else with the fewest units remaining (ties: the longest window).
    pub limit: Limit,
    /// Units that count against it, before the claim.
    pub used: u64,
    /// What the claim costs.
    pub cost: u64,
    /// Whether the claim may come back, and when.
    pub retry: Retry,
    /// Milliseconds until that limit is full again, with this claim if it is granted.
    pub reset_after_ms: u64,
}

impl Verdict {
    /// Whether the claim is granted.
    #[must_use]
    pub fn granted(&self) -> bool {
        self.retry == Retry::Granted
    }

    /// Units left before the claim.
    #[must_use]
    pub fn remaining_before(&self) -> u64 {
        self.limit.count().saturating_sub(self.used)
    }

    /// Units left when all is done: after the cost if the claim is granted.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining_before() - if self.granted() { self.cost } else { 0 }
    }

    /// Milliseconds until that limit is full again as things stand, without this claim; `log` is what was decided on.
    #[must_use]
    pub fn reset_before_ms(&self, log: Option<&WindowLog>, moment: Moment) -> u64 {
        let newest = log.and_then(WindowLog::newest_ms).filter(|_| self.used > 0);
        let full_at = newest.map(|newest| newest + self.limit.window_ms());
        full_at.max(locked_until_ms(log, moment)).map_or(0, |at| at.saturating_sub(moment.now_ms))
    }

    /// Refuses for at least so many milliseconds, whatever the limit says: the bucket is locked, or others come first.
    pub fn refuse(&mut self, at_least_ms: u64) {
        self.retry = self.retry.max(Retry::After(at_least_ms.max(1)));
    }

    /// Of two verdicts on parts of one claim, the one to tell: a refusal before a grant, then the longest wait, or the fewest
    /// remaining; ties go to the longest window, then to `self`.
    #[must_use]
    pub fn matters_more_than(&self, other: &Self) -> bool {
        let fewest = |verdict: &Self| std::cmp::Reverse(verdict.remaining());
        let mine = (self.retry, self.granted().then(|| fewest(self)), self.limit.window_ms());
        let theirs = (other.retry, other.granted().then(|| fewest(other)), other.limit.window_ms());
        mine >= theirs
    }
}

/// Decides a claim of `cost` units on one log under `limits`; `None` without limits.
///
/// # Errors
/// [`Error::BucketFull`] when the claim would be granted and the log has no room for another entry.
pub fn decide(log: Option<&WindowLog>, limits: &[Limit], cost: u64, moment: Moment) -> Result<Option<Verdict>> {
    // A log whose latest instant lies beyond the moment starts afresh: see `clock`.
    let log = log.filter(|log| log.latest_ms().is_none_or(|latest| latest <= moment.at_ms));
    let mut told: Option<Verdict> = None;
    for &limit in limits {
        let verdict = against(log, limit, cost, moment);
        if told.is_none_or(|told| !told.matters_more_than(&verdict)) {
            told = Some(verdict);
        }
    }
    let longest_ms = longest_ms(limits);
    let granted = told.is_some_and(|verdict| verdict.granted());
    if granted && cost > 0 && log.is_some_and(|log| log.is_full(moment.at_ms, longest_ms)) {
        return Err(Error::BucketFull);
    }
    Ok(told)
}

/// The longest window of `limits`, in milliseconds; 0 without limits.
#[must_use]
pub fn longest_ms(limits: &[Limit]) -> u64 {
    limits.iter().map(Limit::window_ms).max().unwrap_or(0)
}

fn against(log: Option<&WindowLog>, limit: Limit, cost: u64, moment: Moment) -> Verdict {
    let gone_until = moment.as_of_ms.checked_sub(limit.window_ms());
    let used = log.map_or(0, |log| gone_until.map_or(log.units(), |gone| log.units_after(gone)));
    let until = |instant: u64| (instant + limit.window_ms()).saturating_sub(moment.now_ms);
    let retry = match (used + cost).checked_sub(limit.count()) {
        None | Some(0) => Retry::Granted,
        Some(_) if cost > limit.count() => Retry::Never,
        Some(needed) => log
            .and_then(|log| log.instant_of_unit(log.units() - used + needed))
            .map_or(Retry::Never, |instant| Retry::After(until(instant))),
    };
    let mut verdict = Verdict { limit, used, cost, retry, reset_after_ms: 0 };
    if let Some(until) = locked_until_ms(log, moment) {
        verdict.refuse(until.saturating_sub(moment.now_ms));
        verdict.used = used.max(limit.count());
    }
    verdict.reset_after_ms =
        if verdict.granted() && cost > 0 { until(moment.at_ms) } else { verdict.reset_before_ms(log, moment) };
    verdict
}

fn locked_until_ms(log: Option<&WindowLog>, moment: Moment) -> Option<u64> {
    log.and_then(WindowLog::locked_until_ms).filter(|until| *until > moment.as_of_ms)
}

/// What becomes of a claim on one bucket, and what is to be booked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What it is told.
    pub verdict: Verdict,
    moment: Moment,
    longest_ms: u64,
    /// Whether the refusal has another reason than the limits: a lock that holds, or others who come first.
    excused: bool,
}

impl Decision {
    /// Decides a claim of `cost` units on a bucket under one or more `limits`, when the clock says `now_ms`.
    ///
    /// # Errors
    /// [`Error::BucketFull`] when it would be granted and the log has no room for another entry.
    pub fn on(log: Option<&WindowLog>, limits: &[Limit], cost: u64, now_ms: u64) -> Result<Self> {
        let longest_ms = longest_ms(limits);
        let moment = clock(log, longest_ms, now_ms);
        let verdict = decide(log, limits, cost, moment)?.ok_or(Error::Internal)?;
        let log = log.filter(|log| log.latest_ms().is_none_or(|latest| latest <= moment.at_ms));
        let excused = locked_until_ms(log, moment).is_some();
        Ok(Self { verdict, moment, longest_ms, excused })
    }

    /// Others come first: nothing is granted for so many milliseconds at the least.
    pub fn defer(&mut self, at_least_ms: u64) {
        self.excused |= self.verdict.granted();
        self.verdict.refuse(at_least_ms);
    }

    /// What is to be booked: the claim if it is granted; the lock that it asked for, for `lockout_ms`, if the limits refuse it
    /// and it could fit at all. Nothing else changes a bucket.
    pub fn effect(&mut self, lockout_ms: Option<u64>) -> Option<Effect<'static>> {
        let Self { verdict, moment: Moment { now_ms, at_ms, .. }, longest_ms, excused } = *self;
        match verdict.retry {
            Retry::Granted if verdict.cost > 0 => {
                Some(Effect::Claim(Claimed { at_ms, units: verdict.cost, window_ms: longest_ms }))
            }
            Retry::After(_) if !excused => {
                let until_ms = at_ms + lockout_ms?;
                self.verdict.refuse(until_ms - now_ms);
                self.verdict.used = verdict.used.max(verdict.limit.count());
                self.verdict.reset_after_ms = verdict.reset_after_ms.max(until_ms - now_ms);
                Some(Effect::Lock { at_ms, until_ms })
            }
            _ => None,
        }
    }

    /// The instant that the claim is booked at, in unix milliseconds; `None` if it is refused.
    #[must_use]
    pub fn claimed_at_ms(&self) -> Option<u64> {
        self.verdict.granted().then_some(self.moment.at_ms)
    }

    /// Milliseconds until the limit told of is full again as things stand, without this claim; `log` is what was decided on.
    #[must_use]
    pub fn reset_before_ms(&self, log: Option<&WindowLog>) -> u64 {
        self.verdict.reset_before_ms(log, self.moment)
    }
}
