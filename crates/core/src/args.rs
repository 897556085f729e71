//! The one cursor over a command's arguments. It ends in [`Args::finish`]: nothing is ignored.
//!
//! What an argument is, the caller says: a string object of the server, or plain bytes.

use crate::error::{Error, Result};
use crate::limit::{Limit, MAX_UNITS};
use crate::names::StoreName;
use crate::parse;

/// An argument of a command, which lives as long as the call.
pub trait Argument<'c>: Copy {
    /// Its bytes.
    fn bytes(self) -> &'c [u8];
}

impl<'c> Argument<'c> for &'c [u8] {
    fn bytes(self) -> &'c [u8] {
        self
    }
}

/// The arguments after the command's name, read from left to right.
pub struct Args<'c, A> {
    rest: std::slice::Iter<'c, A>,
    usage: fn() -> &'static str,
}

impl<'c, A: Argument<'c>> Args<'c, A> {
    /// A cursor before the first of `arguments`; `usage` gives the command's grammar, for errors.
    pub fn new(arguments: &'c [A], usage: fn() -> &'static str) -> Self {
        Self { rest: arguments.iter(), usage }
    }

    /// The next argument as it came: the server's own string, for the name of a key.
    ///
    /// # Errors
    /// [`Error::Arity`] if there is none, here and in all that take the next argument.
    pub fn name(&mut self) -> Result<A> {
        self.rest.next().copied().ok_or_else(|| Error::Arity { usage: (self.usage)() })
    }

    /// The next argument.
    ///
    /// # Errors
    /// As [`name`](Self::name).
    pub fn bytes(&mut self) -> Result<&'c [u8]> {
        Ok(self.name()?.bytes())
    }

    /// The next argument, without taking it.
    #[must_use]
    pub fn peek(&self) -> Option<&'c [u8]> {
        self.rest.as_slice().first().map(|argument| argument.bytes())
    }

    /// How many arguments are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next argument as the name of a store, and the key that carries its header.
    ///
    /// # Errors
    /// [`Error::BadStore`] if it is none.
    pub fn store(&mut self) -> Result<(StoreName<'c>, A)> {
        let name = self.name()?;
        Ok((StoreName::parse(name.bytes())?, name))
    }

    /// The next argument as a whole number from 1 to `max`; `accepted` says so.
    ///
    /// # Errors
    /// [`Error::Invalid`] for `what` if it is none.
    pub fn positive(&mut self, what: &'static str, max: u64, accepted: &'static str) -> Result<u64> {
        let value = parse::unsigned(self.bytes()?);
        value.filter(|value| (1..=max).contains(value)).ok_or(Error::Invalid { what, accepted })
    }

    /// The next argument as a number of units, 1 to [`MAX_UNITS`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for `what` if it is none.
    pub fn units(&mut self, what: &'static str) -> Result<u64> {
        self.positive(what, MAX_UNITS, "a whole number from 1 to 1000000000000")
    }

    /// The next argument as an id.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is none.
    pub fn id(&mut self) -> Result<u64> {
        parse::unsigned(self.bytes()?).ok_or(Error::Invalid { what: "id", accepted: "a whole number" })
    }

    /// The next two arguments, `count window`, as a limit.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they are none.
    pub fn limit(&mut self) -> Result<Limit> {
        let count = self.units("count")?;
        let window_ms = parse::duration_ms(self.bytes()?, "window")?;
        Limit::new(count, window_ms)
    }

    /// Which of `options` comes next, whatever its case; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Syntax`] for any other word.
    pub fn option(&mut self, options: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(word) = self.rest.next() else { return Ok(None) };
        let word = word.bytes();
        let known = options.iter().find(|option| word.eq_ignore_ascii_case(option.as_bytes()));
        known.map(|option| Some(*option)).ok_or_else(|| Error::Syntax { usage: (self.usage)() })
    }

    /// Takes the next argument if it is `word`, whatever its case.
    pub fn take_word(&mut self, word: &'static str) -> bool {
        let found = self.peek().is_some_and(|next| next.eq_ignore_ascii_case(word.as_bytes()));
        if found {
            self.rest.next();
        }
        found
    }

    /// The value of an option.
    ///
    /// # Errors
    /// [`Error::MissingValue`] if there is none.
    pub fn value(&mut self, option: &'static str) -> Result<&'c [u8]> {
        self.rest.next().map(|argument| argument.bytes()).ok_or(Error::MissingValue { option })
    }

    /// The value of COST: the units that a claim takes, 0 to [`MAX_UNITS`].
    ///
    /// # Errors
    /// [`Error::MissingValue`] or [`Error::Invalid`] if it is none.
    pub fn cost(&mut self) -> Result<u64> {
        parse::unsigned(self.value("COST")?)
            .filter(|cost| *cost <= MAX_UNITS)
            .ok_or(Error::Invalid { what: "COST", accepted: "a whole number from 0 to 1000000000000" })
    }

    /// What is answered to options that the grammar does not allow together.
    #[must_use]
    pub fn misuse(&self) -> Error {
        Error::Syntax { usage: (self.usage)() }
    }

    /// Says that all is read.
    ///
    /// # Errors
    /// [`Error::Arity`] if it is not.
    pub fn finish(self) -> Result<()> {
        if self.rest.len() == 0 { Ok(()) } else { Err(Error::Arity { usage: (self.usage)() }) }
    }
}

/// Sets an option that may be given once.
///
/// # Errors
/// [`Error::Repeated`] if it was set before.
pub fn once<T>(slot: &mut Option<T>, option: &'static str, value: T) -> Result<()> {
    if slot.replace(value).is_some() { Err(Error::Repeated { option }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: &str = "KG.TEST argument";
    const ARITY: Error = Error::Arity { usage: USAGE };
    const SYNTAX: Error = Error::Syntax { usage: USAGE };

    type Case<T> = (&'static [&'static [u8]], Result<T>, usize);

    /// What `read` makes of some arguments, and how many it leaves.
    fn check<T: PartialEq + std::fmt::Debug>(
        read: impl Fn(&mut Args<'static, &'static [u8]>) -> Result<T>,
        cases: &[Case<T>],
    ) {
        for (arguments, expected, left) in cases {
            let mut args = Args::new(arguments, || USAGE);
            assert_eq!(read(&mut args), *expected, "{arguments:?}");
            assert_eq!(args.left(), *left, "{arguments:?}");
        }
    }

    #[test]
    fn arguments_are_read_from_left_to_right_to_the_end() {
        check(
            |args| {
                Ok([args.peek() == Some(b"a"), args.bytes()? == b"a", args.peek() == Some(b""), args.name()? == b""])
            },
            &[
                (&[b"a", b""], Ok([true; 4]), 0),
                (&[b"a", b"", b"c"], Ok([true; 4]), 1),
                (&[b"a"], Err(ARITY), 0),
                (&[], Err(ARITY), 0),
            ],
        );
    }

    #[test]
    fn nothing_may_be_left_at_the_end() {
        let finish = |arguments: &[&[u8]]| Args::new(arguments, || USAGE).finish();
        assert_eq!(finish(&[]), Ok(()));
        assert_eq!(finish(&[b""]), Err(ARITY));
    }

    #[test]
    fn a_number_lies_in_its_range() {
        let accepted = "a whole number from 1 to 1000000000000";
        let units = || Err(Error::Invalid { what: "n", accepted });
        check(
            |args| args.units("n"),
            &[
                (&[b"1"], Ok(1), 0),
                (&[b"1000000000000", b"x"], Ok(MAX_UNITS), 1),
                (&[b"0"], units(), 0),
                (&[b"1000000000001"], units(), 0),
                (&[b"-1"], units(), 0),
                (&[b""], units(), 0),
                (&[], Err(ARITY), 0),
            ],
        );
        let invalid = Err(Error::Invalid { what: "id", accepted: "a whole number" });
        check(
            |args| args.id(),
            &[(&[b"0"], Ok(0), 0), (&[b"18446744073709551615"], Ok(u64::MAX), 0), (&[b"1x"], invalid, 0)],
        );
    }

    #[test]
    fn a_store_is_named_by_its_key() {
        check(
            |args| args.store().map(|(_, name)| name.len()),
            &[
                (&[b"acme", b"x"], Ok(4), 1),
                (&[b"{acme}"], Err(Error::BadStore), 0),
                (&[&[b'a'; 64]], Ok(64), 0),
                (&[&[b'a'; 65]], Err(Error::BadStore), 0),
                (&[], Err(ARITY), 0),
            ],
        );
    }

    #[test]
    fn a_limit_is_a_count_and_a_window() {
        check(
            |args| args.limit().map(|limit| (limit.count(), limit.window_ms())).map_err(|_| ARITY),
            &[
                (&[b"100", b"1m"], Ok((100, 60_000)), 0),
                (&[b"100", b"60", b"COST"], Ok((100, 60_000)), 1),
                (&[b"0", b"1m"], Err(ARITY), 1),
                (&[b"100", b"0"], Err(ARITY), 0),
                (&[b"100"], Err(ARITY), 0),
            ],
        );
    }

    #[test]
    fn an_option_is_one_of_those_offered_whatever_its_case() {
        check(
            |args| args.option(&["COST", "AT"]),
            &[
                (&[b"COST", b"1"], Ok(Some("COST")), 1),
                (&[b"aT"], Ok(Some("AT")), 0),
                (&[], Ok(None), 0),
                (&[b"COSTS"], Err(SYNTAX), 0),
                (&[b"COS"], Err(SYNTAX), 0),
                (&[b""], Err(SYNTAX), 0),
                (&[b"\xff"], Err(SYNTAX), 0),
            ],
        );
    }

    #[test]
    fn a_word_is_taken_only_if_it_comes_next() {
        check(
            |args| Ok(args.take_word("UNIT")),
            &[
                (&[b"unit", b"x"], Ok(true), 1),
                (&[b"x", b"UNIT"], Ok(false), 2),
                (&[b"UNITS"], Ok(false), 1),
                (&[], Ok(false), 0),
            ],
        );
    }

    #[test]
    fn an_option_has_a_value() {
        let missing = || Err(Error::MissingValue { option: "COST" });
        let invalid = || Err(Error::Invalid { what: "COST", accepted: "a whole number from 0 to 1000000000000" });
        check(
            |args| args.cost(),
            &[
                (&[b"0"], Ok(0), 0),
                (&[b"1000000000000", b"x"], Ok(MAX_UNITS), 1),
                (&[b"1000000000001"], invalid(), 0),
                (&[b"COST"], invalid(), 0),
                (&[], missing(), 0),
            ],
        );
        check(|args| args.value("COST").map(|value| value.len() as u64), &[(&[b""], Ok(0), 0), (&[], missing(), 0)]);
    }

    #[test]
    fn an_option_given_twice_is_an_error() {
        let mut slot = None;
        assert_eq!(once(&mut slot, "COST", 1), Ok(()));
        assert_eq!(once(&mut slot, "COST", 1), Err(Error::Repeated { option: "COST" }));
    }
}
