//! The addresses that an API key may be used from.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::codec::Reader;
use crate::error::{Error, Result};
use crate::ip::{Address, Net};

/// The most networks of one record.
pub const MAX_ALLOWED: usize = 64;

/// What the first byte of an IPv6 network is, beside its prefix length.
const V6: u8 = 64;

/// Up to [`MAX_ALLOWED`] networks, kept packed: so a record is read without allocating. None at all stands for every address.
///
/// A network is a byte (its prefix length; for IPv6 64 more), then as many bytes of its address as the prefix reaches into.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed<'a>(Cow<'a, [u8]>);

impl<'a> Allowed<'a> {
    /// Adds a network; one that is there already changes nothing.
    ///
    /// # Errors
    /// [`Error::TooManyItems`].
    pub fn add(&mut self, net: Net) -> Result<()> {
        if self.iter().any(|other| other == net) {
            return Ok(());
        }
        if self.iter().count() >= MAX_ALLOWED {
            return Err(Error::TooManyItems { what: "ALLOW", max: MAX_ALLOWED });
        }
        let (address, prefix_bits) = net.parts();
        let reaches = usize::from(prefix_bits.div_ceil(8));
        let packed = self.0.to_mut();
        match address {
            IpAddr::V4(address) => {
                packed.push(prefix_bits);
                packed.extend(address.octets().iter().take(reaches));
            }
            IpAddr::V6(address) => {
                packed.push(V6 + prefix_bits);
                packed.extend(address.octets().iter().take(reaches));
            }
        }
        Ok(())
    }

    /// A list in its packed form; None for anything else.
    #[must_use]
    pub fn from_packed(packed: &'a [u8]) -> Option<Self> {
        let mut rest = Reader::new(packed);
        let mut count = 0;
        while !rest.is_empty() {
            next(&mut rest)?;
            count += 1;
        }
        (count <= MAX_ALLOWED).then_some(Self(Cow::Borrowed(packed)))
    }

    /// The packed form.
    #[must_use]
    pub fn as_packed(&self) -> &[u8] {
        &self.0
    }

    /// Whether no network is named, and so every address is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = Net> {
        let mut rest = Reader::new(&self.0);
        std::iter::from_fn(move || next(&mut rest))
    }

    /// Whether a call may come from here; one that does not say from where may not, if any network is named.
    #[must_use]
    pub fn admits(&self, address: Option<Address>) -> bool {
        self.is_empty() || address.is_some_and(|address| self.iter().any(|net| net.contains(&address)))
    }
}

fn next(rest: &mut Reader<'_>) -> Option<Net> {
    let first = rest.byte()?;
    if first <= 32 {
        return Net::new(IpAddr::from(Ipv4Addr::from(begun::<4>(rest, first)?)), first);
    }
    let prefix_bits = first.checked_sub(V6).filter(|prefix_bits| *prefix_bits <= 128)?;
    let address = IpAddr::from(Ipv6Addr::from(begun::<16>(rest, prefix_bits)?));
    // As `Net` has it: IPv4 stands as IPv4.
    Net::new(address, prefix_bits).filter(|net| net.parts().0 == address)
}

/// An address of which as many bytes are there as the prefix reaches into.
fn begun<const N: usize>(rest: &mut Reader<'_>, prefix_bits: u8) -> Option<[u8; N]> {
    let mut address = [0; N];
    for byte in address.iter_mut().take(usize::from(prefix_bits.div_ceil(8))) {
        *byte = rest.byte()?;
    }
    Some(address)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Net {
        Net::parse(text.as_bytes()).unwrap()
    }

    fn allowed(nets: &[&str]) -> Allowed<'static> {
        let mut allowed = Allowed::default();
        nets.iter().for_each(|text| allowed.add(net(text)).unwrap());
        allowed
    }

    #[test]
    fn who_is_in_one_of_the_networks_is_admitted() {
        let list = allowed(&["192.0.2.0/25", "198.51.100.7", "2001:db8::/33", "2001:db8:ffff::7/128"]);
        for (text, admitted) in [
            ("192.0.2.127", true),
            ("192.0.2.128", false),
            ("::ffff:192.0.2.1", true),
            ("198.51.100.7", true),
            ("198.51.100.8", false),
            ("2001:db8:7fff::1", true),
            ("2001:db8:8000::1", false),
            ("2001:db8:ffff::7", true),
            ("2001:db8:ffff::8", false),
        ] {
            assert_eq!(list.admits(Some(Address::parse(text.as_bytes()).unwrap())), admitted, "{text}");
        }
        assert!(!list.admits(None), "a call that hides its address");
        assert!(Allowed::default().admits(None));
        assert!(allowed(&["0.0.0.0/0"]).admits(Some(Address::parse(b"9.9.9.9").unwrap())));
    }

    #[test]
    fn a_network_stands_once_and_there_are_at_most_64() {
        let mut list = allowed(&["192.0.2.0/24", "192.0.2.0/24"]);
        assert_eq!(list.iter().count(), 1);
        for index in 1..MAX_ALLOWED {
            list.add(net(&format!("10.0.{index}.0/24"))).unwrap();
        }
        assert_eq!(list.add(net("192.0.2.0/24")), Ok(()));
        assert!(matches!(list.add(net("10.1.0.0/16")), Err(Error::TooManyItems { .. })));
    }

    #[test]
    fn a_network_takes_the_bytes_that_its_prefix_reaches_into() {
        for (text, packed) in [
            ("10.0.0.0/8", &[8, 10][..]),
            ("10.128.0.0/9", &[9, 10, 128]),
            ("0.0.0.0/0", &[0]),
            ("::/0", &[64]),
            ("2001:db8::/32", &[96, 0x20, 1, 0xd, 0xb8]),
        ] {
            assert_eq!(allowed(&[text]).as_packed(), packed, "{text}");
            assert_eq!(Allowed::from_packed(packed).unwrap().iter().next(), Some(net(text)));
        }
        let mapped = [&[64 + 128][..], &[0; 10], &[0xff, 0xff, 1, 2, 3, 4]].concat();
        for packed in [&[8][..], &[8, 10, 8], &[9, 10, 64], &[33, 0, 0, 0, 0, 0], &[193], &mapped, &[0; 65]] {
            assert_eq!(Allowed::from_packed(packed), None, "{packed:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_is_total_and_gives_what_was_written(packed in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(list) = Allowed::from_packed(&packed) {
                let mut again = Allowed::default();
                list.iter().for_each(|net| again.add(net).unwrap());
                let once: Vec<Net> = again.iter().collect();
                prop_assert!(list.iter().all(|net| once.contains(&net)));
            }
        }
    }
}
