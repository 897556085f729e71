//! Reading and writing packed values: the few forms that records and address rules are made of.
//!
//! The forms are postcard's (varints of seven bits to a byte, least first; texts with their length before them; options as 0 or
//! 1), but every value has only one of them: postcard also reads numbers that are longer than they need be. What is damaged is
//! noticed field by field, before anything is copied.

use arrayvec::ArrayVec;

/// The unread rest of some packed bytes. Every method takes one value off its front, or gives None and makes no promise about
/// where it then stands. No bytes make it panic, and nothing is allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(packed: &'a [u8]) -> Self {
        Self(packed)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes that are not read.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(array)
    }

    /// Only the shortest form of a number, so that no value has two.
    #[inline]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if byte < 0x80 {
                let fits = (bits << shift) >> shift == bits;
                return (fits && bits != 0).then_some(value);
            }
        }
        None
    }

    #[inline]
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    #[inline]
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    /// Some(None) is an option that is not there.
    #[inline]
    pub(crate) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.byte()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    /// At most `N` values, their number before them.
    #[inline]
    pub(crate) fn list<T, const N: usize>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<ArrayVec<T, N>> {
        let count = self.varint()?;
        let mut list = ArrayVec::new();
        if count > N as u64 {
            return None;
        }
        for _ in 0..count {
            list.try_push(read(self)?).ok()?;
        }
        Some(list)
    }
}

/// What [`Reader`] reads, written to the end of a vector.
pub(crate) trait Writer {
    fn put_byte(&mut self, byte: u8);
    fn put_array(&mut self, array: &[u8]);

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_byte((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.put_byte(value as u8);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.put_array(bytes);
    }

    fn put_text(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }

    fn put_option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.put_byte(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }
}

impl Writer for Vec<u8> {
    fn put_byte(&mut self, byte: u8) {
        self.push(byte);
    }

    fn put_array(&mut self, array: &[u8]) {
        self.extend_from_slice(array);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_has_one_form() {
        let max: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        for (packed, expected) in [
            (&[0][..], Some(0)),
            (&[0x7f], Some(127)),
            (&[0x80, 1], Some(128)),
            (max, Some(u64::MAX)),
            (&[], None),
            (&[0x80], None),
            (&[0x80, 0], None),
            (&[0xff, 0x80, 0], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0], None),
        ] {
            assert_eq!(Reader::new(packed).varint(), expected, "{packed:?}");
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_not_followed() {
        for packed in [&[1][..], &[5, 1, 2, 3, 4], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0]] {
            assert_eq!(Reader::new(packed).bytes(), None, "{packed:?}");
        }
        assert_eq!(Reader::new(&[2, 0xff, 0xff]).text(), None);
        assert_eq!(Reader::new(&[2, 0]).option(|rest| rest.byte()), None);
        assert_eq!(Reader::new(&[3, 0, 0, 0]).list::<u8, 2>(|rest| rest.byte()), None);
        assert_eq!(Reader::new(&[2, 7, 8]).list::<u8, 2>(|rest| rest.byte()).unwrap().as_slice(), [7, 8]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_is_what_postcard_writes(number: u64, text: String, option: Option<u64>) {
            let mut packed = Vec::new();
            packed.put_varint(number);
            packed.put_text(&text);
            packed.put_option(option, Writer::put_varint);
            prop_assert_eq!(&packed, &postcard::to_allocvec(&(number, &text, option)).unwrap());
            let mut rest = Reader::new(&packed);
            prop_assert_eq!(rest.varint(), Some(number));
            prop_assert_eq!(rest.text(), Some(text.as_str()));
            prop_assert_eq!(rest.option(Reader::varint), Some(option));
            prop_assert!(rest.is_empty());
        }
    }
}
