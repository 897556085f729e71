//! What `KG.CLAIM` and `KG.REMAINING` are asked.

use crate::args::{Args, Argument, once};
use crate::error::{Error, Result};
use crate::limit::{Limits, MAX_LIMITS};
use crate::parse;

/// What a bucket is asked for, by the arguments after its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The limits, of which there is at least one.
    pub limits: Limits,
    /// The units to take: 1 unless COST says otherwise.
    pub cost: u64,
    /// How long to wait on the server for them.
    pub block_ms: Option<u64>,
    /// How long the bucket is locked when they are refused.
    pub lockout_ms: Option<u64>,
}

impl Asked {
    /// Reads `count window [count window ...] [COST n] [BLOCK duration] [LOCKOUT duration]`, to the end.
    ///
    /// # Errors
    /// For any other arguments.
    pub fn claim<'c, A: Argument<'c>>(args: Args<'c, A>) -> Result<Self> {
        Self::parse(args, &["COST", "BLOCK", "LOCKOUT"])
    }

    /// Reads `count window [count window ...] [COST n]`, to the end.
    ///
    /// # Errors
    /// For any other arguments.
    pub fn remaining<'c, A: Argument<'c>>(args: Args<'c, A>) -> Result<Self> {
        Self::parse(args, &["COST"])
    }

    fn parse<'c, A: Argument<'c>>(mut args: Args<'c, A>, options: &[&'static str]) -> Result<Self> {
        let mut limits = Limits::new();
        // Limits come first: they end where something else than a number stands.
        while limits.is_empty()
            || args.peek().is_some_and(|next| next.first().is_none_or(|byte| !byte.is_ascii_alphabetic()))
        {
            let limit = args.limit()?;
            limits.try_push(limit).map_err(|_| Error::TooManyItems { what: "limits", max: MAX_LIMITS })?;
        }
        let (mut cost, mut block_ms, mut lockout_ms) = (None, None, None);
        while let Some(option) = args.option(options)? {
            match option {
                "COST" => once(&mut cost, option, args.cost()?)?,
                // The server's own commands that wait take seconds or milliseconds: a bare number would be a guess.
                "BLOCK" => once(&mut block_ms, option, parse::duration_with_unit_ms(args.value(option)?, option)?)?,
                _ => once(&mut lockout_ms, option, parse::duration_ms(args.value(option)?, option)?)?,
            }
        }
        args.finish()?;
        Ok(Self { limits, cost: cost.unwrap_or(1), block_ms, lockout_ms })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limit::{Limit, MAX_UNITS, MAX_WINDOW_MS};

    const USAGE: &str = "KG.CLAIM bucket";

    fn claim(arguments: &str) -> Result<Asked> {
        let arguments: Vec<&[u8]> = arguments.split_terminator(' ').map(str::as_bytes).collect();
        Asked::claim(Args::new(&arguments, || USAGE))
    }

    fn remaining(arguments: &str) -> Result<Asked> {
        let arguments: Vec<&[u8]> = arguments.split_terminator(' ').map(str::as_bytes).collect();
        Asked::remaining(Args::new(&arguments, || USAGE))
    }

    fn asked(limits: &[(u64, u64)], cost: u64, block_ms: Option<u64>, lockout_ms: Option<u64>) -> Asked {
        let limits = limits.iter().map(|(count, window_ms)| Limit::new(*count, *window_ms).unwrap()).collect();
        Asked { limits, cost, block_ms, lockout_ms }
    }

    /// `expected` of both commands: they differ only in the options that one lacks.
    fn check(cases: &[(&str, Result<Asked>)]) {
        for (arguments, expected) in cases {
            assert_eq!(claim(arguments), *expected, "{arguments:?}");
            assert_eq!(remaining(arguments), *expected, "{arguments:?}");
        }
    }

    #[test]
    fn limits_come_first_then_the_cost() {
        check(&[
            ("100 1m", Ok(asked(&[(100, 60_000)], 1, None, None))),
            ("100 1m 1000 1d", Ok(asked(&[(100, 60_000), (1000, 86_400_000)], 1, None, None))),
            ("100 60 COST 3", Ok(asked(&[(100, 60_000)], 3, None, None))),
            ("100 1m cost 0", Ok(asked(&[(100, 60_000)], 0, None, None))),
            ("1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", Ok(asked(&[(1, 1000); MAX_LIMITS], 1, None, None))),
        ]);
    }

    #[test]
    fn what_is_not_the_grammar_is_an_error() {
        let arity = || Err(Error::Arity { usage: USAGE });
        let syntax = || Err(Error::Syntax { usage: USAGE });
        let count = || Err(Error::Invalid { what: "count", accepted: "a whole number from 1 to 1000000000000" });
        let limits = Err(Error::TooManyItems { what: "limits", max: MAX_LIMITS });
        check(&[
            ("", arity()),
            ("100", arity()),
            ("100 1m 5", arity()),
            ("COST 1", count()),
            ("0 1m", count()),
            ("x 1m", count()),
            (" 1m", count()),
            ("100 1m -5 1m", count()),
            ("100 1m  1m", count()),
            ("1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", limits),
            ("100 1m COST", Err(Error::MissingValue { option: "COST" })),
            ("100 1m COST 1 COST 1", Err(Error::Repeated { option: "COST" })),
            ("100 1m COST 1 100 1m", syntax()),
            ("100 1m COST 1  x", syntax()),
            ("100 1m WAIT 1s", syntax()),
            ("100 1m BLOCKING 1s", syntax()),
        ]);
    }

    #[test]
    fn a_claim_may_wait_and_lock_out_in_any_order() {
        let all = || Ok(asked(&[(5, 1000)], 2, Some(30_000), Some(60_000)));
        for (arguments, expected) in [
            ("5 1s COST 2 BLOCK 30s LOCKOUT 1m", all()),
            ("5 1s LOCKOUT 60 block 30S Cost 2", all()),
            ("5 1s BLOCK 1ms", Ok(asked(&[(5, 1000)], 1, Some(1), None))),
            ("5 1s LOCKOUT 366d", Ok(asked(&[(5, 1000)], 1, None, Some(MAX_WINDOW_MS)))),
            ("5 1s BLOCK 1s BLOCK 1s", Err(Error::Repeated { option: "BLOCK" })),
            ("5 1s LOCKOUT 1 LOCKOUT 1", Err(Error::Repeated { option: "LOCKOUT" })),
            ("5 1s BLOCK", Err(Error::MissingValue { option: "BLOCK" })),
            ("5 1s LOCKOUT", Err(Error::MissingValue { option: "LOCKOUT" })),
        ] {
            assert_eq!(claim(arguments), expected, "{arguments:?}");
            assert_eq!(remaining(arguments), Err(Error::Syntax { usage: USAGE }), "{arguments:?}");
        }
    }

    #[test]
    fn a_duration_is_neither_nothing_nor_too_long_and_that_of_block_has_a_unit() {
        for (option, value) in [
            ("BLOCK", "30"),
            ("BLOCK", "0"),
            ("BLOCK", "0ms"),
            ("BLOCK", "367d"),
            ("LOCKOUT", "0"),
            ("LOCKOUT", "-1"),
            ("LOCKOUT", "forever"),
        ] {
            let outcome = claim(&format!("5 1s {option} {value}"));
            assert!(
                matches!(outcome, Err(Error::Invalid { what, .. }) if what == option),
                "{option} {value}: {outcome:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_arguments_give_an_error_or_what_lies_in_range(
            arguments in prop::collection::vec("(?i)[0-9]{1,3}|[0-9]{1,3}(ms|s|m|h|d)|COST|BLOCK|LOCKOUT|.{0,3}", 0..12),
        ) {
            let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
            let asked = Asked::claim(Args::new(&arguments, || USAGE));
            let fewer = Asked::remaining(Args::new(&arguments, || USAGE));
            if let Ok(asked) = asked {
                prop_assert!((1..=MAX_LIMITS).contains(&asked.limits.len()));
                prop_assert!(asked.cost <= MAX_UNITS);
                for duration_ms in asked.block_ms.iter().chain(&asked.lockout_ms) {
                    prop_assert!((1..=MAX_WINDOW_MS).contains(duration_ms));
                }
                prop_assert_eq!(fewer.is_ok(), asked.block_ms.is_none() && asked.lockout_ms.is_none());
            } else {
                prop_assert!(fewer.is_err());
            }
        }
    }
}
