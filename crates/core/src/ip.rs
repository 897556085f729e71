//! Address rules: which networks are kept out or let in, where, and until when.
//!
//! An allow rule beats every block. A rule may be for a path and all below it: then calls that name no path know nothing of it.
//!
//! IPv4-mapped IPv6 addresses are IPv4. A single IPv6 address that is kept out stands for its /64, because whoever has one address
//! of a /64 has all of them: a rule against one would be walked round with the next. One that is let in stands for itself alone: no
//! more is let in than was written.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::codec::{Reader, Writer as _};
use crate::error::{Error, Result};
use crate::names;
use crate::parse::{self, MAX_INSTANT_MS};
use crate::path::Path;

/// The longest reason of a rule, in bytes.
pub const MAX_REASON_BYTES: usize = 256;

/// How much of an IPv6 address tells one customer from another.
const V6_PREFIX_BITS: u8 = 64;

/// `::ffff:0:0/96`
const MAPPED_PREFIX_BITS: u8 = 96;

/// The most rules of a store.
pub const MAX_RULES: usize = 200_000;

/// The most rules of a store that were not made by hand: whoever has many addresses must not leave operators without room.
pub const MAX_AUTOMATIC: usize = 100_000;

/// The most rules of one network that are for a path. Those that hold everywhere, of which there is one of each kind, always have
/// room: nobody who is locked out of many paths may thereby escape a block everywhere.
pub const MAX_PATH_RULES: usize = 64;

/// The most of them that were not made by hand: whoever asks for many paths must not leave operators without room.
pub const MAX_AUTOMATIC_PATH_RULES: usize = 32;

/// The longest block for failures: 30 days.
pub const MAX_AUTOMATIC_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// How many networks of either family a change looks at to drop rules that may be forgotten. More than one, so that they become
/// fewer.
const SWEPT_AT_ONCE: usize = 16;

const VERSION: u8 = 2;

const NETWORK: &str = "an address such as 192.0.2.7 or 2001:db8::7, or a network whose host bits are zero such as 192.0.2.0/24 or 2001:db8::/32";

/// The address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// An address in text form, without a zone. An IPv4-mapped one gives IPv4.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let address = str::from_utf8(bytes).ok().and_then(|text| text.parse::<IpAddr>().ok());
        address
            .map(Self::from)
            .ok_or(Error::Invalid { what: "address", accepted: "an IPv4 or IPv6 address without a zone" })
    }

    /// What a failure of this address counts against: the address itself, or the /64 that it lies in.
    #[must_use]
    pub fn net(&self) -> Net {
        match self.0 {
            IpAddr::V4(address) => Net(Ipv4Net::from(address).into()),
            IpAddr::V6(address) => Net(v6_net(address, V6_PREFIX_BITS).map_or(IpNet::from(self.0), IpNet::from)),
        }
    }
}

/// An IPv4-mapped address becomes IPv4.
impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a rule covers: a network, its host bits zero.
///
/// A network that lies in `::ffff:0:0/96` is the IPv4 network. One that is wider (`::/0`) covers no IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net(IpNet);

impl Net {
    /// A network (`192.0.2.0/24`, `2001:db8::/32`) or an address: of IPv4 for itself, of IPv6 for its /64.
    ///
    /// # Errors
    /// [`Error::Invalid`]; also for a network with host bits set, where either the address or the length is a mistake.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::parse_with(bytes, |address| address.net())
    }

    /// As [`parse`](Self::parse), for what is let in: an address of either family stands for itself alone.
    ///
    /// # Errors
    /// As there.
    pub fn parse_allowed(bytes: &[u8]) -> Result<Self> {
        Self::parse_with(bytes, |address| Self(address.0.into()))
    }

    fn parse_with(bytes: &[u8], of_address: impl FnOnce(Address) -> Self) -> Result<Self> {
        let refused = Error::Invalid { what: "net", accepted: NETWORK };
        let Some(slash) = bytes.iter().position(|byte| *byte == b'/') else {
            return Address::parse(bytes).map(of_address).map_err(|_| refused);
        };
        let (address, length) = bytes.split_at_checked(slash).ok_or(refused)?;
        let address: IpAddr = str::from_utf8(address).ok().and_then(|text| text.parse().ok()).ok_or(refused)?;
        let length = length
            .split_first()
            .and_then(|(_, digits)| parse::unsigned(digits))
            .and_then(|length| u8::try_from(length).ok())
            .ok_or(refused)?;
        Self::new(address, length).ok_or(refused)
    }

    /// The network of an address and a prefix length; None if that is too long, or host bits are set.
    #[must_use]
    pub fn new(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        let (address, prefix_bits) = match address {
            IpAddr::V6(v6) if prefix_bits >= MAPPED_PREFIX_BITS => match v6.to_ipv4_mapped() {
                // A length over 128 stays over 32, and is refused.
                Some(v4) => (IpAddr::V4(v4), prefix_bits - MAPPED_PREFIX_BITS),
                None => (address, prefix_bits),
            },
            _ => (address, prefix_bits),
        };
        let net = IpNet::new(address, prefix_bits).ok()?;
        (net.network() == net.addr()).then_some(Self(net))
    }

    /// Its first address, and the length of its prefix in bits.
    pub(crate) fn parts(&self) -> (IpAddr, u8) {
        (self.0.addr(), self.0.prefix_len())
    }

    /// Whether it covers this address.
    #[must_use]
    pub fn contains(&self, address: &Address) -> bool {
        self.0.contains(&address.0)
    }
}

/// Canonical, and read back by [`Net::parse`]: a single IPv4 address without a length, everything else with it.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpNet::V4(net) if net.prefix_len() == 32 => net.addr().fmt(f),
            net => net.fmt(f),
        }
    }
}

/// What a rule does with those that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Lets them in, whatever blocks them.
    Allow,
    /// Keeps them out.
    Block,
}

impl Kind {
    /// As commands and replies write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
        }
    }
}

/// What made a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// An operator.
    Hand,
    /// A claim that was refused.
    Claims,
    /// Too many failed look-ups.
    Failures,
}

/// How often an address was blocked for its failures without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strikes {
    /// So often, at least once.
    pub count: u8,
    /// Remembered until then, in unix milliseconds: another block until that instant is the next in the row.
    pub until_ms: u64,
}

/// A rule of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<'a> {
    /// What it does.
    pub kind: Kind,
    /// Where: that path and all below it. None is everywhere.
    pub path: Option<Path<'a>>,
    /// Unix milliseconds; at that instant it no longer holds. None is for good.
    pub until_ms: Option<u64>,
    /// In the operator's words, at most [`MAX_REASON_BYTES`]; empty when none was given.
    pub reason: &'a str,
    /// What made it.
    pub by: By,
    /// What is remembered of blocks for failures: never with a rule made by hand.
    pub strikes: Option<Strikes>,
}

impl Rule<'_> {
    /// Whether it holds at this instant.
    #[must_use]
    pub const fn holds(&self, now_ms: u64) -> bool {
        match self.until_ms {
            Some(until_ms) => now_ms < until_ms,
            None => true,
        }
    }

    /// Milliseconds until it ends; None if it never does.
    #[must_use]
    pub fn left_ms(&self, now_ms: u64) -> Option<u64> {
        self.until_ms.map(|until_ms| until_ms.saturating_sub(now_ms))
    }

    /// # Errors
    /// [`Error::TooLong`] or [`Error::Invalid`] for a reason longer than [`MAX_REASON_BYTES`] or with control characters,
    /// [`Error::Invalid`] for an instant after the year 9999; [`Error::Internal`] for what no command of ours makes.
    fn check(&self) -> Result<()> {
        if !self.reason.is_empty() {
            names::text(self.reason.as_bytes(), "REASON", MAX_REASON_BYTES)?;
        }
        let remembered_ms = self.strikes.map(|strikes| strikes.until_ms);
        if self.until_ms.max(remembered_ms).is_some_and(|until_ms| until_ms > MAX_INSTANT_MS) {
            return Err(Error::Invalid { what: "UNTIL", accepted: "a time up to the year 9999" });
        }
        let sound = match self.by {
            By::Hand => self.strikes.is_none(),
            By::Claims | By::Failures => self.kind == Kind::Block && self.until_ms.is_some(),
        };
        if sound && self.strikes.is_none_or(|strikes| strikes.count > 0) { Ok(()) } else { Err(Error::Internal) }
    }
}

/// What the rules say of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing<'r> {
    /// An allow rule covers it: nothing keeps it out.
    Allowed(Net, Rule<'r>),
    /// It is kept out: of several rules by the one that lasts longest, of equals the narrowest.
    Blocked(Net, Rule<'r>),
    /// No rule that holds covers it.
    Neutral,
}

/// Where a rule stands among the others, in the order of [`Rules::after`]: what a page of a listing goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    net: Net,
    kind: Kind,
    path: Option<Path<'static>>,
}

impl Mark {
    /// That of a rule.
    #[must_use]
    pub fn of(net: Net, rule: &Rule<'_>) -> Self {
        Self { net, kind: rule.kind, path: rule.path.as_ref().map(Path::to_static) }
    }

    /// What [`Display`](fmt::Display) wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut parts = bytes.splitn(3, |byte| *byte == b',');
        let mut mark = || {
            let net = Net::parse(parts.next()?).ok()?;
            let kind = match parts.next()? {
                b"allow" => Kind::Allow,
                b"block" => Kind::Block,
                _ => return None,
            };
            let path = parts.next().map(|path| Path::parse(path).map(|path| path.to_static()));
            Some(Self { net, kind, path: path.transpose().ok()? })
        };
        mark().ok_or(Error::Invalid { what: "CURSOR", accepted: "0, or the cursor that the page before answered" })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.net, self.kind.as_str())?;
        self.path.iter().try_for_each(|path| write!(f, ",{path}"))
    }
}

/// The address rules of a store, at most one for each network, kind and path.
///
/// # How long they stay
///
/// A rule may be forgotten when it has ended and nothing is remembered of it. Every change drops some of those, first those that
/// may be forgotten the longest, so that no call has to look at all; which they are follows from the instant of the change alone,
/// so that replicas drop the same. Whoever asks is never told of a rule that has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    v4: Table<u32>,
    v6: Table<u128>,
    /// What paths and reasons occupy, so that asking for the memory does not visit every rule.
    text_bytes: usize,
    /// How many were not made by hand.
    automatic: usize,
}

impl Rules {
    /// No rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is room for a rule at this instant.
    ///
    /// # Errors
    /// [`Error::TooMany`] beyond [`MAX_RULES`], [`MAX_AUTOMATIC`], [`MAX_PATH_RULES`] or [`MAX_AUTOMATIC_PATH_RULES`]; what is
    /// wrong with the rule itself.
    pub fn accept(&self, net: Net, rule: &Rule<'_>, at_ms: u64) -> Result<()> {
        rule.check()?;
        if self.rule(net, rule.kind, rule.path.as_ref()).is_some() {
            return Ok(());
        }
        // Setting it makes room where one may be forgotten.
        let full = |max| if self.may_forget(at_ms) { usize::MAX } else { max };
        if self.len() >= full(MAX_RULES) {
            return Err(Error::TooMany { what: "address rules", max: MAX_RULES });
        }
        if rule.by != By::Hand && self.automatic >= full(MAX_AUTOMATIC) {
            return Err(Error::TooMany { what: "address rules that were not made by hand", max: MAX_AUTOMATIC });
        }
        if rule.path.is_none() {
            return Ok(());
        }
        let (kept, automatic) = match net.0 {
            IpNet::V4(net) => self.v4.kept_of_paths(v4_key(net), at_ms),
            IpNet::V6(net) => self.v6.kept_of_paths(v6_key(net), at_ms),
        };
        if kept >= MAX_PATH_RULES {
            return Err(Error::TooMany { what: "rules of one network for paths", max: MAX_PATH_RULES });
        }
        if rule.by != By::Hand && automatic >= MAX_AUTOMATIC_PATH_RULES {
            let what = "rules of one network for paths that were not made by hand";
            return Err(Error::TooMany { what, max: MAX_AUTOMATIC_PATH_RULES });
        }
        Ok(())
    }

    /// Sets a rule at this instant, in place of the one of the same network, kind and path, and drops some that may be forgotten.
    ///
    /// # Errors
    /// As [`accept`](Self::accept); then nothing changed.
    pub fn set(&mut self, net: Net, rule: &Rule<'_>, at_ms: u64) -> Result<()> {
        self.accept(net, rule, at_ms)?;
        self.sweep(at_ms);
        let held = Held::new(rule);
        let mut gone = Vec::new();
        match net.0 {
            IpNet::V4(net) => self.v4.set(v4_key(net), rule, held, at_ms, &mut gone),
            IpNet::V6(net) => self.v6.set(v6_key(net), rule, held, at_ms, &mut gone),
        }
        self.forgotten(&gone);
        self.text_bytes += rule.reason.len() + rule.path.as_ref().map_or(0, |path| path.as_str().len());
        self.automatic += usize::from(rule.by != By::Hand);
        Ok(())
    }

    /// Takes a rule away. Whether there was one.
    pub fn remove(&mut self, net: Net, kind: Kind, path: Option<&Path<'_>>) -> bool {
        let mut gone = Vec::new();
        match net.0 {
            IpNet::V4(net) => self.v4.remove(v4_key(net), kind, path, &mut gone),
            IpNet::V6(net) => self.v6.remove(v6_key(net), kind, path, &mut gone),
        }
        self.forgotten(&gone);
        !gone.is_empty()
    }

    /// Whether this address is let in, kept out, or neither. Without a path, only rules that hold everywhere are asked.
    ///
    /// One search for each length of prefix that any rule has.
    #[must_use]
    pub fn judge(&self, address: Address, path: Option<&Path<'_>>, now_ms: u64) -> Standing<'_> {
        match address.0 {
            IpAddr::V4(address) => self.v4.judge(address.to_bits(), path, now_ms),
            IpAddr::V6(address) => self.v6.judge(address.to_bits(), path, now_ms),
        }
    }

    /// The rule of exactly this network, kind and path, ended or not.
    #[must_use]
    pub fn rule(&self, net: Net, kind: Kind, path: Option<&Path<'_>>) -> Option<Rule<'_>> {
        self.of(net).into_iter().find(|rule| rule.kind == kind && rule.path.as_ref() == path)
    }

    /// All rules of exactly this network, ended or not.
    #[must_use]
    pub fn of(&self, net: Net) -> Vec<Rule<'_>> {
        match net.0 {
            IpNet::V4(net) => self.v4.of(v4_key(net)).map(view).collect(),
            IpNet::V6(net) => self.v6.of(v6_key(net)).map(view).collect(),
        }
    }

    /// All rules behind a mark, ended or not: IPv4 first, then by address, wider networks before those within, then allow before
    /// block, then everywhere before paths.
    pub fn after<'r>(&'r self, mark: Option<&Mark>) -> impl Iterator<Item = (Net, Rule<'r>)> + use<'r> {
        let (v4, v6) = match mark {
            None => (Some(None), None),
            Some(Mark { net: Net(IpNet::V4(net)), kind, path }) => {
                (Some(Some(place(v4_key(*net), *kind, path.as_ref()))), None)
            }
            Some(Mark { net: Net(IpNet::V6(net)), kind, path }) => {
                (None, Some(place(v6_key(*net), *kind, path.as_ref())))
            }
        };
        let v4 = v4.map(|start| self.v4.after(start)).into_iter().flatten();
        v4.chain(self.v6.after(v6))
    }

    /// All rules, as [`after`](Self::after) nothing.
    pub fn iter(&self) -> impl Iterator<Item = (Net, Rule<'_>)> {
        self.after(None)
    }

    /// The block that follows on too many failures of an address at this instant: for `first_ms` if it is the first, twice as long
    /// as that each further time while the one before is remembered, at most [`MAX_AUTOMATIC_MS`]. It is remembered after its
    /// end for as long as it lasted. None if the network is blocked for as long already, by hand, or for its failures.
    #[must_use]
    pub fn next_block(&self, net: Net, first_ms: u64, at_ms: u64) -> Option<Rule<'static>> {
        let before = self.rule(net, Kind::Block, None);
        let strikes = before.as_ref().and_then(|rule| rule.strikes).filter(|strikes| at_ms < strikes.until_ms);
        let count = strikes.map_or(1, |strikes| strikes.count.saturating_add(1));
        let factor = 1_u64.checked_shl(u32::from(count) - 1).unwrap_or(u64::MAX);
        let lasts_ms = first_ms.saturating_mul(factor).min(MAX_AUTOMATIC_MS);
        let until_ms = (at_ms + lasts_ms).min(MAX_INSTANT_MS);
        if before.is_some_and(|rule| {
            rule.holds(at_ms) && (rule.by != By::Claims || rule.until_ms.is_none_or(|until| until >= until_ms))
        }) {
            return None;
        }
        Some(Rule {
            kind: Kind::Block,
            path: None,
            until_ms: Some(until_ms),
            reason: "",
            by: By::Failures,
            strikes: Some(Strikes { count, until_ms: (until_ms + lasts_ms).min(MAX_INSTANT_MS) }),
        })
    }

    /// The lock-out that follows on a refused claim. What is remembered of blocks for failures stays so. None if a rule by hand
    /// is to hold there, or one that lasts as long.
    #[must_use]
    pub fn lock_out<'a>(&self, net: Net, path: Option<Path<'a>>, until_ms: u64, at_ms: u64) -> Option<Rule<'a>> {
        let before = self.rule(net, Kind::Block, path.as_ref());
        let strikes = before.as_ref().and_then(|rule| rule.strikes).filter(|strikes| at_ms < strikes.until_ms);
        if before.is_some_and(|rule| {
            rule.holds(at_ms) && (rule.by == By::Hand || rule.until_ms.is_none_or(|until| until >= until_ms))
        }) {
            return None;
        }
        Some(Rule { kind: Kind::Block, path, until_ms: Some(until_ms), reason: "", by: By::Claims, strikes })
    }

    fn may_forget(&self, at_ms: u64) -> bool {
        self.v4.next_to_forget().into_iter().chain(self.v6.next_to_forget()).any(|forget_ms| forget_ms <= at_ms)
    }

    fn sweep(&mut self, at_ms: u64) {
        let mut gone = Vec::new();
        self.v4.sweep(at_ms, SWEPT_AT_ONCE, &mut gone);
        self.v6.sweep(at_ms, SWEPT_AT_ONCE, &mut gone);
        self.forgotten(&gone);
    }

    fn forgotten(&mut self, gone: &[Gone]) {
        for gone in gone {
            self.text_bytes -= gone.text_bytes;
            self.automatic -= usize::from(gone.automatic);
        }
    }

    /// How many rules there are, those that ended included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.rules.len() + self.v6.rules.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many separate allocations freeing costs, about.
    #[must_use]
    pub fn allocations(&self) -> usize {
        // A leaf of the trees holds about eight rules; texts are counted as if they were short.
        self.len() / 4 + self.text_bytes / 16
    }

    /// What the rules occupy, in bytes, about: how full the leaves of the trees are is not known.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.v4.memory_bytes() + self.v6.memory_bytes() + self.text_bytes
    }

    /// The packed form: a version byte, then every rule in the order of [`iter`](Self::iter). Equal rules give equal bytes.
    ///
    /// A rule is a byte of flags; 4 bytes of IPv4 or 16 bytes of IPv6; the length of the prefix; and of what the flags tell of: the
    /// path; the instant that it ends at; the reason; how many strikes, and until when they are remembered.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (v4, v6) = (self.v4.rules.len() * 13, self.v6.rules.len() * 25);
        let mut packed = Vec::with_capacity(1 + v4 + v6 + self.text_bytes);
        packed.push(VERSION);
        for (net, rule) in self.iter() {
            let flag = |set, flag| if set { flag } else { 0 };
            let by = match rule.by {
                By::Hand => 0,
                By::Claims => flags::BY_CLAIMS,
                By::Failures => flags::BY_FAILURES,
            };
            packed.put_byte(
                flag(matches!(net.0, IpNet::V6(_)), flags::V6)
                    | flag(rule.kind == Kind::Block, flags::BLOCK)
                    | flag(rule.path.is_some(), flags::PATH)
                    | flag(rule.until_ms.is_some(), flags::UNTIL)
                    | flag(!rule.reason.is_empty(), flags::REASON)
                    | flag(rule.strikes.is_some(), flags::STRIKES)
                    | by,
            );
            match net.0.addr() {
                IpAddr::V4(address) => packed.put_array(&address.octets()),
                IpAddr::V6(address) => packed.put_array(&address.octets()),
            }
            packed.put_byte(net.0.prefix_len());
            rule.path.iter().for_each(|path| packed.put_text(path.as_str()));
            rule.until_ms.iter().for_each(|until_ms| packed.put_varint(*until_ms));
            if !rule.reason.is_empty() {
                packed.put_text(rule.reason);
            }
            if let Some(Strikes { count, until_ms }) = rule.strikes {
                packed.put_byte(count);
                packed.put_varint(until_ms);
            }
        }
        packed
    }

    /// Reads the packed form, from any bytes; also that of version 1, which knew blocks by hand and everywhere alone.
    ///
    /// # Errors
    /// [`Error::Damaged`] unless [`encode`](Self::encode) can have written it, in this version or that.
    pub fn decode(packed: &[u8]) -> Result<Self> {
        let damaged = Error::Damaged { what: "address rules" };
        let read = match packed.first() {
            Some(&1) => read_rule_1,
            Some(&VERSION) => read_rule,
            _ => return Err(damaged),
        };
        let mut rest = Reader::new(packed.get(1..).unwrap_or_default());
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut rules = Self::new();
        while !rest.is_empty() {
            let (net, rule) = read(&mut rest).filter(|(_, rule)| rule.check().is_ok()).ok_or(damaged)?;
            rules.text_bytes += rule.reason.len() + rule.path.as_ref().map_or(0, |path| path.as_str().len());
            rules.automatic += usize::from(rule.by != By::Hand);
            let held = Held::new(&rule);
            match net.0 {
                IpNet::V4(net) => v4.push((place(v4_key(net), rule.kind, rule.path.as_ref()), held)),
                IpNet::V6(net) => v6.push((place(v6_key(net), rule.kind, rule.path.as_ref()), held)),
            }
            // Only the one order is read, so that no rule comes twice.
            if v4.len() + v6.len() > MAX_RULES || (matches!(net.0, IpNet::V4(_)) && !v6.is_empty()) {
                return Err(damaged);
            }
        }
        rules.v4 = Table::build(v4).ok_or(damaged)?;
        rules.v6 = Table::build(v6).ok_or(damaged)?;
        Ok(rules)
    }
}

/// What the first byte of a packed rule tells of.
mod flags {
    pub(super) const V6: u8 = 1;
    pub(super) const BLOCK: u8 = 1 << 1;
    pub(super) const PATH: u8 = 1 << 2;
    pub(super) const UNTIL: u8 = 1 << 3;
    pub(super) const REASON: u8 = 1 << 4;
    pub(super) const STRIKES: u8 = 1 << 5;
    pub(super) const BY_CLAIMS: u8 = 1 << 6;
    pub(super) const BY_FAILURES: u8 = 1 << 7;
}

fn read_net(rest: &mut Reader<'_>, is_v6: bool) -> Option<Net> {
    let address = if is_v6 { IpAddr::from(*rest.array::<16>()?) } else { IpAddr::from(*rest.array::<4>()?) };
    // As `Net` has it: no host bits, and IPv4 as IPv4.
    Net::new(address, rest.byte()?).filter(|net| net.0.addr() == address)
}

fn read_rule<'a>(rest: &mut Reader<'a>) -> Option<(Net, Rule<'a>)> {
    let first = rest.byte()?;
    let has = |flag| first & flag != 0;
    let net = read_net(rest, has(flags::V6))?;
    let path = if has(flags::PATH) { Some(Path::from_canonical(rest.text()?)?) } else { None };
    let until_ms = if has(flags::UNTIL) { Some(rest.varint()?) } else { None };
    let reason = if has(flags::REASON) { rest.text().filter(|reason| !reason.is_empty())? } else { "" };
    let strikes =
        if has(flags::STRIKES) { Some(Strikes { count: rest.byte()?, until_ms: rest.varint()? }) } else { None };
    let by = match (has(flags::BY_CLAIMS), has(flags::BY_FAILURES)) {
        (false, false) => By::Hand,
        (true, false) => By::Claims,
        (false, true) => By::Failures,
        (true, true) => return None,
    };
    let kind = if has(flags::BLOCK) { Kind::Block } else { Kind::Allow };
    Some((net, Rule { kind, path, until_ms, reason, by, strikes }))
}

/// A rule of version 1: 0 and 4 bytes of IPv4 or 1 and 16 bytes of IPv6, the prefix length, the instant as an option, the reason.
fn read_rule_1<'a>(rest: &mut Reader<'a>) -> Option<(Net, Rule<'a>)> {
    let is_v6 = match rest.byte()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let net = read_net(rest, is_v6)?;
    let until_ms = rest.option(Reader::varint)?;
    let reason = rest.text()?;
    Some((net, Rule { kind: Kind::Block, path: None, until_ms, reason, by: By::Hand, strikes: None }))
}

/// The bits of an address of one family.
trait Bits: Copy + Ord {
    /// The first so many of them.
    fn masked(self, length: u8) -> Self;

    /// The network that begins here.
    fn net(self, length: u8) -> Option<Net>;

    /// What to make a hash of.
    fn folded(self) -> u64;
}

impl Bits for u32 {
    fn masked(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS.saturating_sub(u32::from(length))).unwrap_or(0)
    }

    fn net(self, length: u8) -> Option<Net> {
        Ipv4Net::new(Ipv4Addr::from_bits(self), length).ok().map(|net| Net(net.into()))
    }

    fn folded(self) -> u64 {
        u64::from(self)
    }
}

impl Bits for u128 {
    fn masked(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS.saturating_sub(u32::from(length))).unwrap_or(0)
    }

    fn net(self, length: u8) -> Option<Net> {
        Ipv6Net::new(Ipv6Addr::from_bits(self), length).ok().map(|net| Net(net.into()))
    }

    fn folded(self) -> u64 {
        (self >> 64) as u64 ^ (self as u64).rotate_left(21)
    }
}

fn v4_key(net: Ipv4Net) -> (u32, u8) {
    (net.addr().to_bits(), net.prefix_len())
}

fn v6_key(net: Ipv6Net) -> (u128, u8) {
    (net.addr().to_bits(), net.prefix_len())
}

/// Where a rule stands among those of its family: what there is one of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place<A> {
    start: A,
    length: u8,
    kind: Kind,
    path: Option<Box<str>>,
}

fn place<A: Bits>((start, length): (A, u8), kind: Kind, path: Option<&Path<'_>>) -> Place<A> {
    Place { start, length, kind, path: path.map(|path| path.as_str().into()) }
}

impl<A: Bits> Place<A> {
    fn key(&self) -> (A, u8) {
        (self.start, self.length)
    }

    fn applies(&self, asked: Option<&Path<'_>>) -> bool {
        match (&self.path, asked) {
            (None, _) => true,
            (Some(_), Some(asked)) if asked.leads_anywhere() => self.kind == Kind::Block,
            (Some(path), Some(asked)) => Path::trusted(path).covers(asked),
            (Some(_), None) => false,
        }
    }
}

/// The rest of a rule, in 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// [`FOR_GOOD`] or unix milliseconds.
    until_ms: u64,
    /// What made it in the lowest 8 bits, the strikes in the next 8, then the instant until which they are remembered, which has
    /// no more than 48.
    origin: u64,
    reason: Box<str>,
}

const FOR_GOOD: u64 = u64::MAX;

impl Held {
    /// Of a rule that was checked.
    fn new(rule: &Rule<'_>) -> Self {
        let by = match rule.by {
            By::Hand => 0,
            By::Claims => 1,
            By::Failures => 2,
        };
        let strikes = rule.strikes.map_or(0, |strikes| u64::from(strikes.count) | strikes.until_ms << 8);
        Self { until_ms: rule.until_ms.unwrap_or(FOR_GOOD), origin: by | strikes << 8, reason: rule.reason.into() }
    }

    fn by(&self) -> By {
        match self.origin as u8 {
            0 => By::Hand,
            1 => By::Claims,
            _ => By::Failures,
        }
    }

    fn strikes(&self) -> Option<Strikes> {
        let count = (self.origin >> 8) as u8;
        (count > 0).then_some(Strikes { count, until_ms: self.origin >> 16 })
    }

    /// When it may be forgotten; never if it holds for good.
    fn forget_ms(&self) -> Option<u64> {
        (self.until_ms != FOR_GOOD).then(|| self.until_ms.max(self.origin >> 16))
    }
}

fn view<'r, A>((place, held): (&'r Place<A>, &'r Held)) -> Rule<'r> {
    Rule {
        kind: place.kind,
        path: place.path.as_deref().map(Path::trusted),
        until_ms: (held.until_ms != FOR_GOOD).then_some(held.until_ms),
        reason: &held.reason,
        by: held.by(),
        strikes: held.strikes(),
    }
}

/// What is to be taken off the counts for a rule that went.
struct Gone {
    text_bytes: usize,
    automatic: bool,
}

/// Says of nearly every network that has no rule that it has none, without a search: with a hundred thousand rules of thirty prefix
/// lengths an address would else take thirty searches, each of some hundred nanoseconds.
///
/// It counts how many rules have a network of each hash; a count that once was full stays full. It grows with the rules and never
/// shrinks.
#[derive(Debug, Clone, Default)]
struct Filter(Vec<u8>);

impl Filter {
    /// How large it is for so many rules: 16 counts for each at first, 5 at the most rules that there may be. It grows seldom, because
    /// then every rule is counted again: at the last time 16,000, in half a millisecond.
    const fn size(rules: usize) -> usize {
        match rules {
            0..=64 => 0,
            65..1_024 => 1 << 14,
            1_024..16_384 => 1 << 17,
            _ => 1 << 20,
        }
    }

    fn count<A: Bits>(&mut self, key: (A, u8), by: i8) {
        if let Some(count) = self.index(key).and_then(|index| self.0.get_mut(index))
            && *count < u8::MAX
        {
            *count = count.saturating_add_signed(by);
        }
    }

    fn may_have<A: Bits>(&self, key: (A, u8)) -> bool {
        self.index(key).is_none_or(|index| self.0.get(index) != Some(&0))
    }

    fn index<A: Bits>(&self, (start, length): (A, u8)) -> Option<usize> {
        let mask = self.0.len().checked_sub(1)?;
        // Fibonacci hashing: the high bits of a product depend on all bits of a factor.
        let mixed = (start.folded() ^ u64::from(length).rotate_left(56)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some((mixed >> 32) as usize & mask)
    }
}

/// The rules of one family of addresses.
#[derive(Debug, Clone)]
struct Table<A> {
    rules: BTreeMap<Place<A>, Held>,
    /// Which networks have rules.
    filter: Filter,
    /// How many rules have a prefix of each length that there is.
    lengths: BTreeMap<u8, u32>,
    /// When networks have a rule that may be forgotten: in that order.
    ends: BTreeSet<(u64, A, u8)>,
}

/// Everything else follows from the rules.
impl<A: PartialEq> PartialEq for Table<A> {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl<A: Eq> Eq for Table<A> {}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self { rules: BTreeMap::new(), filter: Filter::default(), lengths: BTreeMap::new(), ends: BTreeSet::new() }
    }
}

impl<A: Bits> Table<A> {
    /// Of rules in their order, and None of others.
    fn build(rules: Vec<(Place<A>, Held)>) -> Option<Self> {
        let mut table = Self::default();
        let mut of_paths = 0;
        let mut last: Option<&Place<A>> = None;
        for (place, _) in &rules {
            let before = if last.is_some_and(|last| last.key() == place.key()) { of_paths } else { 0 };
            of_paths = before + usize::from(place.path.is_some());
            if last.is_some_and(|last| last >= place) || of_paths > MAX_PATH_RULES {
                return None;
            }
            last = Some(place);
            *table.lengths.entry(place.length).or_default() += 1;
        }
        let ends = rules.iter().filter_map(|(place, held)| Some((held.forget_ms()?, place.start, place.length)));
        table.ends = ends.collect();
        table.rules = rules.into_iter().collect();
        table.filter_again();
        Some(table)
    }

    /// Counts every rule anew, in a filter that is large enough.
    fn filter_again(&mut self) {
        self.filter = Filter(vec![0; Filter::size(self.rules.len())]);
        self.rules.keys().for_each(|place| self.filter.count(place.key(), 1));
    }

    fn judge(&self, address: A, path: Option<&Path<'_>>, now_ms: u64) -> Standing<'_> {
        let mut longest: Option<(&Place<A>, &Held)> = None;
        for length in self.lengths.keys().rev() {
            let key = (address.masked(*length), *length);
            if !self.filter.may_have(key) {
                continue;
            }
            for (place, held) in self.of(key) {
                if now_ms >= held.until_ms && held.until_ms != FOR_GOOD || !place.applies(path) {
                    continue;
                }
                if place.kind == Kind::Allow {
                    return told(place, held, Standing::Allowed);
                }
                if longest.is_none_or(|(_, longest)| longest.until_ms < held.until_ms) {
                    longest = Some((place, held));
                }
            }
        }
        longest.map_or(Standing::Neutral, |(place, held)| told(place, held, Standing::Blocked))
    }

    fn of(&self, (start, length): (A, u8)) -> impl Iterator<Item = (&Place<A>, &Held)> {
        let first = Place { start, length, kind: Kind::Allow, path: None };
        self.rules.range(first..).take_while(move |(place, _)| place.key() == (start, length))
    }

    /// How many rules of a network for paths may not be forgotten, and how many of those were not made by hand.
    fn kept_of_paths(&self, key: (A, u8), at_ms: u64) -> (usize, usize) {
        let kept = self
            .of(key)
            .filter(|(place, held)| place.path.is_some() && held.forget_ms().is_none_or(|forget_ms| forget_ms > at_ms));
        kept.fold((0, 0), |(kept, automatic), (_, held)| (kept + 1, automatic + usize::from(held.by() != By::Hand)))
    }

    fn after(&self, place: Option<Place<A>>) -> impl Iterator<Item = (Net, Rule<'_>)> + use<'_, A> {
        let start = place.map_or(Bound::Unbounded, Bound::Excluded);
        let rules = self.rules.range((start, Bound::Unbounded));
        rules.filter_map(|(place, held)| Some((place.start.net(place.length)?, view((place, held)))))
    }

    fn set(&mut self, key: (A, u8), rule: &Rule<'_>, held: Held, at_ms: u64, gone: &mut Vec<Gone>) {
        self.forget(key, at_ms, gone);
        self.remove(key, rule.kind, rule.path.as_ref(), gone);
        self.ends.extend(held.forget_ms().map(|forget_ms| (forget_ms, key.0, key.1)));
        *self.lengths.entry(key.1).or_default() += 1;
        self.rules.insert(place(key, rule.kind, rule.path.as_ref()), held);
        if Filter::size(self.rules.len()) > self.filter.0.len() {
            self.filter_again();
        } else {
            self.filter.count(key, 1);
        }
    }

    fn remove(&mut self, key: (A, u8), kind: Kind, path: Option<&Path<'_>>, gone: &mut Vec<Gone>) {
        let place = place(key, kind, path);
        let Some(held) = self.rules.remove(&place) else { return };
        self.filter.count(key, -1);
        if self.rules.is_empty() {
            self.filter = Filter::default();
        }
        gone.push(Gone {
            text_bytes: held.reason.len() + place.path.map_or(0, |path| path.len()),
            automatic: held.by() != By::Hand,
        });
        if let Entry::Occupied(mut count) = self.lengths.entry(key.1) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // Another rule of the network may end at the same instant.
        if let Some(forget_ms) = held.forget_ms()
            && !self.of(key).any(|(_, other)| other.forget_ms() == Some(forget_ms))
        {
            self.ends.remove(&(forget_ms, key.0, key.1));
        }
    }

    /// Drops the rules of a network that may be forgotten.
    fn forget(&mut self, key: (A, u8), at_ms: u64, gone: &mut Vec<Gone>) {
        let spent = self.of(key).filter(|(_, held)| held.forget_ms().is_some_and(|forget_ms| forget_ms <= at_ms));
        let spent: Vec<Place<A>> = spent.map(|(place, _)| place.clone()).collect();
        for place in spent {
            self.remove(key, place.kind, place.path.as_deref().map(Path::trusted).as_ref(), gone);
        }
    }

    /// Drops rules of some networks that may be forgotten.
    fn sweep(&mut self, at_ms: u64, networks: usize, gone: &mut Vec<Gone>) {
        for _ in 0..networks {
            match self.ends.first() {
                Some(&(forget_ms, start, length)) if forget_ms <= at_ms => self.forget((start, length), at_ms, gone),
                _ => break,
            }
        }
    }

    fn next_to_forget(&self) -> Option<u64> {
        self.ends.first().map(|(forget_ms, ..)| *forget_ms)
    }

    fn memory_bytes(&self) -> usize {
        // Leaves are between half and wholly full; what holds them together takes a tenth.
        let rules = self.rules.len() * size_of::<(Place<A>, Held)>() * 3 / 2;
        rules + self.ends.len() * size_of::<(u64, A, u8)>() * 3 / 2 + self.filter.0.len()
    }
}

fn told<'r, A: Bits>(
    place: &'r Place<A>,
    held: &'r Held,
    standing: impl FnOnce(Net, Rule<'r>) -> Standing<'r>,
) -> Standing<'r> {
    // A prefix is never longer than the address.
    place.start.net(place.length).map_or(Standing::Neutral, |net| standing(net, view((place, held))))
}

fn v6_net(address: Ipv6Addr, prefix_bits: u8) -> Option<Ipv6Net> {
    Ipv6Net::new(address, prefix_bits).ok().map(|net| net.trunc())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes()).unwrap()
    }

    fn net(text: &str) -> Net {
        Net::parse(text.as_bytes()).unwrap()
    }

    fn rule(until_ms: Option<u64>) -> Rule<'static> {
        Rule { kind: Kind::Block, path: None, until_ms, reason: "", by: By::Hand, strikes: None }
    }

    fn rules(rules: &[(&str, Option<u64>)]) -> Rules {
        let mut all = Rules::new();
        for (text, until_ms) in rules {
            all.set(net(text), &rule(*until_ms), 0).unwrap();
        }
        all
    }

    #[test]
    fn an_address_is_ipv4_or_ipv6_without_a_zone() {
        for (text, canonical) in [
            ("192.0.2.7", "192.0.2.7"),
            ("2001:DB8:0::7", "2001:db8::7"),
            ("::", "::"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::FFFF:c000:207", "192.0.2.7"),
            ("::192.0.2.7", "::c000:207"),
        ] {
            assert_eq!(address(text).to_string(), canonical, "{text}");
        }
        for text in [
            "",
            "192.0.2",
            "192.0.2.07",
            "192.0.2.256",
            "0x7f.1",
            "1.2.3.4:80",
            "[::1]",
            "fe80::1%eth0",
            "1.2.3.4/32",
            " ::1",
            "g::",
            "::1\0",
        ] {
            assert!(Address::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_net_reads_back_from_its_canonical_form() {
        for (text, canonical) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::7", "2001:db8::/64"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8::7/128", "2001:db8::7/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("2001:db8::/032", "2001:db8::/32"),
        ] {
            assert_eq!(net(text).to_string(), canonical, "{text}");
            assert_eq!(net(canonical), net(text), "{text}");
        }
        for text in [
            "",
            "/",
            "/24",
            "192.0.2.7/24",
            "192.0.2.1/0",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/-1",
            "192.0.2.0/+8",
            "192.0.2.0/255.255.255.0",
            "192.0.2.0/24/24",
            "192.0.2.0/24 ",
            "192.0.2.0/280",
            "192.0.2/24",
            "2001:db8::1/64",
            "2001:db8::/129",
            "::ffff:192.0.2.0/129",
            "::ffff:192.0.2.7/120",
            "::ffff:192.0.2.0/24",
            "fe80::%eth0/64",
            "example.com",
        ] {
            assert!(matches!(Net::parse(text.as_bytes()), Err(Error::Invalid { what: "net", .. })), "{text:?}");
        }
    }

    #[test]
    fn an_address_counts_as_itself_in_ipv4_and_as_its_64_in_ipv6() {
        for (text, expected) in
            [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1:2:3:4", "2001:db8::/64")]
        {
            assert_eq!(address(text).net().to_string(), expected);
            assert!(address(text).net().contains(&address(text)));
        }
    }

    #[test]
    fn of_several_rules_the_one_that_lasts_longest_answers() {
        let nested = rules(&[
            ("10.0.0.0/8", Some(100)),
            ("10.1.0.0/16", Some(300)),
            ("10.1.1.0/24", Some(200)),
            ("10.1.1.1", Some(300)),
            ("10.2.0.0/16", None),
            ("10.2.2.2", Some(1000)),
            ("2001:db8::/32", Some(100)),
            ("2001:db8::1", Some(50)),
        ]);
        for (text, now_ms, expected) in [
            ("10.9.9.9", 99, Some("10.0.0.0/8")),
            ("10.9.9.9", 100, None),
            ("10.1.9.9", 0, Some("10.1.0.0/16")),
            ("10.1.1.9", 250, Some("10.1.0.0/16")),
            // Equals: the narrowest says most.
            ("10.1.1.1", 0, Some("10.1.1.1")),
            ("10.1.1.1", 300, None),
            ("10.2.2.2", 0, Some("10.2.0.0/16")),
            ("10.2.2.2", u64::MAX, Some("10.2.0.0/16")),
            ("::ffff:10.9.9.9", 0, Some("10.0.0.0/8")),
            ("11.0.0.0", 0, None),
            ("2001:db8::ffff", 0, Some("2001:db8::/32")),
            ("2001:db8::ffff", 100, None),
            ("2001:db9::", 0, None),
            ("::10.9.9.9", 0, None),
        ] {
            let found = match nested.judge(address(text), None, now_ms) {
                Standing::Blocked(net, _) => Some(net.to_string()),
                standing => {
                    assert_eq!(standing, Standing::Neutral);
                    None
                }
            };
            assert_eq!(found.as_deref(), expected, "{text} at {now_ms}");
        }
    }

    #[test]
    fn an_allow_rule_beats_every_block() {
        for (allowed, blocked) in [("10.0.0.0/8", "10.1.1.1"), ("10.1.1.1", "10.0.0.0/8"), ("10.1.1.1", "10.1.1.1")] {
            let mut all = rules(&[(blocked, None)]);
            all.set(net(allowed), &Rule { kind: Kind::Allow, ..rule(Some(100)) }, 0).unwrap();
            let standing = all.judge(address("10.1.1.1"), None, 99);
            assert!(matches!(standing, Standing::Allowed(found, _) if found == net(allowed)), "{standing:?}");
            let standing = all.judge(address("10.1.1.1"), None, 100);
            assert!(matches!(standing, Standing::Blocked(found, _) if found == net(blocked)), "{standing:?}");
        }
    }

    #[test]
    fn a_request_whose_path_leads_anywhere_is_kept_out_by_every_block_and_allowed_by_none() {
        let mut all = Rules::new();
        let of =
            |kind, path: &'static str| Rule { kind, path: Some(Path::parse(path.as_bytes()).unwrap()), ..rule(None) };
        all.set(net("10.0.0.0/8"), &of(Kind::Block, "/admin"), 0).unwrap();
        all.set(net("10.0.0.0/8"), &of(Kind::Allow, "/open"), 0).unwrap();
        all.set(net("11.0.0.0/8"), &rule(None), 0).unwrap();
        all.set(net("11.0.0.0/8"), &of(Kind::Allow, "/"), 0).unwrap();
        let judged = |at, path: &'static [u8]| match all.judge(address(at), Some(&Path::of_request(path)), 0) {
            Standing::Allowed(..) => "allowed",
            Standing::Blocked(..) => "blocked",
            Standing::Neutral => "neutral",
        };
        let long: &[u8] = [&[b'/'; 2_000][..], b"x"].concat().leak();
        for odd in [&b""[..], b"x", b"/open/../admin", b"/open/./", b"/a\x1b", b"/\xff", long] {
            assert_eq!(
                (judged("10.1.1.1", odd), judged("11.1.1.1", odd), judged("12.1.1.1", odd)),
                ("blocked", "blocked", "neutral"),
                "{odd:?}"
            );
        }
        assert_eq!((judged("10.1.1.1", b"/open/x"), judged("11.1.1.1", b"/x")), ("allowed", "allowed"));
    }

    #[test]
    fn a_rule_for_a_path_covers_what_lies_below_it_alone() {
        let path = |text: &'static str| Path::parse(text.as_bytes()).unwrap();
        let mut all = Rules::new();
        all.set(net("10.0.0.0/8"), &Rule { path: Some(path("/api")), ..rule(None) }, 0).unwrap();
        all.set(net("10.0.0.1"), &Rule { kind: Kind::Allow, path: Some(path("/api/open")), ..rule(None) }, 0).unwrap();
        all.set(net("10.0.0.2"), &Rule { path: Some(path("/")), ..rule(None) }, 0).unwrap();
        for (text, asked, expected) in [
            ("10.0.0.9", Some("/api"), Some(Kind::Block)),
            ("10.0.0.9", Some("/api/x?y"), Some(Kind::Block)),
            ("10.0.0.9", Some("/apiary"), None),
            ("10.0.0.9", None, None),
            ("10.0.0.1", Some("/api/open/x"), Some(Kind::Allow)),
            ("10.0.0.1", Some("/api/opener"), Some(Kind::Block)),
            ("10.0.0.2", Some("/x"), Some(Kind::Block)),
            ("10.0.0.2", None, None),
        ] {
            let kind = match all.judge(address(text), asked.map(path).as_ref(), 0) {
                Standing::Allowed(_, rule) | Standing::Blocked(_, rule) => Some(rule.kind),
                Standing::Neutral => None,
            };
            assert_eq!(kind, expected, "{text} {asked:?}");
        }
    }

    #[test]
    fn a_network_has_one_rule_of_each_kind_and_path() {
        let mut all = rules(&[("10.0.0.0/8", Some(1))]);
        let reason = Rule { reason: "scanner", ..rule(None) };
        let path = Path::parse(b"/api").unwrap();
        let of_path = Rule { path: Some(path.clone()), ..rule(None) };
        let allow = Rule { kind: Kind::Allow, ..rule(None) };
        for rule in [&reason, &of_path, &allow, &reason] {
            all.set(net("10.0.0.0/8"), rule, 0).unwrap();
        }
        assert_eq!(all.of(net("10.0.0.0/8")), [allow, reason.clone(), of_path]);
        assert_eq!(all.rule(net("10.0.0.0/8"), Kind::Block, None), Some(reason));
        assert!(!all.remove(net("10.0.0.0/9"), Kind::Block, None));
        assert!(!all.remove(net("10.0.0.0/8"), Kind::Allow, Some(&path)));
        assert!(all.remove(net("10.0.0.0/8"), Kind::Block, None));
        assert!(all.remove(net("10.0.0.0/8"), Kind::Allow, None));
        assert!(all.remove(net("10.0.0.0/8"), Kind::Block, Some(&path)));
        assert_eq!(all, Rules::new());
    }

    #[test]
    fn each_automatic_block_doubles_while_the_one_before_is_remembered() {
        const HOUR: u64 = 3_600_000;
        let (at, first) = (net("192.0.2.7"), 24 * HOUR);
        let mut all = Rules::new();
        let mut now_ms = 1_800_000_000_000;
        for (count, hours) in [(1, 24), (2, 48), (3, 96), (4, 192), (5, 384), (6, 720), (7, 720)] {
            let block = all.next_block(at, first, now_ms).unwrap();
            let until_ms = now_ms + hours * HOUR;
            assert_eq!(block.until_ms, Some(until_ms), "block {count}");
            assert_eq!(block.strikes, Some(Strikes { count, until_ms: until_ms + hours * HOUR }));
            all.set(at, &block, now_ms).unwrap();
            assert_eq!(all.next_block(at, first, until_ms - 1), None, "it holds already");
            // The last instant at which it is remembered.
            now_ms = until_ms + hours * HOUR - 1;
            all.set(net("192.0.2.8"), &rule(Some(now_ms)), now_ms).unwrap();
            assert_eq!(Rules::decode(&all.encode()).unwrap(), all, "and so it is when it was saved");
        }
        let block = all.next_block(at, first, now_ms + 1).unwrap();
        assert_eq!((block.until_ms, block.strikes.unwrap().count), (Some(now_ms + 1 + first), 1), "it was forgotten");
        all.set(net("192.0.2.8"), &rule(None), now_ms + 1).unwrap();
        assert_eq!(all.rule(at, Kind::Block, None), None);
        now_ms += 1;
        for count in 1..=u8::MAX {
            let block = all.next_block(at, 1, now_ms).unwrap();
            assert_eq!(block.strikes.unwrap().count, count);
            now_ms = block.until_ms.unwrap();
            all.set(at, &block, now_ms).unwrap();
        }
        assert_eq!(all.next_block(at, 1, now_ms).unwrap().strikes.unwrap().count, u8::MAX, "it counts no further");
    }

    #[test]
    fn a_lock_out_keeps_what_is_remembered_and_never_undoes_what_an_operator_did() {
        let at = net("192.0.2.7");
        let mut all = Rules::new();
        all.set(at, &all.next_block(at, 10, 100).unwrap(), 100).unwrap();
        let lock = all.lock_out(at, None, 118, 111).unwrap();
        assert_eq!((lock.by, lock.strikes), (By::Claims, Some(Strikes { count: 1, until_ms: 120 })));
        all.set(at, &lock, 111).unwrap();
        assert_eq!(all.next_block(at, 10, 119).unwrap().strikes.unwrap().count, 2);
        assert_eq!(all.next_block(at, 10, 120).unwrap().strikes.unwrap().count, 1);
        assert_eq!(all.lock_out(at, None, 118, 112), None, "it lasts as long already");
        for until_ms in [None, Some(200)] {
            all.set(at, &rule(until_ms), 120).unwrap();
            assert_eq!((all.lock_out(at, None, 300, 150), all.next_block(at, 300, 150)), (None, None));
        }
        assert!(all.lock_out(at, None, 300, 200).is_some());
        assert!(all.lock_out(at, Some(Path::parse(b"/x").unwrap()), 300, 150).is_some());
    }

    #[test]
    fn a_change_drops_some_of_the_rules_that_ended() {
        let mut all = Rules::new();
        for n in 0..1_000_u32 {
            let at = Net::new(Ipv4Addr::from_bits(n).into(), 32).unwrap();
            all.set(at, &rule(Some(u64::from(n) + 1)), 0).unwrap();
        }
        all.set(net("2001:db8::"), &rule(Some(1)), 0).unwrap();
        all.set(net("9.9.9.9"), &rule(None), 500).unwrap();
        assert_eq!(all.len(), 1_001 - SWEPT_AT_ONCE);
        let mut last = all.len();
        while last > 1 {
            all.set(net("9.9.9.9"), &rule(None), 1_000).unwrap();
            assert!(all.len() < last);
            last = all.len();
        }
        assert_eq!(all, rules(&[("9.9.9.9", None)]));
    }

    #[test]
    fn there_is_room_for_so_many_rules_and_always_for_those_of_operators() {
        let at = |n: usize| Net::new(Ipv4Addr::from_bits(n as u32).into(), 32).unwrap();
        let mut all = Rules::new();
        for n in 0..MAX_AUTOMATIC {
            all.set(at(n), &all.lock_out(at(n), None, 100, 0).unwrap(), 0).unwrap();
        }
        let lock = all.lock_out(at(MAX_AUTOMATIC), None, 100, 0).unwrap();
        let full = |max| move |error| matches!(error, Error::TooMany { max: found, .. } if found == max);
        assert!(all.accept(at(MAX_AUTOMATIC), &lock, 0).is_err_and(full(MAX_AUTOMATIC)));
        assert_eq!(all.accept(at(0), &lock, 0), Ok(()), "in place of another");
        assert_eq!(all.accept(at(MAX_AUTOMATIC), &lock, 100), Ok(()), "when one has ended");
        for n in MAX_AUTOMATIC..MAX_RULES {
            all.set(at(n), &rule(Some(200)), 0).unwrap();
        }
        let before = all.encode();
        assert!(all.set(at(MAX_RULES), &rule(None), 99).is_err_and(full(MAX_RULES)));
        assert_eq!(all.encode(), before);
        assert_eq!(Rules::decode(&before).unwrap(), all);
        all.set(at(MAX_RULES), &rule(None), 100).unwrap();
        assert!(all.len() <= MAX_RULES);
        assert_eq!(Rules::decode(&all.encode()).unwrap(), all);
    }

    #[test]
    fn no_more_is_let_in_than_was_written() {
        for (text, kept_out, let_in) in [
            ("2001:db8::7", "2001:db8::/64", "2001:db8::7/128"),
            ("2001:db8::/48", "2001:db8::/48", "2001:db8::/48"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(Net::parse(text.as_bytes()).unwrap().to_string(), kept_out);
            let allowed = Net::parse_allowed(text.as_bytes()).unwrap();
            assert_eq!(allowed.to_string(), let_in);
            assert_eq!(Net::parse(let_in.as_bytes()), Ok(allowed), "as an effect carries it");
        }
        for text in ["", "2001:db8::7/64", "2001:db8::%eth0", "x"] {
            assert!(Net::parse_allowed(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_network_has_so_many_rules_for_paths_and_always_room_for_those_of_operators_and_everywhere() {
        let here = net("10.0.0.1");
        let names: Vec<String> = (0..=MAX_PATH_RULES).map(|n| format!("/{n}")).collect();
        let path = |n: usize| Path::parse(names[n].as_bytes()).ok();
        let full = |max| move |error| matches!(error, Error::TooMany { max: found, .. } if found == max);
        let mut all = Rules::new();
        for n in 0..MAX_AUTOMATIC_PATH_RULES {
            all.set(here, &all.lock_out(here, path(n), 10 + n as u64, 0).unwrap(), 0).unwrap();
        }
        let lock = all.lock_out(here, path(MAX_AUTOMATIC_PATH_RULES), 100, 0).unwrap();
        assert!(all.set(here, &lock, 9).is_err_and(full(MAX_AUTOMATIC_PATH_RULES)));
        assert_eq!(all.accept(net("10.0.0.2"), &lock, 9), Ok(()));
        assert_eq!(all.accept(here, &lock, 10), Ok(()), "one has ended");
        for n in MAX_AUTOMATIC_PATH_RULES..MAX_PATH_RULES {
            all.set(here, &Rule { path: path(n), ..rule(None) }, 0).unwrap();
        }
        let more = Rule { path: path(MAX_PATH_RULES), ..rule(None) };
        assert!(all.set(here, &more, 9).is_err_and(full(MAX_PATH_RULES)));
        // Whoever is locked out of that many paths is kept out everywhere all the same, and let in by an operator's word.
        let block = all.next_block(here, 1_000, 9).unwrap();
        for everywhere in [block, Rule { kind: Kind::Allow, ..rule(None) }] {
            all.set(here, &everywhere, 9).unwrap();
        }
        assert_eq!(all.of(here).len(), MAX_PATH_RULES + 2);
        assert_eq!(Rules::decode(&all.encode()).unwrap(), all);
        assert_eq!(all.set(here, &more, 10), Ok(()), "one has ended");
    }

    #[test]
    fn a_page_goes_on_where_the_one_before_ended_whatever_changed() {
        let mut all = rules(&[("9.9.9.9", None), ("10.0.0.0/8", None), ("10.0.0.1", None), ("2001:db8::", None)]);
        all.set(net("10.0.0.0/8"), &Rule { path: Path::parse(b"/a,b c").ok(), ..rule(None) }, 0).unwrap();
        all.set(net("10.0.0.0/8"), &Rule { kind: Kind::Allow, ..rule(None) }, 0).unwrap();
        let marks: Vec<Mark> = all.iter().map(|(net, rule)| Mark::of(net, &rule)).collect();
        let texts: Vec<String> = marks.iter().map(Mark::to_string).collect();
        let expected = [
            "9.9.9.9,block",
            "10.0.0.0/8,allow",
            "10.0.0.0/8,block",
            "10.0.0.0/8,block,/a,b c",
            "10.0.0.1,block",
            "2001:db8::/64,block",
        ];
        assert_eq!(texts, expected);
        for (index, mark) in marks.iter().enumerate() {
            assert_eq!(Mark::parse(texts[index].as_bytes()).as_ref(), Ok(mark));
            let mut changed = all.clone();
            changed.remove(mark.net, mark.kind, mark.path.as_ref());
            for all in [&all, &changed] {
                let rest: Vec<Mark> = all.after(Some(mark)).map(|(net, rule)| Mark::of(net, &rule)).collect();
                assert_eq!(rest, marks[index + 1..]);
            }
        }
        for bytes in [&b""[..], b"0", b"10.0.0.1", b"10.0.0.1,", b"10.0.0.1,BLOCK", b"x,block", b"10.0.0.1,block,x"] {
            assert!(matches!(Mark::parse(bytes), Err(Error::Invalid { what: "CURSOR", .. })), "{bytes:?}");
        }
    }

    #[test]
    fn a_reason_is_short_text_and_a_rule_ends_by_the_year_9999() {
        let mut all = Rules::new();
        let long = "x".repeat(MAX_REASON_BYTES);
        for (until_ms, reason, accepted) in [
            (None, "", true),
            (None, long.as_str(), true),
            (Some(MAX_INSTANT_MS), "", true),
            (None, &format!("{long}x"), false),
            (None, "a\nb", false),
            (Some(MAX_INSTANT_MS + 1), "", false),
        ] {
            let rule = Rule { reason, ..rule(until_ms) };
            assert_eq!(all.set(net("10.0.0.0/8"), &rule, 0).is_ok(), accepted, "{until_ms:?} {reason:?}");
        }
    }

    #[test]
    fn version_1_is_still_read() {
        let mut all = rules(&[("2001:db8::7", None), ("10.0.0.0/8", Some(300))]);
        all.set(net("9.9.9.9"), &Rule { reason: "why", ..rule(None) }, 0).unwrap();
        let mut packed = vec![1, 0, 9, 9, 9, 9, 32, 0, 3, b'w', b'h', b'y', 0, 10, 0, 0, 0, 8, 1, 0xac, 2, 0];
        packed.extend_from_slice(&[1, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]);
        assert_eq!(Rules::decode(&packed), Ok(all));
        assert_eq!(Rules::decode(&[1]), Ok(Rules::new()));
        for (bytes, why) in
            [(&[1, 2, 9, 9, 9, 9, 32, 0, 0][..], "no family"), (&[1, 0, 9, 9, 9, 9, 32, 2, 0], "no option")]
        {
            assert!(Rules::decode(bytes).is_err(), "{why}");
        }
    }

    #[test]
    fn version_2_stays_as_it_was_released() {
        let mut all = rules(&[("10.0.0.0/8", Some(300)), ("2001:db8::7", None)]);
        all.set(net("9.9.9.9"), &Rule { reason: "why", ..rule(None) }, 0).unwrap();
        let allow = Rule { kind: Kind::Allow, path: Path::parse(b"/a").ok(), ..rule(Some(5)) };
        all.set(net("9.9.9.9"), &allow, 0).unwrap();
        let strikes = Some(Strikes { count: 2, until_ms: 301 });
        let failed = Rule { by: By::Failures, strikes, ..rule(Some(300)) };
        all.set(net("10.0.0.1"), &failed, 0).unwrap();
        all.set(net("10.0.0.2"), &Rule { by: By::Claims, ..rule(Some(300)) }, 0).unwrap();
        let expected = [
            &[2][..],
            &[0b0000_1100, 9, 9, 9, 9, 32, 2, b'/', b'a', 5],
            &[0b0001_0010, 9, 9, 9, 9, 32, 3, b'w', b'h', b'y'],
            &[0b0000_1010, 10, 0, 0, 0, 8, 0xac, 2],
            &[0b1010_1010, 10, 0, 0, 1, 32, 0xac, 2, 2, 0xad, 2],
            &[0b0100_1010, 10, 0, 0, 2, 32, 0xac, 2],
            &[0b0000_0011, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64],
        ]
        .concat();
        assert_eq!(all.encode(), expected);
        assert_eq!(Rules::decode(&expected), Ok(all));
        assert_eq!(Rules::new().encode(), [2]);
    }

    #[test]
    fn damaged_rules_are_not_read() {
        let packed = |rules: &[&[u8]]| [&[2][..], &rules.concat()].concat();
        let (a, b): (&[u8], &[u8]) = (&[2, 9, 9, 9, 9, 32], &[2, 10, 0, 0, 0, 8]);
        let v6 = [&[3][..], &[0; 16], &[0]].concat();
        let mapped = [&[3][..], &[0; 10], &[0xff, 0xff, 1, 2, 3, 4, 128]].concat();
        let too_long = [&[0x12, 9, 9, 9, 9, 32, 0x81, 2][..], &[b'x'; 257]].concat();
        let too_many: Vec<Vec<u8>> = (0..=MAX_PATH_RULES)
            .map(|n| format!("/{n:03}"))
            .map(|path| [&[6, 9, 9, 9, 9, 32, 4][..], path.as_bytes()].concat())
            .collect();
        let too_many: Vec<&[u8]> = too_many.iter().map(Vec::as_slice).collect();
        assert_eq!(Rules::decode(&packed(&[a, b, &v6])).unwrap().len(), 3);
        assert_eq!(Rules::decode(&packed(&too_many[1..])).unwrap().len(), MAX_PATH_RULES);
        for bytes in [
            vec![],
            vec![0],
            vec![3],
            packed(&[b, a]),
            packed(&[a, a]),
            packed(&[&v6, a]),
            packed(&[a, &[0]]),
            packed(&[&a[..5]]),
            packed(&too_many),
            packed(&[&[2, 9, 9, 9, 9, 8]]),
            packed(&[&[2, 9, 9, 9, 9, 33]]),
            // An end that is missing, beyond the year 9999, or longer than need be.
            packed(&[&[0x0a, 9, 9, 9, 9, 32]]),
            packed(&[&[0x0a, 9, 9, 9, 9, 32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]),
            packed(&[&[0x0a, 9, 9, 9, 9, 32, 0x80, 0]]),
            // Reasons and paths that there cannot be.
            packed(&[&[0x12, 9, 9, 9, 9, 32, 0]]),
            packed(&[&[0x12, 9, 9, 9, 9, 32, 1, b'\n']]),
            packed(&[&[6, 9, 9, 9, 9, 32, 0]]),
            packed(&[&[6, 9, 9, 9, 9, 32, 2, b'/', b'/']]),
            packed(&[&[6, 9, 9, 9, 9, 32, 2, b'/', b'?']]),
            packed(&[&too_long]),
            // Made by claims and by failures; allowed by failures; for good by failures; remembered though made by hand; no strike.
            packed(&[&[0xca, 9, 9, 9, 9, 32, 1]]),
            packed(&[&[0x88, 9, 9, 9, 9, 32, 1]]),
            packed(&[&[0x82, 9, 9, 9, 9, 32]]),
            packed(&[&[0x2a, 9, 9, 9, 9, 32, 1, 1, 1]]),
            packed(&[&[0xaa, 9, 9, 9, 9, 32, 1, 0, 1]]),
            packed(&[&mapped]),
        ] {
            assert_eq!(Rules::decode(&bytes), Err(Error::Damaged { what: "address rules" }), "{bytes:?}");
        }
    }

    #[test]
    fn memory_grows_with_the_rules_and_their_texts() {
        let mut all = Rules::new();
        let empty = all.memory_bytes();
        let reason = "x".repeat(100);
        for n in 0..100_u8 {
            let at = net(&format!("10.0.{n}.0/24"));
            all.set(at, &Rule { reason: &reason, path: Path::parse(b"/abc").ok(), ..rule(None) }, 0).unwrap();
        }
        assert!(all.memory_bytes() > empty + 100 * 100);
        assert_eq!((all.text_bytes, Rules::decode(&all.encode()).unwrap().text_bytes), (100 * 104, 100 * 104));
        for n in 0..100_u8 {
            assert!(all.remove(net(&format!("10.0.{n}.0/24")), Kind::Block, Path::parse(b"/abc").ok().as_ref()));
        }
        assert_eq!((all.text_bytes, all.memory_bytes()), (0, empty));
    }

    /// Few bits that vary, so that networks nest and collide.
    fn any_net() -> impl Strategy<Value = Net> {
        let v4 = (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| {
            let address = Ipv4Addr::from(bits & 0xc100_0103);
            Net(Ipv4Net::new(address, length).unwrap().trunc().into())
        });
        let v6 = (any::<u128>(), 0..=128_u8).prop_map(|(bits, length)| {
            let address = Ipv6Addr::from(bits & 0xc000_0001_0000_0001_8000_0000_0000_0003);
            Net(Ipv6Net::new(address, length).unwrap().trunc().into())
        });
        prop_oneof![v4, v6]
    }

    const PATHS: [&str; 4] = ["/", "/a", "/a/b", "/ab"];

    fn any_path() -> impl Strategy<Value = Option<Path<'static>>> {
        prop_oneof![Just(None), (0..PATHS.len()).prop_map(|index| Path::parse(PATHS[index].as_bytes()).ok())]
    }

    fn any_rule() -> impl Strategy<Value = Rule<'static>> {
        let strikes = proptest::option::of((1..4_u8, 0..20_u64));
        (any_path(), proptest::option::of(0..10_u64), 0..4_u8, strikes).prop_map(|(path, until_ms, which, strikes)| {
            let strikes = strikes.map(|(count, until_ms)| Strikes { count, until_ms });
            match which {
                0 => Rule { kind: Kind::Allow, path, reason: "r", ..rule(until_ms) },
                1 => Rule { path, reason: "because", ..rule(until_ms) },
                2 => Rule { path, by: By::Claims, strikes, ..rule(until_ms.or(Some(4))) },
                _ => Rule { path, by: By::Failures, strikes, ..rule(until_ms.or(Some(4))) },
            }
        })
    }

    type Model = BTreeMap<(Net, Kind, Option<Path<'static>>), Rule<'static>>;

    #[test]
    fn many_rules_of_many_lengths_agree_with_a_plain_list() {
        let mut bits = 1_u32;
        let mut next = move || {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bits
        };
        let (mut all, mut model) = (Rules::new(), Vec::new());
        for n in 0..20_000 {
            // Networks of every length, and some that go again: past both sizes at which the filter grows.
            let length = [16, 18, 20, 22, 24, 25, 27, 28, 30, 31, 32][n % 11];
            let at = Net::new(Ipv4Addr::from_bits(next().masked(length)).into(), length).unwrap();
            if n % 7 == 6 {
                let gone = model.swap_remove(next() as usize % model.len());
                assert!(all.remove(gone, Kind::Block, None));
            }
            if !model.contains(&at) {
                all.set(at, &rule(None), 0).unwrap();
                model.push(at);
            }
            if n % 50 == 0 {
                // Half of them lie near a network that there is.
                let near = next() as usize % model.len();
                let (IpAddr::V4(near), _) = model[near].parts() else { panic!("IPv4") };
                for bits in [next(), near.to_bits(), near.to_bits() ^ 1, near.to_bits() ^ 0x100] {
                    let address = Address::from(IpAddr::V4(Ipv4Addr::from_bits(bits)));
                    let expected = model.iter().any(|net| net.contains(&address));
                    assert_eq!(all.judge(address, None, 0) != Standing::Neutral, expected, "{address} after {n}");
                }
            }
        }
        assert_eq!(Rules::decode(&all.encode()).as_ref(), Ok(&all));
    }

    proptest! {
        #[test]
        fn rules_agree_with_a_plain_list(
            steps in proptest::collection::vec((any_net(), any_rule(), 0..6_u8, 0..2_u64), 0..60),
            asked in any_path(),
            later_ms in 0..12_u64,
        ) {
            let mut all = Rules::new();
            let mut model = Model::new();
            let mut now_ms = 0;
            for (net, rule, step, passed_ms) in &steps {
                now_ms += passed_ms;
                let key = (*net, rule.kind, rule.path.clone());
                if *step == 0 {
                    prop_assert_eq!(all.remove(*net, rule.kind, rule.path.as_ref()), model.remove(&key).is_some());
                } else {
                    all.set(*net, rule, now_ms).unwrap();
                    model.insert(key.clone(), rule.clone());
                    // What the rules dropped beside may be forgotten, and all of what they kept was set.
                    let kept: Model = all.iter().map(|(net, rule)| (Mark::of(net, &rule), rule)).map(|(mark, rule)| {
                        let key = (mark.net, mark.kind, mark.path);
                        let known = model.get(&key).cloned().filter(|known| *known == rule).unwrap();
                        (key, known)
                    }).collect();
                    for (key, rule) in &model {
                        let forget_ms = rule.until_ms.map(|until| until.max(rule.strikes.map_or(0, |strikes| strikes.until_ms)));
                        prop_assert!(kept.contains_key(key) || forget_ms.is_some_and(|forget_ms| forget_ms <= now_ms));
                    }
                    prop_assert!(kept.contains_key(&key));
                    model = kept;
                }
            }
            prop_assert_eq!(all.len(), model.len());
            let in_order = all.iter().map(|(net, rule)| (net, rule.kind, rule.path.map(|path| path.to_static())));
            prop_assert!(in_order.eq(model.keys().cloned()));
            prop_assert_eq!(all.automatic, model.values().filter(|rule| rule.by != By::Hand).count());
            let texts = |rule: &Rule<'_>| rule.reason.len() + rule.path.as_ref().map_or(0, |path| path.as_str().len());
            prop_assert_eq!(all.text_bytes, model.values().map(texts).sum::<usize>());
            for (net, ..) in &steps {
                for at_ms in [now_ms, now_ms + later_ms] {
                    let address = Address(net.0.addr());
                    let applies = |rule: &Rule<'_>| match (&rule.path, &asked) {
                        (None, _) => true,
                        (Some(path), Some(asked)) => path.covers(asked),
                        (Some(_), None) => false,
                    };
                    let covering: Vec<_> = model
                        .iter()
                        .filter(|((net, ..), rule)| net.contains(&address) && rule.holds(at_ms) && applies(rule))
                        .collect();
                    let lasts = |rule: &Rule<'_>| rule.until_ms.unwrap_or(u64::MAX);
                    match all.judge(address, asked.as_ref(), at_ms) {
                        Standing::Allowed(net, rule) => {
                            let key = (net, Kind::Allow, rule.path.as_ref().map(Path::to_static));
                            prop_assert!(covering.iter().any(|(found, model)| **found == key && **model == rule));
                        }
                        Standing::Blocked(net, rule) => {
                            prop_assert!(covering.iter().all(|(_, model)| model.kind == Kind::Block));
                            let longest = covering.iter().map(|((net, ..), rule)| (lasts(rule), net.0.prefix_len())).max();
                            prop_assert_eq!(Some((lasts(&rule), net.0.prefix_len())), longest);
                            let key = (net, Kind::Block, rule.path.as_ref().map(Path::to_static));
                            prop_assert!(covering.iter().any(|(found, model)| **found == key && **model == rule));
                        }
                        Standing::Neutral => prop_assert!(covering.is_empty()),
                    }
                }
            }
            let packed = all.encode();
            prop_assert_eq!(&Rules::decode(&packed).unwrap(), &all);
            let copy = all.clone();
            drop(all);
            prop_assert_eq!(copy.encode(), packed);
        }

        #[test]
        fn decoding_and_parsing_are_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[0-9a-f:./%,]{0,24}") {
            let _ = (Net::parse(&bytes), Address::parse(&bytes), Net::parse(text.as_bytes()), Address::parse(text.as_bytes()));
            let _ = (Mark::parse(&bytes), Mark::parse(text.as_bytes()));
            for version in [1, VERSION] {
                if let Some(first) = bytes.first_mut() {
                    *first = version;
                }
                if let Ok(rules) = Rules::decode(&bytes) {
                    prop_assert_eq!(Rules::decode(&rules.encode()).unwrap(), rules);
                }
            }
        }

        #[test]
        fn a_changed_byte_never_breaks_decoding(
            nets in proptest::collection::vec((any_net(), any_rule()), 1..12), at: proptest::sample::Index, byte: u8,
        ) {
            let mut all = Rules::new();
            for (net, rule) in &nets {
                all.set(*net, rule, 0).unwrap();
            }
            let mut packed = all.encode();
            let at = at.index(packed.len());
            packed[at] = byte;
            if let Ok(rules) = Rules::decode(&packed) {
                let again = rules.encode();
                prop_assert!(packed[0] == 1 || again == packed, "rules have one form");
                prop_assert_eq!(Rules::decode(&again).unwrap(), rules);
            }
        }
    }
}
