//! Whether the server may evict what we keep. A bucket that is gone is a limit that starts afresh, and a record that is gone a key
//! that stops working: operators must hear of it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ffi::{Ctx, Level};

static UNSAFE: AtomicBool = AtomicBool::new(false);

/// Whether the policy in force lets the server evict keys of ours.
pub fn is_unsafe() -> bool {
    UNSAFE.load(Ordering::Relaxed)
}

/// Looks at the policy: when the module is loaded, and whenever the configuration changes.
pub fn look(ctx: Ctx<'_>) {
    let policy = ctx.call(c"CONFIG", c"Ev", &[b"GET", b"maxmemory-policy"]).element(1).unwrap_or_default();
    let what = match policy.split('-').next() {
        Some("allkeys") => "anything of keyguard's: limits, keys and revocations",
        Some("volatile") => "limits, which have an expiry",
        _ => "",
    };
    let changed = UNSAFE.swap(!what.is_empty(), Ordering::Relaxed) == what.is_empty();
    if changed && !what.is_empty() {
        let message = format!("maxmemory-policy {policy} lets the server evict {what}; use noeviction");
        ctx.log(Level::Warning, &message);
    }
}
