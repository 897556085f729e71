//! Address rules: which networks are kept out, and until when.
//!
//! IPv4-mapped IPv6 addresses are IPv4. A single IPv6 address stands for its /64, because whoever has one address of a /64 has all
//! of them: a rule against one would be walked round with the next.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::codec::{Reader, Writer as _};
use crate::error::{Error, Result};
use crate::names;
use crate::parse::{self, MAX_INSTANT_MS};

/// The longest reason of a rule, in bytes.
pub const MAX_REASON_BYTES: usize = 256;

/// How much of an IPv6 address tells one customer from another.
const V6_PREFIX_BITS: u8 = 64;

/// `::ffff:0:0/96`
const MAPPED_PREFIX_BITS: u8 = 96;

const VERSION: u8 = 1;
const V4: u8 = 0;
const V6: u8 = 1;

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
        let refused = Error::Invalid { what: "net", accepted: NETWORK };
        let Some(slash) = bytes.iter().position(|byte| *byte == b'/') else {
            return Address::parse(bytes).map(|address| address.net()).map_err(|_| refused);
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

/// Why a network is kept out, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unix milliseconds; at that instant it no longer holds. None is for good.
    pub until_ms: Option<u64>,
    /// In the operator's words, at most [`MAX_REASON_BYTES`]; empty when none was given.
    pub reason: String,
}

impl Rule {
    /// Whether it holds at this instant.
    #[must_use]
    pub const fn holds(&self, now_ms: u64) -> bool {
        match self.until_ms {
            Some(until_ms) => now_ms < until_ms,
            None => true,
        }
    }
}

/// The address rules of a store, at most one for each network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    v4: PrefixMap<Ipv4Net, Rule>,
    v6: PrefixMap<Ipv6Net, Rule>,
    /// What the reasons occupy, so that asking for the memory does not visit every rule.
    reason_bytes: usize,
}

impl Rules {
    /// No rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a network out. A rule that was there for the same network is replaced, and given back.
    ///
    /// # Errors
    /// [`Error::TooLong`] or [`Error::Invalid`] for a reason longer than [`MAX_REASON_BYTES`] or with control characters,
    /// [`Error::Invalid`] for an instant after the year 9999.
    pub fn block(&mut self, net: Net, mut rule: Rule) -> Result<Option<Rule>> {
        if !rule.reason.is_empty() {
            names::text(rule.reason.as_bytes(), "REASON", MAX_REASON_BYTES)?;
        }
        if rule.until_ms.is_some_and(|until_ms| until_ms > MAX_INSTANT_MS) {
            return Err(Error::Invalid { what: "UNTIL", accepted: "a time up to the year 9999" });
        }
        rule.reason.shrink_to_fit();
        self.reason_bytes += rule.reason.capacity();
        let replaced = match net.0 {
            IpNet::V4(net) => self.v4.insert(net, rule),
            IpNet::V6(net) => self.v6.insert(net, rule),
        };
        self.reason_bytes -= replaced.as_ref().map_or(0, |rule| rule.reason.capacity());
        Ok(replaced)
    }

    /// Takes the rule of exactly this network away. Whether there was one.
    pub fn unblock(&mut self, net: Net) -> bool {
        let removed = match net.0 {
            IpNet::V4(net) => self.v4.remove(&net),
            IpNet::V6(net) => self.v6.remove(&net),
        };
        self.reason_bytes -= removed.as_ref().map_or(0, |rule| rule.reason.capacity());
        removed.is_some()
    }

    /// The rule that keeps this address out now. Of several the one that lasts longest, of equals the narrowest.
    #[must_use]
    pub fn blocked(&self, address: Address, now_ms: u64) -> Option<(Net, &Rule)> {
        match address.0 {
            IpAddr::V4(address) => lasting(self.v4.cover(&address.into()), now_ms),
            IpAddr::V6(address) => lasting(self.v6.cover(&address.into()), now_ms),
        }
    }

    /// The rule of exactly this network, expired or not.
    #[must_use]
    pub fn rule(&self, net: Net) -> Option<&Rule> {
        match net.0 {
            IpNet::V4(net) => self.v4.get(&net),
            IpNet::V6(net) => self.v6.get(&net),
        }
    }

    /// All rules, expired ones included: IPv4 first, then by address, wider networks before those within.
    pub fn iter(&self) -> impl Iterator<Item = (Net, &Rule)> {
        let v4 = self.v4.iter().map(|(net, rule)| (Net(net.into()), rule));
        v4.chain(self.v6.iter().map(|(net, rule)| (Net(net.into()), rule)))
    }

    /// Removes the rules that no longer hold. How many there were.
    pub fn prune(&mut self, now_ms: u64) -> usize {
        let before = self.len();
        self.v4.retain(|_, rule| rule.holds(now_ms));
        self.v6.retain(|_, rule| rule.holds(now_ms));
        self.reason_bytes = self.iter().map(|(_, rule)| rule.reason.capacity()).sum();
        before - self.len()
    }

    /// How many rules there are, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the rules occupy, in bytes, the allocator's own overhead aside.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // Both maps count themselves, which are part of `Self`; the rest of it is one number.
        self.v4.mem_size() + self.v6.mem_size() + self.reason_bytes + size_of::<usize>()
    }

    /// The packed form: a version byte, then every rule in the order of [`iter`](Self::iter). Equal rules give equal bytes.
    ///
    /// A rule is 0 and 4 bytes of IPv4 or 1 and 16 bytes of IPv6, the prefix length, the instant as an option, the reason.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut packed = Vec::with_capacity(1 + self.v4.len() * 16 + self.v6.len() * 28);
        packed.push(VERSION);
        for (net, rule) in self.iter() {
            match net.0.addr() {
                IpAddr::V4(address) => {
                    packed.put_byte(V4);
                    packed.put_array(&address.octets());
                }
                IpAddr::V6(address) => {
                    packed.put_byte(V6);
                    packed.put_array(&address.octets());
                }
            }
            packed.put_byte(net.0.prefix_len());
            packed.put_option(rule.until_ms, Vec::put_varint);
            packed.put_text(&rule.reason);
        }
        packed
    }

    /// Reads the packed form, from any bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] unless [`encode`](Self::encode) can have written it, in this version.
    pub fn decode(packed: &[u8]) -> Result<Self> {
        let damaged = Error::Damaged { what: "address rules" };
        let Some((&VERSION, packed)) = packed.split_first() else { return Err(damaged) };
        let mut rest = Reader::new(packed);
        let mut rules = Self::new();
        let mut last = None;
        while !rest.is_empty() {
            let (net, rule) = read_rule(&mut rest).ok_or(damaged)?;
            // Only the one order is read, so that no network comes twice.
            if last.is_some_and(|last| last >= net) {
                return Err(damaged);
            }
            last = Some(net);
            rules.block(net, rule).map_err(|_| damaged)?;
        }
        Ok(rules)
    }
}

fn read_rule(rest: &mut Reader<'_>) -> Option<(Net, Rule)> {
    let address = match rest.byte()? {
        V4 => IpAddr::from(*rest.array::<4>()?),
        V6 => IpAddr::from(*rest.array::<16>()?),
        _ => return None,
    };
    // As `Net` has it: no host bits, and IPv4 as IPv4.
    let net = Net::new(address, rest.byte()?).filter(|net| net.0.addr() == address)?;
    let until_ms = rest.option(Reader::varint)?;
    // Looked at before it is copied.
    let reason = rest.text().filter(|reason| reason.len() <= MAX_REASON_BYTES)?.to_owned();
    Some((net, Rule { until_ms, reason }))
}

/// The covering rules come widest first, and `max_by_key` takes the last of equals.
fn lasting<'a, N: Into<IpNet>>(covering: impl Iterator<Item = (N, &'a Rule)>, now_ms: u64) -> Option<(Net, &'a Rule)> {
    covering
        .filter(|(_, rule)| rule.holds(now_ms))
        .max_by_key(|(_, rule)| rule.until_ms.unwrap_or(u64::MAX))
        .map(|(net, rule)| (Net(net.into()), rule))
}

fn v6_net(address: Ipv6Addr, prefix_bits: u8) -> Option<Ipv6Net> {
    Ipv6Net::new(address, prefix_bits).ok().map(|net| net.trunc())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes()).unwrap()
    }

    fn net(text: &str) -> Net {
        Net::parse(text.as_bytes()).unwrap()
    }

    fn rule(until_ms: Option<u64>) -> Rule {
        Rule { until_ms, reason: String::new() }
    }

    fn rules(rules: &[(&str, Option<u64>)]) -> Rules {
        let mut all = Rules::new();
        for (text, until_ms) in rules {
            all.block(net(text), rule(*until_ms)).unwrap();
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
            let found = nested.blocked(address(text), now_ms).map(|(net, _)| net.to_string());
            assert_eq!(found.as_deref(), expected, "{text} at {now_ms}");
        }
    }

    #[test]
    fn a_network_has_one_rule() {
        let mut all = rules(&[("10.0.0.0/8", Some(1))]);
        let reason = Rule { until_ms: None, reason: "scanner".to_owned() };
        assert_eq!(all.block(net("10.0.0.0/8"), reason.clone()), Ok(Some(rule(Some(1)))));
        assert_eq!((all.len(), all.rule(net("10.0.0.0/8"))), (1, Some(&reason)));
        assert!(!all.unblock(net("10.0.0.0/9")));
        assert!(all.unblock(net("10.0.0.0/8")));
        assert!(!all.unblock(net("10.0.0.0/8")));
        assert!(all.is_empty());
    }

    #[test]
    fn pruning_removes_what_no_longer_holds() {
        let mut all =
            rules(&[("10.0.0.0/8", Some(1)), ("10.0.0.1", Some(2)), ("::/64", Some(1)), ("2001:db8::", None)]);
        assert_eq!(all.prune(0), 0);
        assert_eq!(all.prune(1), 2);
        assert_eq!(all, rules(&[("10.0.0.1", Some(2)), ("2001:db8::", None)]));
        assert_eq!(all.prune(u64::MAX), 1);
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
            let rule = Rule { until_ms, reason: reason.to_owned() };
            assert_eq!(all.block(net("10.0.0.0/8"), rule).is_ok(), accepted, "{until_ms:?} {reason:?}");
        }
    }

    #[test]
    fn version_1_stays_as_it_was_released() {
        let mut all = rules(&[("2001:db8::7", None), ("10.0.0.0/8", Some(300))]);
        all.block(net("9.9.9.9"), Rule { until_ms: None, reason: "why".to_owned() }).unwrap();
        let mut expected = vec![1, 0, 9, 9, 9, 9, 32, 0, 3, b'w', b'h', b'y', 0, 10, 0, 0, 0, 8, 1, 0xac, 2, 0];
        expected.extend_from_slice(&[1, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]);
        assert_eq!(all.encode(), expected);
        assert_eq!(Rules::decode(&expected), Ok(all));
        assert_eq!(Rules::new().encode(), [1]);
    }

    #[test]
    fn damaged_rules_are_not_read() {
        let packed = |rules: &[&[u8]]| [&[1][..], &rules.concat()].concat();
        let (a, b): (&[u8], &[u8]) = (&[0, 9, 9, 9, 9, 32, 0, 0], &[0, 10, 0, 0, 0, 8, 0, 0]);
        let mapped = [&[1][..], &[0; 10], &[0xff, 0xff, 1, 2, 3, 4, 128, 0, 0]].concat();
        let too_long = [&[0, 9, 9, 9, 9, 32, 0, 0x81, 2][..], &[b'x'; 257]].concat();
        assert_eq!(Rules::decode(&packed(&[a, b])).unwrap().len(), 2);
        for bytes in [
            vec![],
            vec![0],
            vec![2],
            packed(&[b, a]),
            packed(&[a, a]),
            packed(&[a, &[0]]),
            packed(&[&a[..7]]),
            packed(&[&[0, 9, 9, 9, 9, 8, 0, 0]]),
            packed(&[&[0, 9, 9, 9, 9, 33, 0, 0]]),
            packed(&[&[2, 9, 9, 9, 9, 32, 0, 0]]),
            packed(&[&[0, 9, 9, 9, 9, 32, 2, 0]]),
            packed(&[&[0, 9, 9, 9, 9, 32, 0, 1, b'\n']]),
            packed(&[&[0, 9, 9, 9, 9, 32, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]]),
            packed(&[&mapped]),
            packed(&[&too_long]),
        ] {
            assert_eq!(Rules::decode(&bytes), Err(Error::Damaged { what: "address rules" }), "{bytes:?}");
        }
    }

    #[test]
    fn memory_grows_with_the_rules_and_their_reasons() {
        let mut all = Rules::new();
        let empty = all.memory_bytes();
        for n in 0..100_u8 {
            all.block(net(&format!("10.0.{n}.0/24")), Rule { until_ms: None, reason: "x".repeat(100) }).unwrap();
        }
        assert!(all.memory_bytes() > empty + 100 * 100);
        assert_eq!(all.reason_bytes, 100 * 100);
        for n in 0..100_u8 {
            assert!(all.unblock(net(&format!("10.0.{n}.0/24"))));
        }
        assert_eq!(all.reason_bytes, 0);
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

    proptest! {
        #[test]
        fn rules_agree_with_a_plain_list(
            steps in proptest::collection::vec((any_net(), 0..5_u8, proptest::option::of(0..10_u64)), 0..60), now_ms in 0..12_u64,
        ) {
            let mut all = Rules::new();
            let mut model: std::collections::BTreeMap<Net, Rule> = std::collections::BTreeMap::new();
            for (net, step, until_ms) in &steps {
                match step {
                    0 => prop_assert_eq!(all.unblock(*net), model.remove(net).is_some()),
                    1 => {
                        let before = model.len();
                        model.retain(|_, rule| rule.holds(until_ms.unwrap_or(0)));
                        prop_assert_eq!(all.prune(until_ms.unwrap_or(0)), before - model.len());
                    }
                    _ => {
                        let rule = Rule { until_ms: *until_ms, reason: "r".repeat(usize::from(*step)) };
                        prop_assert_eq!(all.block(*net, rule.clone()).unwrap(), model.insert(*net, rule));
                    }
                }
            }
            prop_assert_eq!(all.len(), model.len());
            prop_assert!(all.iter().map(|(net, rule)| (net, rule.clone())).eq(model.clone()));
            prop_assert_eq!(all.reason_bytes, model.values().map(|rule| rule.reason.capacity()).sum::<usize>());
            for (net, ..) in &steps {
                let address = Address(net.0.addr());
                let lasts = |rule: &Rule| rule.until_ms.unwrap_or(u64::MAX);
                let expected = model
                    .iter()
                    .filter(|(net, rule)| net.contains(&address) && rule.holds(now_ms))
                    .max_by_key(|(net, rule)| (lasts(rule), net.0.prefix_len()));
                prop_assert_eq!(all.blocked(address, now_ms), expected.map(|(net, rule)| (*net, rule)));
            }
            let packed = all.encode();
            prop_assert_eq!(&Rules::decode(&packed).unwrap(), &all);
            let copy = all.clone();
            drop(all);
            prop_assert_eq!(copy.encode(), packed);
        }

        #[test]
        fn decoding_and_parsing_are_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[0-9a-f:./%]{0,24}") {
            let _ = (Net::parse(&bytes), Address::parse(&bytes), Net::parse(text.as_bytes()), Address::parse(text.as_bytes()));
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            if let Ok(rules) = Rules::decode(&bytes) {
                prop_assert_eq!(Rules::decode(&rules.encode()).unwrap(), rules);
            }
        }

        #[test]
        fn a_changed_byte_never_breaks_decoding(nets in proptest::collection::vec(any_net(), 1..12), at: proptest::sample::Index, byte: u8) {
            let mut all = Rules::new();
            for net in nets {
                all.block(net, Rule { until_ms: Some(5), reason: "why".to_owned() }).unwrap();
            }
            let mut packed = all.encode();
            let at = at.index(packed.len());
            packed[at] = byte;
            if let Ok(rules) = Rules::decode(&packed) {
                prop_assert_eq!(Rules::decode(&rules.encode()).unwrap(), rules);
            }
        }
    }
}
