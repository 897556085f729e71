//! The one cursor over a command's arguments: core's, over the server's own strings.

use keyguard_core::args::Argument;
pub use keyguard_core::args::once;

use crate::ffi::Name;

/// The arguments after the command's name, read from left to right.
pub type Args<'c> = keyguard_core::args::Args<'c, Name<'c>>;

impl<'c> Argument<'c> for Name<'c> {
    fn bytes(self) -> &'c [u8] {
        Name::bytes(self)
    }
}
