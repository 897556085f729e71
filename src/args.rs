//! The one cursor over a command's arguments. It ends in [`Args::finish`]: nothing is ignored.

use keyguard_core::limit::MAX_UNITS;
use keyguard_core::names::StoreName;
use keyguard_core::{Error, Result, parse};

use crate::ffi::Name;

/// The arguments after the command's name, read from left to right.
pub struct Args<'c> {
    rest: std::slice::Iter<'c, Name<'c>>,
    usage: fn() -> &'static str,
}

impl<'c> Args<'c> {
    /// A cursor before the first of `arguments`; `usage` gives the command's grammar, for errors.
    pub fn new(arguments: &'c [Name<'c>], usage: fn() -> &'static str) -> Self {
        Self { rest: arguments.iter(), usage }
    }

    /// The next argument, as a name of a key too.
    pub fn name(&mut self) -> Result<Name<'c>> {
        self.rest.next().copied().ok_or(Error::Arity { usage: (self.usage)() })
    }

    /// The next argument.
    pub fn bytes(&mut self) -> Result<&'c [u8]> {
        Ok(self.name()?.bytes())
    }

    /// The next argument, without taking it.
    pub fn peek(&self) -> Option<&'c [u8]> {
        self.rest.as_slice().first().map(|name| name.bytes())
    }

    /// How many arguments are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next argument as the name of a store, and the key that carries its header.
    pub fn store(&mut self) -> Result<(StoreName<'c>, Name<'c>)> {
        let name = self.name()?;
        Ok((StoreName::parse(name.bytes())?, name))
    }

    /// The next argument as a whole number from 1 to `max`; `accepted` says so.
    pub fn positive(&mut self, what: &'static str, max: u64, accepted: &'static str) -> Result<u64> {
        let value = parse::unsigned(self.bytes()?);
        value.filter(|value| (1..=max).contains(value)).ok_or(Error::Invalid { what, accepted })
    }

    /// The next argument as a number of units, 1 to [`MAX_UNITS`].
    pub fn units(&mut self, what: &'static str) -> Result<u64> {
        self.positive(what, MAX_UNITS, "a whole number from 1 to 1000000000000")
    }

    /// The next argument as an id.
    pub fn id(&mut self) -> Result<u64> {
        parse::unsigned(self.bytes()?).ok_or(Error::Invalid { what: "id", accepted: "a whole number" })
    }

    /// Which of `options` comes next, whatever its case; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Syntax`] for any other word.
    pub fn option(&mut self, options: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(word) = self.rest.next() else { return Ok(None) };
        let word = word.bytes();
        let known = options.iter().find(|option| word.eq_ignore_ascii_case(option.as_bytes()));
        known.map(|option| Some(*option)).ok_or(Error::Syntax { usage: (self.usage)() })
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
    pub fn value(&mut self, option: &'static str) -> Result<&'c [u8]> {
        self.rest.next().map(|name| name.bytes()).ok_or(Error::MissingValue { option })
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
pub fn once<T>(slot: &mut Option<T>, option: &'static str, value: T) -> Result<()> {
    if slot.replace(value).is_some() { Err(Error::Repeated { option }) } else { Ok(()) }
}
