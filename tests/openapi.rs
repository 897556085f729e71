//! The admin API against its own description, by Schemathesis: thousands of requests that the document allows or forbids.

use std::process::Command;

use crate::admin::Admin;
use crate::harness::{Sut, installed, server_tests};

server_tests![the_admin_api_is_what_it_says];

/// How long to look, in seconds.
const SECONDS: &str = "45";

fn the_admin_api_is_what_it_says(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let mut c = server.client();
    // Something to find; and wrong tokens are not to be told to wait, which would hide what else is wrong.
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.NEWKEY acme shop web SCOPES read");
    c.ok("KG.ALLOWIP acme 127.0.0.1");
    let admin = Admin::start(&server);
    // Left out: whether all that the document allows is accepted, for there is more to a network, an instant or a text than a schema
    // can say; and whether a deleted key is gone, which stays to be looked at, as revoked.
    let output = Command::new(installed("KEYGUARD_SCHEMATHESIS", "target/schemathesis/bin/schemathesis"))
        .args(["run", &format!("http://127.0.0.1:{}/openapi.json", admin.serving.port)])
        .args(["--header", &format!("X-Admin-Key: {}", admin.write), "--seed", "1", "--max-time", SECONDS])
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance,use_after_free"])
        .args(["--max-examples", "15", "--no-shrink", "--continue-on-failure", "--generation-database", "none"])
        .env("NO_COLOR", "1")
        .env("HOME", server.directory())
        .current_dir(server.directory())
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("Tested: 16"), "{told}");
    assert!(!admin.serving.log().contains("panicked"), "{}", admin.serving.log());
}
