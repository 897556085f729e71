//! The page of `keyguard serve`, driven in headless Chromium as an operator does it.

use std::{fs, path::Path, process::Command};

use crate::harness::{Serving, Sut, installed, server_tests, tool};

server_tests![an_operator_creates_watches_and_revokes_keys_in_a_browser];

fn an_operator_creates_watches_and_revokes_keys_in_a_browser(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let tokens = server.directory().join("tokens");
    let [write, read] = ["write", "read"].map(|role| {
        let made = tool(&server)
            .args(["token", "new", "--role", role, "--name", role, "--file"])
            .arg(&tokens)
            .output()
            .expect("it runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    });
    let serving = Serving::start(&server, &["--admin-tokens", tokens.to_str().expect("text")]);
    let screenshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
    fs::create_dir_all(&screenshots).unwrap();
    let driven = Command::new("node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/drive.js"))
        .args([&format!("http://127.0.0.1:{}", serving.port), &write, &read])
        .arg(installed("KEYGUARD_CHROMIUM", "/usr/bin/chromium"))
        .arg(&screenshots)
        .env("NODE_PATH", installed("KEYGUARD_NODE_MODULES", "target/node/node_modules"))
        .env("HOME", server.directory())
        .output()
        .expect("node runs");
    assert!(driven.status.success(), "{}{}", String::from_utf8_lossy(&driven.stderr), serving.log());
    for name in ["overview.png", "keys.png", "phone.png"] {
        assert!(fs::metadata(screenshots.join(name)).is_ok_and(|file| file.len() > 10_000), "{name}");
    }
    for token in [&write, &read] {
        assert!(!serving.log().contains(token.as_str()), "no token is logged");
    }
}
