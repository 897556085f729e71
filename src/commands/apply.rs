//! `KG.APPLY`: how servers tell each other of changes of native values.

use keyguard_core::effect::Effect;
use keyguard_core::{Error, Result};

use super::Call;
use crate::args::Args;
use crate::effects;
use crate::ffi::{Level, raw};
use crate::register::{Access, Arg, Category, Command, Spec};

/// `KG.APPLY key effect`
pub struct Apply;

impl Command for Apply {
    const SPEC: Spec = Spec {
        name: c"KG.APPLY",
        summary: c"Internal: carries the effect of another command to replicas and append-only files",
        complexity: c"As the command whose effect it is",
        flags: "deny-script",
        access: Access::Write,
        category: Category::Internal,
        min_args: 3,
        secrets: &[],
        secrets_from: 0,
        args: &[Arg::key(c"key"), Arg::text(c"effect")],
    };

    fn run(call: &Call<'_>, mut args: Args<'_>) -> Result<()> {
        let name = args.name()?;
        let packed = args.bytes()?;
        args.finish()?;
        let from_a_server = call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_REPLICATED)
            || call.ctx.has_flags(raw::REDISMODULE_CTX_FLAGS_LOADING);
        if !from_a_server {
            return Err(Error::InternalCommand);
        }

        // Nobody reads the reply: what cannot be applied must be seen in the log.
        let effect = Effect::decode(packed).and_then(|effect| effects::apply(call.ctx, name, &effect));
        if let Err(error) = effect {
            call.ctx.log(Level::Warning, &format!("an effect could not be applied: {error}"));
            return Err(error);
        }
        call.ctx.replicate_verbatim();

        call.ctx.reply_status(c"OK");
        Ok(())
    }
}
