//! What 256 keys counted by days, packed: some three or four bytes for a day of a key.
//!
//! # Layout
//!
//! Of each key its totals and its newest day stand in front as plain numbers, so that counting within a day rewrites a few bytes in
//! place. The days before it follow as bits, the oldest first, and change once a day: how many days were left out before it, its
//! requests as the difference to the day before, its refusals, what was logged as the difference to its requests, and its errors.
//!
//! Each of these five is an exponential Golomb code: of a number, as many bits below its highest ones as numbers of its kind had
//! lately are written as they are, and what is above them in unary length and binary. So a key with ten calls a day takes as
//! little as one with a million takes what it needs, and a day that is out of the ordinary costs a few bits more.

use crate::codec::{Reader, Writer};
use crate::usage::{Counts, DAYS_KEPT, Tally, is_kept};

/// How many keys a value holds.
pub const KEYS: u64 = 256;

/// The most that a day counts: beyond it, it counts no further.
const MAX_OF_DAY: u64 = (1 << 48) - 1;

/// The first byte of [`KeyDays::encode`].
const FORMAT: u8 = 1;

/// Days with what they counted, in order; each counted something.
pub type Days = Vec<(u32, Tally)>;

/// What up to 256 keys counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyDays {
    /// In order of the ids.
    keys: Vec<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// The last eight bits of the id.
    low: u8,
    /// `totals (5 numbers), number of days, then if there are any: the newest day, what it counted (4 numbers), the bits of those
    /// before it`
    packed: Box<[u8]>,
}

/// The numbers before the bits.
struct Head {
    totals: Counts,
    /// How many days there are.
    days: u64,
    newest: Option<(u32, Tally)>,
}

impl Head {
    fn read(rest: &mut Reader<'_>) -> Option<Self> {
        let totals = Counts {
            requests: rest.varint()?,
            refused: rest.varint()?,
            logged: rest.varint()?,
            errors: rest.varint()?,
            latency_ms: rest.varint()?,
        };
        let days = rest.varint()?;
        let newest = if days > 0 { Some((u32::try_from(rest.varint()?).ok()?, read_tally(rest)?)) } else { None };
        Some(Self { totals, days, newest })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let Counts { requests, refused, logged, errors, latency_ms } = self.totals;
        [requests, refused, logged, errors, latency_ms, self.days]
            .into_iter()
            .for_each(|number| out.put_varint(number));
        if let Some((day, Tally { requests, refused, logged, errors })) = self.newest {
            out.put_varint(u64::from(day));
            [requests, refused, logged, errors].into_iter().for_each(|number| out.put_varint(number));
        }
    }
}

fn read_tally(rest: &mut Reader<'_>) -> Option<Tally> {
    let tally =
        Tally { requests: rest.varint()?, refused: rest.varint()?, logged: rest.varint()?, errors: rest.varint()? };
    fits(&tally).then_some(tally)
}

/// Whether a day can have counted this.
fn fits(tally: &Tally) -> bool {
    let Tally { requests, refused, logged, errors } = tally;
    *tally != Tally::default() && requests.max(refused).max(logged).max(errors) <= &MAX_OF_DAY
}

impl KeyDays {
    /// Adds to the totals of a key and to days of it; its number of requests in all from now on. Days that lie too far from `today`
    /// are forgotten whenever the days before the newest change.
    pub fn merge(&mut self, low: u8, totals: &Counts, days: &[(u32, Tally)], today: u32) -> u64 {
        let index = match self.keys.binary_search_by_key(&low, |key| key.low) {
            Ok(index) => index,
            Err(index) => {
                // Not twice as much room as there are keys: a value of 256 keys has its memory counted to the byte.
                if self.keys.len() == self.keys.capacity() {
                    self.keys.reserve_exact(4 + self.keys.len() / 8);
                }
                let mut packed = Vec::new();
                Head { totals: Counts::default(), days: 0, newest: None }.write(&mut packed);
                self.keys.insert(index, Key { low, packed: packed.into() });
                index
            }
        };
        let Some(key) = self.keys.get_mut(index) else { return 0 };
        key.merge(totals, days, today)
    }

    /// Forgets a key. Whether there was anything of it.
    pub fn forget(&mut self, low: u8) -> bool {
        let found = self.keys.binary_search_by_key(&low, |key| key.low);
        found.map(|index| self.keys.remove(index)).is_ok()
    }

    /// Whether there is anything of a key.
    #[must_use]
    pub fn has(&self, low: u8) -> bool {
        self.keys.binary_search_by_key(&low, |key| key.low).is_ok()
    }

    /// What a key counted in all.
    #[must_use]
    pub fn totals(&self, low: u8) -> Option<Counts> {
        let index = self.keys.binary_search_by_key(&low, |key| key.low).ok()?;
        Head::read(&mut Reader::new(&self.keys.get(index)?.packed)).map(|head| head.totals)
    }

    /// The days of a key, in order.
    #[must_use]
    pub fn days(&self, low: u8) -> Days {
        let found = self.keys.binary_search_by_key(&low, |key| key.low).ok();
        found.and_then(|index| self.keys.get(index)?.unpack()).map_or_else(Days::new, |(_, days)| days)
    }

    /// Of each key the last eight bits of its id, its totals and its days, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Counts, Days)> {
        self.keys.iter().filter_map(|key| key.unpack().map(|(totals, days)| (key.low, totals, days)))
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many separate allocations freeing costs.
    #[must_use]
    pub fn allocations(&self) -> usize {
        2 + self.keys.len()
    }

    /// Bytes of memory held, the struct itself included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let packed: usize = self.keys.iter().map(|key| key.packed.len()).sum();
        size_of::<Self>() + self.keys.capacity() * size_of::<Key>() + packed
    }

    /// The value as bytes that [`decode`](Self::decode) reads; equal values give equal bytes.
    ///
    /// `FORMAT, number of keys less one unless there are none (2 bytes, big-endian), then for each: low byte, length, packed`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&(self.keys.len() as u16).to_be_bytes());
        for key in &self.keys {
            out.put_byte(key.low);
            out.put_bytes(&key.packed);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for any other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FORMAT, high, low], rest) = bytes.split_first_chunk()? else { return None };
        let count = usize::from(u16::from_be_bytes([high, low]));
        let mut rest = Reader::new(rest);
        let mut all = Self::default();
        for _ in 0..count {
            let key = Key { low: rest.byte()?, packed: rest.bytes()?.into() };
            if all.keys.last().is_some_and(|last| last.low >= key.low) {
                return None;
            }
            key.unpack()?;
            all.keys.push(key);
        }
        all.keys.shrink_to_fit();
        rest.is_empty().then_some(all)
    }
}

impl Key {
    fn merge(&mut self, totals: &Counts, more: &[(u32, Tally)], today: u32) -> u64 {
        let mut rest = Reader::new(&self.packed);
        // What was checked when it was read, or written by us, can be read.
        let Some(mut head) = Head::read(&mut rest) else { return 0 };
        head.totals.add(totals);
        let requests = head.totals.requests;
        let mut packed = Vec::with_capacity(self.packed.len() + 16);
        match (&mut head.newest, more) {
            // By far the most: more of the day that is the newest.
            (_, more) if more.iter().all(|(_, tally)| *tally == Tally::default()) => {
                head.write(&mut packed);
                packed.extend_from_slice(rest.rest());
            }
            (Some((day, tally)), [(same, more)]) if day == same && is_kept(*day, today, DAYS_KEPT) => {
                add(tally, more);
                head.write(&mut packed);
                packed.extend_from_slice(rest.rest());
            }
            _ => {
                let mut days = self.unpack().map_or_else(Days::new, |(_, days)| days);
                for (day, tally) in more.iter().filter(|(_, tally)| *tally != Tally::default()) {
                    match days.binary_search_by_key(day, |(day, _)| *day) {
                        Ok(index) => _ = days.get_mut(index).map(|(_, of_day)| add(of_day, tally)),
                        Err(index) => {
                            let mut of_day = Tally::default();
                            add(&mut of_day, tally);
                            days.insert(index, (*day, of_day));
                        }
                    }
                }
                days.retain(|(day, _)| is_kept(*day, today, DAYS_KEPT));
                pack(&head.totals, &days, &mut packed);
            }
        }
        if packed.len() == self.packed.len() {
            self.packed.copy_from_slice(&packed);
        } else {
            self.packed = packed.into_boxed_slice();
        }
        requests
    }

    /// Totals and days; `None` where it is nothing that [`pack`] wrote.
    fn unpack(&self) -> Option<(Counts, Days)> {
        let mut rest = Reader::new(&self.packed);
        let head = Head::read(&mut rest)?;
        let Some((newest, tally)) = head.newest else {
            return rest.is_empty().then(|| (head.totals, Days::new()));
        };
        if head.days > u64::from(2 * DAYS_KEPT) {
            return None;
        }
        let mut days = Days::with_capacity(usize::try_from(head.days).ok()?);
        let (mut bits, mut model) = (Bits::new(rest.rest()), Model::default());
        for index in 1..head.days {
            // The first is told by how far it lies before the newest, the others by the gap that they follow.
            let day = match days.last() {
                None => newest.checked_sub(u32::try_from(model.gap.read(&mut bits)?).ok()?)?,
                Some((before, _)) => {
                    before.checked_add(u32::try_from(model.gap.read(&mut bits)?).ok()?)?.checked_add(1)?
                }
            };
            let tally = model.read(&mut bits)?;
            if !fits(&tally) || index == 1 && day >= newest {
                return None;
            }
            days.push((day, tally));
        }
        if days.last().is_some_and(|(day, _)| *day >= newest) || !bits.is_over() {
            return None;
        }
        days.push((newest, tally));
        Some((head.totals, days))
    }
}

/// Adds to a day, as far as it counts.
fn add(tally: &mut Tally, more: &Tally) {
    tally.add(more);
    let Tally { requests, refused, logged, errors } = tally;
    [requests, refused, logged, errors].into_iter().for_each(|count| *count = (*count).min(MAX_OF_DAY));
}

fn pack(totals: &Counts, days: &[(u32, Tally)], out: &mut Vec<u8>) {
    let (newest, before) = match days.split_last() {
        Some((newest, before)) => (Some(*newest), before),
        None => (None, days),
    };
    Head { totals: *totals, days: days.len() as u64, newest }.write(out);
    let (mut bits, mut model, mut last) = (BitsOut::new(out), Model::default(), None);
    for (day, tally) in before {
        let gap = match last {
            None => newest.map_or(0, |(newest, _)| newest - day),
            Some(last) => day - last - 1,
        };
        model.gap.write(&mut bits, u64::from(gap));
        model.write(&mut bits, tally);
        last = Some(*day);
    }
}

/// What the numbers of each kind were like lately.
#[derive(Default)]
struct Model {
    gap: Column,
    requests: Column,
    refused: Column,
    logged: Column,
    errors: Column,
    /// The requests of the day before.
    before: u64,
}

impl Model {
    fn write(&mut self, bits: &mut BitsOut<'_>, tally: &Tally) {
        let Tally { requests, refused, logged, errors } = *tally;
        self.requests.write(bits, zigzag(requests, self.before));
        self.refused.write(bits, refused);
        self.logged.write(bits, zigzag(logged, requests));
        self.errors.write(bits, errors);
        self.before = requests;
    }

    fn read(&mut self, bits: &mut Bits<'_>) -> Option<Tally> {
        let requests = unzigzag(self.requests.read(bits)?, self.before)?;
        self.before = requests;
        let refused = self.refused.read(bits)?;
        let logged = unzigzag(self.logged.read(bits)?, requests)?;
        Some(Tally { requests, refused, logged, errors: self.errors.read(bits)? })
    }
}

/// The difference of two counts of a day: small numbers for small ones of either sign.
fn zigzag(value: u64, from: u64) -> u64 {
    if value >= from { (value - from) << 1 } else { ((from - value) << 1) - 1 }
}

/// The count, unless none can be this far from the other.
fn unzigzag(code: u64, from: u64) -> Option<u64> {
    if code & 1 == 0 { from.checked_add(code >> 1) } else { from.checked_sub((code >> 1) + 1) }
}

/// Numbers of one kind.
#[derive(Default)]
struct Column {
    /// Sixteen times the mean of the last few.
    mean: u64,
}

impl Column {
    /// How many bits of the next number are written as they are.
    fn plain_bits(&self) -> u32 {
        (self.mean >> 4).checked_ilog2().unwrap_or(0)
    }

    fn note(&mut self, value: u64) {
        // No number that is written has more than 49 bits.
        self.mean = self.mean - (self.mean >> 3) + (value << 1);
    }

    fn write(&mut self, bits: &mut BitsOut<'_>, value: u64) {
        let plain = self.plain_bits();
        let high = (value >> plain) + 1;
        let more = high.ilog2();
        bits.put(0, more);
        bits.put(high, more + 1);
        bits.put(value, plain);
        self.note(value);
    }

    fn read(&mut self, bits: &mut Bits<'_>) -> Option<u64> {
        let plain = self.plain_bits();
        let more = bits.zeros()?;
        if more + plain > 49 {
            return None;
        }
        let high = bits.take(more + 1)?;
        let value = ((high - 1) << plain) | bits.take(plain)?;
        self.note(value);
        Some(value)
    }
}

/// Bits written to the end of a vector, highest first; the last byte is filled with zeros.
struct BitsOut<'v> {
    out: &'v mut Vec<u8>,
    /// How many bits of the last byte are free.
    free: u32,
}

impl<'v> BitsOut<'v> {
    fn new(out: &'v mut Vec<u8>) -> Self {
        Self { out, free: 0 }
    }

    /// Writes the lowest `count` bits of a number.
    fn put(&mut self, value: u64, mut count: u32) {
        while count > 0 {
            if self.free == 0 {
                self.out.push(0);
                self.free = 8;
            }
            let taken = count.min(self.free);
            count -= taken;
            self.free -= taken;
            let part = (value >> count) & ((1 << taken) - 1);
            if let Some(last) = self.out.last_mut() {
                *last |= (part as u8) << self.free;
            }
        }
    }
}

/// Bits that are read back.
struct Bits<'a> {
    bytes: &'a [u8],
    /// How many bits of the first byte are read.
    read: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, read: 0 }
    }

    /// As many zeros as come next, before a one.
    fn zeros(&mut self) -> Option<u32> {
        let mut zeros = 0;
        loop {
            let left = self.bytes.first()? << self.read;
            let here = left.leading_zeros().min(8 - self.read);
            zeros += here;
            self.skip(here);
            if left != 0 {
                return Some(zeros);
            }
            if zeros > 64 {
                return None;
            }
        }
    }

    fn take(&mut self, mut count: u32) -> Option<u64> {
        let mut value = 0;
        while count > 0 {
            let here = count.min(8 - self.read);
            let part = (self.bytes.first()? << self.read) >> (8 - here);
            value = value << here | u64::from(part);
            self.skip(here);
            count -= here;
        }
        Some(value)
    }

    fn skip(&mut self, bits: u32) {
        self.read += bits;
        if self.read == 8 {
            self.read = 0;
            self.bytes = self.bytes.get(1..).unwrap_or_default();
        }
    }

    /// Whether nothing is left but the zeros that fill the last byte.
    fn is_over(&self) -> bool {
        match self.bytes {
            [] => true,
            [last] => self.read > 0 && last << self.read == 0,
            _ => false,
        }
    }
}
