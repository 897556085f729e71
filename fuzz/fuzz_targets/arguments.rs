//! Any arguments, separated by spaces, through the cursor and through the grammar of `KG.CLAIM` and `KG.REMAINING`.
#![no_main]

use keyguard_core::Error;
use keyguard_core::args::Args;
use keyguard_core::asked::Asked;
use keyguard_core::limit::{MAX_LIMITS, MAX_UNITS, MAX_WINDOW_MS};
use keyguard_core::parse;
use libfuzzer_sys::fuzz_target;

const USAGE: &str = "the grammar";
const OPTIONS: [&str; 3] = ["COST", "BLOCK", "LOCKOUT"];

fuzz_target!(|input: &[u8]| {
    let arguments: Vec<&[u8]> = input.split(|byte| *byte == b' ').collect();
    check_grammar(&arguments);
    for start in 0..arguments.len().min(16) {
        check_cursor(&arguments[start..]);
    }
    check_cursor(&[]);
});

fn usage() -> &'static str {
    USAGE
}

fn check_grammar(arguments: &[&[u8]]) {
    let claim = Asked::claim(Args::new(arguments, usage));
    let remaining = Asked::remaining(Args::new(arguments, usage));
    let Ok(asked) = claim else {
        assert!(remaining.is_err(), "KG.CLAIM takes whatever KG.REMAINING takes");
        return;
    };
    assert!((1..=MAX_LIMITS).contains(&asked.limits.len()));
    assert!(asked.limits.iter().all(|limit| limit.is_valid()));
    assert!(asked.cost <= MAX_UNITS);
    for duration_ms in asked.block_ms.iter().chain(&asked.lockout_ms) {
        assert!((1..=MAX_WINDOW_MS).contains(duration_ms));
    }
    match remaining {
        Ok(same) => assert_eq!(same, asked),
        Err(error) => {
            assert_eq!(error, Error::Syntax { usage: USAGE });
            assert!(asked.block_ms.is_some() || asked.lockout_ms.is_some());
        }
    }
    // No number and no duration is one of these words.
    let value_of = |option: &str| {
        let given = |pair: &&[&[u8]]| pair[0].eq_ignore_ascii_case(option.as_bytes());
        arguments.windows(2).find(given).map(|pair| pair[1])
    };
    assert_eq!(value_of("COST").map_or(Some(1), parse::unsigned), Some(asked.cost));
    assert_eq!(value_of("BLOCK").map(|value| parse::duration_with_unit_ms(value, "x")), asked.block_ms.map(Ok));
    assert_eq!(value_of("LOCKOUT").map(|value| parse::duration_ms(value, "x")), asked.lockout_ms.map(Ok));

    let written = written(&asked);
    let again: Vec<&[u8]> = written.split(' ').map(str::as_bytes).collect();
    assert_eq!(Asked::claim(Args::new(&again, usage)), Ok(asked), "written out, it means the same");
}

/// The arguments that say the same, with the options in another order.
fn written(asked: &Asked) -> String {
    let limits = asked.limits.iter().map(|limit| format!("{} {}ms ", limit.count(), limit.window_ms()));
    let lockout = asked.lockout_ms.map(|ms| format!("lockout {ms}ms ")).unwrap_or_default();
    let block = asked.block_ms.map(|ms| format!("block {ms}ms ")).unwrap_or_default();
    limits.collect::<String>() + &lockout + &block + &format!("cost {}", asked.cost)
}

/// Everything that the cursor can make of the next argument, and that it takes no other.
fn check_cursor(arguments: &[&[u8]]) {
    let first = arguments.first().copied();
    let begin = || Args::new(arguments, usage);
    let left = arguments.len();
    let after_one = left.saturating_sub(1);
    assert_eq!((begin().left(), begin().peek()), (left, first));
    assert_eq!(begin().finish().is_ok(), first.is_none(), "nothing is ignored");

    let mut args = begin();
    assert_eq!((args.bytes().ok(), args.left()), (first, after_one));
    let mut args = begin();
    assert_eq!((args.value("COST").ok(), args.left()), (first, after_one));
    let mut args = begin();
    let option = args.option(&OPTIONS).map(|option| option.map(str::as_bytes));
    match option {
        Ok(None) => assert_eq!(first, None),
        Ok(Some(option)) => assert!(first.is_some_and(|first| first.eq_ignore_ascii_case(option))),
        Err(error) => assert_eq!(error, Error::Syntax { usage: USAGE }),
    }
    assert_eq!(args.left(), after_one);
    let mut args = begin();
    let taken = args.take_word("COST");
    assert_eq!(taken, option == Ok(Some(b"COST")));
    assert_eq!(args.left(), left - usize::from(taken));

    let number = first.and_then(parse::unsigned);
    assert_eq!(begin().units("n").ok(), number.filter(|units| (1..=MAX_UNITS).contains(units)));
    assert_eq!(begin().cost().ok(), number.filter(|units| *units <= MAX_UNITS));
    assert_eq!(begin().id().ok(), number);
    let mut args = begin();
    if args.limit().is_ok_and(|limit| limit.is_valid()) {
        assert_eq!(args.left(), left - 2);
    }
    if let Ok((_, name)) = begin().store() {
        assert!((1..=64).contains(&name.len()) && name.is_ascii());
    }
}
