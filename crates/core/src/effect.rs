//! What a command changed in the native values, as one packed argument: what replicas and the append-only file get to see.
//!
//! An effect is absolute (instants, units, windows) and free of plaintext; applying it to the same state gives the same state,
//! whatever the clock of the machine says. Changes of hashes and strings travel as the server's own commands instead.
//!
//! The packed form is a version byte, then postcard. A release reads a new version before any release writes it.

use serde::{Deserialize, Serialize};

use crate::cooling::Cooling;
use crate::error::{Error, Result};
use crate::ip::{By, Kind, Rule, Strikes};
use crate::path::Path;
use crate::quota::Period;
use crate::usage::UsageBatch;

const VERSION: u8 = 1;

/// Room for a packed [`Effect::Claim`] or [`Effect::Lock`]: two bytes, then at most three numbers of at most ten.
pub const BUCKET_EFFECT_BYTES: usize = 32;

/// A change of one or more native values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect<'a> {
    /// A claim on the bucket that is the declared key.
    Claim(Claimed),
    /// Units given back to that bucket.
    Refund {
        /// How many there were to take back.
        units: u64,
        /// Of the claim at this instant, in unix milliseconds; else of the newest.
        at_ms: Option<u64>,
    },
    /// What an authenticated call cost, as version 0.1.0 told it: [`Effect::Admit`] took its place.
    Charge(#[serde(borrow)] Charges<'a>),
    /// A block of the store that is the declared key was set, as version 0.1.0 told it: [`Effect::SetRule`] took its place.
    Block {
        /// When, in unix milliseconds.
        at_ms: u64,
        /// The network, in text form.
        net: &'a str,
        /// When it ends, in unix milliseconds; None is never.
        until_ms: Option<u64>,
        /// Why, for people.
        reason: &'a str,
    },
    /// A block of that store was taken away, as version 0.1.0 told it: [`Effect::DropRule`] took its place.
    Unblock {
        /// The network, in text form.
        net: &'a str,
    },
    /// The whole value of the declared key, as its type encodes it: how an append-only file is rewritten.
    Whole {
        /// The value.
        value: WholeValue<'a>,
    },
    /// The bucket that is the declared key refuses every claim for a while.
    Lock {
        /// Since when, in unix milliseconds.
        at_ms: u64,
        /// Until when, in unix milliseconds.
        until_ms: u64,
    },
    /// A key of a pool is what its record says now. The declared key is the store, as in all effects on pools.
    Enroll {
        /// The name of the pool.
        pool: &'a str,
        /// The pool that it was in until now, if that is another one: its history comes along.
        from: Option<&'a str>,
        /// The key's id.
        id: u64,
        /// [`Traits`](crate::pool::Traits), packed.
        traits: &'a [u8],
    },
    /// Keys are in a pool no more.
    Withdraw {
        /// The name of the pool.
        pool: &'a str,
        /// Their ids.
        ids: Vec<u64>,
    },
    /// A key of a pool was handed out.
    HandOut(#[serde(borrow)] Handed<'a>),
    /// A key of a pool cools down, or does no more.
    Cool {
        /// The name of the pool.
        pool: &'a str,
        /// The key's id.
        id: u64,
        /// That it was throttled.
        cooling: Option<Cooling>,
    },
    /// What was claimed on a key of a pool is corrected.
    Settle {
        /// The name of the pool.
        pool: &'a str,
        /// The key's id.
        id: u64,
        /// The instant of the claim, in unix milliseconds.
        at_ms: u64,
        /// What stands on the key's own logs at that instant from now on.
        own: UnitClaims<'a>,
        /// The same of its account.
        account: Option<(&'a str, UnitClaims<'a>)>,
    },
    /// An API key was let in. The declared key is the store.
    Admit(#[serde(borrow)] Admitted<'a>),
    /// An address rule was set; of those that may be forgotten, some are gone. The declared key is the store, as in all effects on
    /// addresses.
    SetRule {
        /// When, in unix milliseconds.
        at_ms: u64,
        /// The network, in text form.
        net: &'a str,
        /// What it is: see [`Rule`](crate::ip::Rule).
        #[serde(borrow)]
        rule: RuleSet<'a>,
    },
    /// An address rule was taken away.
    DropRule {
        /// The network, in text form.
        net: &'a str,
        /// What it did.
        kind: Kind,
        /// Where; None is everywhere.
        path: Option<&'a str>,
    },
    /// An address claimed one unit.
    ClaimAddress {
        /// What it counts as, in text form.
        net: &'a str,
        /// Where; None is a claim that names no path.
        path: Option<&'a str>,
        /// The claim.
        claimed: Claimed,
    },
    /// What an address claimed, and what rules followed on it, is forgotten.
    ClearAddress {
        /// What it counts as, in text form.
        net: &'a str,
        /// Of this path alone; None is all.
        path: Option<&'a str>,
        /// The paths of the blocks that go with it; None is the one that holds everywhere.
        blocks: Vec<Option<&'a str>>,
    },
    /// What happened to a key of a pool is known from elsewhere: see [`Pool::recall`](crate::pool::Pool::recall).
    Recall {
        /// The name of the pool.
        pool: &'a str,
        /// The key's id.
        id: u64,
        /// What happened to it.
        remembered: &'a [u8],
    },
    /// Usage was counted and logged. The declared key is the store.
    Usage(#[serde(borrow)] UsageBatch<'a>),
}

/// What a call of an API key was charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted<'a> {
    /// The id of its record.
    pub id: u64,
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// Whether this use is written down in the record as the last.
    pub last_use: bool,
    /// What its record is charged.
    #[serde(borrow)]
    pub own: Charged<'a>,
    /// The name of its organization, and what that is charged.
    pub org: Option<(&'a str, Charged<'a>)>,
}

/// What one owner is charged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged<'a> {
    /// The claims on its logs.
    #[serde(borrow)]
    pub claims: UnitClaims<'a>,
    /// What is used of its quotas from now on: the period, the unit, until when in unix milliseconds, and how many units.
    pub quotas: Vec<(Period, &'a str, Option<u64>, u64)>,
}

impl Charged<'_> {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.quotas.is_empty()
    }
}

/// An address rule as an effect carries it: the fields are those of [`Rule`](crate::ip::Rule).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "they are documented there")]
pub struct RuleSet<'a> {
    pub kind: Kind,
    pub path: Option<&'a str>,
    pub until_ms: Option<u64>,
    pub reason: &'a str,
    pub by: By,
    pub strikes: Option<Strikes>,
}

impl<'a> RuleSet<'a> {
    /// Of a rule.
    #[must_use]
    pub fn of(rule: &'a Rule<'_>) -> Self {
        let Rule { kind, path, until_ms, reason, by, strikes } = rule;
        let path = path.as_ref().map(Path::as_str);
        Self { kind: *kind, path, until_ms: *until_ms, reason, by: *by, strikes: *strikes }
    }

    /// The rule.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there can be none of this path.
    pub fn rule(&self) -> Result<Rule<'a>> {
        let Self { kind, path, until_ms, reason, by, strikes } = *self;
        Ok(Rule { kind, path: path_of(path)?, until_ms, reason, by, strikes })
    }
}

/// A path that an effect carries.
///
/// # Errors
/// [`Error::Damaged`] if it is none of ours.
pub fn path_of(text: Option<&str>) -> Result<Option<Path<'_>>> {
    let path = |text| Path::from_canonical(text).ok_or(Error::Damaged { what: "effect" });
    text.map(path).transpose()
}

/// That a key of a pool was handed out: see [`HandOut`](crate::pool::HandOut).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed<'a> {
    /// The name of the pool.
    pub pool: &'a str,
    /// The key's id.
    pub id: u64,
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// The number of the hand-out in the pool.
    pub turn: u64,
    /// What a choice by weight noted.
    pub pass: Option<(u64, u64)>,
    /// The claims on the key's own logs.
    #[serde(borrow)]
    pub own: UnitClaims<'a>,
    /// The key's account, and the claims on the logs of that.
    pub account: Option<(&'a str, UnitClaims<'a>)>,
}

/// Units on several logs of one owner: the unit's name, how many, and the longest window that the claim names, in milliseconds.
pub type UnitClaims<'a> = Vec<(&'a str, u64, u64)>;

/// One claim on one window log: see [`WindowLog::push`](crate::window::WindowLog::push).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// When, in unix milliseconds.
    pub at_ms: u64,
    /// How many units.
    pub units: u64,
    /// The longest window that the claim named, in milliseconds.
    pub window_ms: u64,
}

impl Claimed {
    /// As postcard packs it, in 190 instructions less of some 11,400 for a claim, each of which packs one.
    fn encode_into(self, buffer: &mut [u8]) -> Option<&[u8]> {
        const CLAIM: u8 = 0;
        let room: &mut [u8; BUCKET_EFFECT_BYTES] = buffer.first_chunk_mut()?;
        let (mut len, mut bytes) = (0, room.iter_mut());
        let mut put = |byte| {
            len += 1;
            bytes.next().map(|place| *place = byte)
        };
        put(VERSION)?;
        put(CLAIM)?;
        for mut number in [self.at_ms, self.units, self.window_ms] {
            while number >= 0x80 {
                put(number as u8 | 0x80)?;
                number >>= 7;
            }
            put(number as u8)?;
        }
        room.get(..len)
    }
}

/// Whose hot state a charge belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner<'a> {
    /// The key record of this id.
    Key(u64),
    /// The organization of this name.
    Org(&'a str),
}

/// One claim on one unit of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge<'a> {
    /// Whose.
    #[serde(borrow)]
    pub owner: Owner<'a>,
    /// The unit's name.
    pub unit: &'a str,
    /// The claim.
    pub claimed: Claimed,
}

/// The charges of one call: the limits of a key and those of its organization.
pub type Charges<'a> = Vec<Charge<'a>>;

/// A native value as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WholeValue<'a> {
    /// [`WindowLog`](crate::window::WindowLog).
    Bucket(&'a [u8]),
    /// [`Meters`](crate::meters::Meters).
    Meters(&'a [u8]),
    /// [`Rules`](crate::ip::Rules).
    Rules(&'a [u8]),
    /// [`Pool`](crate::pool::Pool).
    Pool(&'a [u8]),
    /// [`AddressLogs`](crate::address::AddressLogs).
    Address(&'a [u8]),
    /// [`StoreStats`](crate::usage::StoreStats).
    Stats(&'a [u8]),
    /// [`KeyDays`](crate::usage::KeyDays).
    Days(&'a [u8]),
}

impl<'a> Effect<'a> {
    /// The packed form.
    ///
    /// # Errors
    /// [`Error::Internal`]: no effect of ours fails to pack.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(96);
        out.push(VERSION);
        postcard::to_extend(self, out).map_err(|_| Error::Internal)
    }

    /// The packed form, written into a buffer: a claim of any size fits [`BUCKET_EFFECT_BYTES`].
    ///
    /// # Errors
    /// [`Error::Internal`] if it does not fit.
    pub fn encode_into<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        if let Self::Claim(claimed) = self
            && buffer.len() >= BUCKET_EFFECT_BYTES
        {
            return claimed.encode_into(buffer).ok_or(Error::Internal);
        }
        let (version, rest) = buffer.split_first_mut().ok_or(Error::Internal)?;
        *version = VERSION;
        let len = 1 + postcard::to_slice(self, rest).map_err(|_| Error::Internal)?.len();
        buffer.get(..len).ok_or(Error::Internal)
    }

    /// Reads what [`encode`](Self::encode) wrote, in this version.
    ///
    /// # Errors
    /// [`Error::Damaged`] for any other bytes.
    pub fn decode(packed: &'a [u8]) -> Result<Self> {
        match packed.split_first() {
            Some((&VERSION, rest)) => {
                postcard::take_from_bytes(rest).ok().and_then(|(effect, rest)| rest.is_empty().then_some(effect))
            }
            _ => None,
        }
        .ok_or(Error::Damaged { what: "effect" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gate::Code;
    use crate::usage::{Counts, Row, Tally, Totals};

    const CLAIMED: Claimed = Claimed { at_ms: 1_800_000_000_000, units: 1, window_ms: 60_000 };

    #[test]
    fn every_effect_is_read_as_it_was_written() {
        let charge = |owner| Charge { owner, unit: "requests", claimed: CLAIMED };
        let effects = [
            Effect::Claim(CLAIMED),
            Effect::Refund { units: 3, at_ms: None },
            Effect::Refund { units: 3, at_ms: Some(5) },
            Effect::Charge([charge(Owner::Key(17)), charge(Owner::Org("acme"))].into_iter().collect()),
            Effect::Block { at_ms: 7, net: "192.0.2.7/32", until_ms: Some(1), reason: "scraping" },
            Effect::Unblock { net: "192.0.2.7/32" },
            Effect::Whole { value: WholeValue::Bucket(b"bytes") },
            Effect::Lock { at_ms: 7, until_ms: 9 },
            Effect::Whole { value: WholeValue::Pool(b"bytes") },
            Effect::Enroll { pool: "openai", from: Some("other"), id: 17, traits: b"bytes" },
            Effect::Withdraw { pool: "openai", ids: vec![17, 18] },
            Effect::HandOut(Handed {
                pool: "openai",
                id: 17,
                at_ms: 1_800_000_000_000,
                turn: 3,
                pass: Some((5, 4)),
                own: vec![("requests", 1, 60_000), ("tokens", 500, 60_000)],
                account: Some(("org", vec![("requests", 1, 1000)])),
            }),
            Effect::Cool { pool: "openai", id: 17, cooling: Some(Cooling { until_ms: 9, count: 1, throttled_ms: 8 }) },
            Effect::Settle {
                pool: "openai",
                id: 17,
                at_ms: 7,
                own: vec![("tokens", 480, 60_000)],
                account: Some(("org", vec![("tokens", 0, 60_000)])),
            },
            Effect::Admit(Admitted {
                id: 17,
                at_ms: 1_800_000_000_000,
                last_use: true,
                own: Charged {
                    claims: vec![("requests", 1, 60_000)],
                    quotas: vec![(Period::Day, "requests", Some(1_800_000_000_000), 3), (Period::Total, "x", None, 4)],
                },
                org: Some(("acme", Charged { claims: vec![("requests", 1, 1_000)], quotas: vec![] })),
            }),
            Effect::SetRule {
                at_ms: 7,
                net: "192.0.2.7",
                rule: RuleSet {
                    kind: Kind::Block,
                    path: Some("/login"),
                    until_ms: Some(9),
                    reason: "why",
                    by: By::Failures,
                    strikes: Some(Strikes { count: 2, until_ms: 11 }),
                },
            },
            Effect::DropRule { net: "192.0.2.7", kind: Kind::Allow, path: None },
            Effect::ClaimAddress { net: "192.0.2.7", path: Some("/login"), claimed: CLAIMED },
            Effect::ClearAddress { net: "2001:db8::/64", path: None, blocks: vec![None, Some("/login")] },
            Effect::Whole { value: WholeValue::Address(b"bytes") },
            Effect::Recall { pool: "openai", id: 17, remembered: b"bytes" },
            Effect::Whole { value: WholeValue::Stats(b"bytes") },
            Effect::Whole { value: WholeValue::Days(b"bytes") },
            Effect::Usage(UsageBatch {
                now_ms: 1_800_000_000_000,
                today: 20_833,
                totals: Some(Totals { logged: 3, ..Totals::default() }),
                minutes: vec![(30_000_000, Tally { requests: 3, ..Tally::default() })],
                hours: vec![(500_000, Tally { requests: 3, ..Tally::default() })],
                keys: vec![(17, Counts { requests: 3, ..Counts::default() }, vec![(20_833, Tally::default())])],
                gone: vec![18],
                rows: vec![
                    Row { at_ms: 1_800_000_000_000, seq: 1, id: 17, status: Some(200), ..Row::default() },
                    Row { code: Some(Code::NotFound), path: Some("/x"), ip: Some("192.0.2.7"), ..Row::default() },
                ],
                log_entries: Some(100),
                log_from: Some((1, 0)),
            }),
        ];
        for effect in effects {
            let packed = effect.encode().unwrap();
            assert_eq!(effect.encode_into(&mut [0; 512]), Ok(&packed[..]));
            assert_eq!(Effect::decode(&packed), Ok(effect));
            assert!(Effect::decode(packed.split_last().unwrap().1).is_err(), "cut short");
            assert!(Effect::decode(&[&packed[..], b"x"].concat()).is_err(), "something behind it");
        }
    }

    #[test]
    fn a_claim_is_a_few_bytes() {
        assert!(Effect::Claim(CLAIMED).encode().unwrap().len() <= 12);
        let largest = Claimed { at_ms: u64::MAX, units: u64::MAX, window_ms: u64::MAX };
        for claimed in [CLAIMED, largest, Claimed { at_ms: 0, units: 127, window_ms: 128 }] {
            let effect = Effect::Claim(claimed);
            let packed = effect.encode().unwrap();
            assert_eq!(effect.encode_into(&mut [0; BUCKET_EFFECT_BYTES]), Ok(&packed[..]), "as postcard packs it");
            assert_eq!(effect.encode_into(&mut vec![0; packed.len()]), Ok(&packed[..]), "where nothing more fits");
        }
    }

    #[test]
    fn bytes_of_another_version_are_refused() {
        assert!(Effect::decode(&[]).is_err());
        assert!(Effect::decode(&[2, 0, 1, 1, 1]).is_err());
    }
}
