//! An effect out of any bytes, as a replica or an append-only file may bring them.
#![no_main]

use keyguard_core::effect::Effect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(effect) = Effect::decode(input) else { return };
    let packed = effect.encode().expect("an effect can be packed");
    assert!(packed.len() <= input.len(), "no form is shorter than ours");
    assert_eq!(Effect::decode(&packed).as_ref(), Ok(&effect));
    assert!(Effect::decode(&[&packed[..], b"x"].concat()).is_err(), "nothing may stand behind it");
    let mut buffer = vec![0; packed.len()];
    assert_eq!(effect.encode_into(&mut buffer), Ok(&packed[..]));
});
