//! A command of the module in the making, from options of the command line.

use redis::{Cmd, ToRedisArgs};

/// A command of the module; each call adds words to its end.
#[derive(Debug)]
pub struct Request(Cmd);

impl Request {
    /// The command of that name, without arguments so far.
    pub fn new(name: &str) -> Self {
        Self(redis::cmd(name))
    }

    /// One argument.
    pub fn word(mut self, word: impl ToRedisArgs) -> Self {
        self.0.arg(word);
        self
    }

    /// Arguments one after the other.
    pub fn words<T: ToRedisArgs>(self, words: impl IntoIterator<Item = T>) -> Self {
        words.into_iter().fold(self, Self::word)
    }

    /// `NAME value`, if there is a value.
    pub fn option(self, name: &str, value: Option<impl ToRedisArgs>) -> Self {
        match value {
            Some(value) => self.word(name).word(value),
            None => self,
        }
    }

    /// `NAME value` for each.
    pub fn each<T: ToRedisArgs>(self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        values.into_iter().fold(self, |request, value| request.word(name).word(value))
    }

    /// `NAME words...` for each of several words.
    pub fn each_of(self, name: &str, values: &[impl AsRef<[String]>]) -> Self {
        values.iter().fold(self, |request, words| request.word(name).words(words.as_ref()))
    }

    /// The name itself, if it holds.
    pub fn flag(self, name: &str, holds: bool) -> Self {
        if holds { self.word(name) } else { self }
    }

    /// What a group of options adds.
    pub fn with(self, group: impl FnOnce(Self) -> Self) -> Self {
        group(self)
    }

    /// The finished command.
    pub fn command(&self) -> &Cmd {
        &self.0
    }
}
