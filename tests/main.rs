//! The integration suite: every test on every server.
//!
//! A test is a function of the server it runs on, so that a claim proved on one server is proved on all of them. Each
//! test starts the servers that it needs, on free ports and in directories of their own; they end with it. Trials are
//! named after both, `redis-7.0::claim::refuses_when_full`, and any part of that name filters:
//! `cargo test --test servers -- valkey-9.1::claim`.
//!
//! `KEYGUARD_SERVERS` names the folder with one folder per server (default `target/servers`), `KEYGUARD_MODULE` the module
//! (default `target/release/libkeyguard.so`). The examples run with a Python at `KEYGUARD_PYTHON` (default
//! `target/python/bin/python`), packages for Node at `KEYGUARD_NODE_MODULES` (default `target/node/node_modules`), and, built, at
//! `KEYGUARD_AXUM_GATE` (default `target/axum_gate/debug/axum_gate`). `KEYGUARD_PREDECESSORS` names a Python that has keyguard_python and
//! simple_keystore (default `target/predecessors/bin/python`), `KEYGUARD_SCHEMATHESIS` the program that tries out the admin API
//! (default `target/schemathesis/bin/schemathesis`), `KEYGUARD_CLI` the operator's tools (default `target/debug/keyguard`),
//! `KEYGUARD_CHROMIUM` a browser (default `/usr/bin/chromium`), `KEYGUARD_GATEWAYS` the folder of Caddy, Traefik and Envoy (default
//! `target/gateways/bin`). `KEYGUARD_ONLY_SERVER` narrows the run to one server,
//! `KEYGUARD_FUZZ` sets the number of damaged payloads per type, `KEYGUARD_SEED` repeats a random test of API keys,
//! `KEYGUARD_ACQUIRE_SECONDS` how long many workers ask for keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// A test that is in no table would be dead code: it cannot be forgotten.
#![deny(dead_code)]

mod acl;
mod acquire;
mod addresses;
mod admin;
mod apikeys;
mod claim;
mod cli;
mod cluster;
mod docs;
mod examples;
mod failures;
mod foreign;
mod gate;
mod gateways;
mod harness;
mod hostile;
mod http;
mod import;
mod keyguard_python;
mod keystore;
mod listing;
mod loading;
mod openapi;
mod page;
mod predecessors;
mod replication;
mod rotation;
mod secrecy;
mod serve;
mod snapshot;
mod stores;
mod terminal;
mod usage;
mod vault;
mod verify;
mod waiting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Tests mostly wait for servers, so that more of them than processors may run at a time.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let servers = match harness::servers_under_test() {
        Ok(servers) => servers,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let tables = [
        // The long ones first: they overlap with the rest.
        failures::TESTS,
        cluster::TESTS,
        hostile::TESTS,
        replication::TESTS,
        acquire::TESTS,
        rotation::TESTS,
        waiting::TESTS,
        claim::TESTS,
        vault::TESTS,
        snapshot::TESTS,
        keystore::TESTS,
        keyguard_python::TESTS,
        listing::TESTS,
        gate::TESTS,
        stores::TESTS,
        usage::TESTS,
        addresses::TESTS,
        apikeys::TESTS,
        foreign::TESTS,
        import::TESTS,
        secrecy::TESTS,
        acl::TESTS,
        loading::TESTS,
        terminal::TESTS,
        docs::TESTS,
        admin::TESTS,
        serve::TESTS,
        examples::TESTS,
        verify::TESTS,
        cli::TESTS,
    ];
    let mut trials = Vec::new();
    let on_all = tables.into_iter().map(|table| (table, &*servers));
    // What the examples over HTTP, the Python packages, Schemathesis and the page ask is proved on every server by others; they
    // themselves run on one.
    let on_one = [gateways::TESTS, http::TESTS, page::TESTS, predecessors::TESTS, openapi::TESTS]
        .map(|table| (table, &servers[..1]));
    for (table, servers) in on_all.chain(on_one) {
        for test in table {
            for server in servers {
                let server = server.clone();
                let name = format!("{}::{}::{}", server.name, test.module(), test.name);
                trials.push(Trial::test(name, move || {
                    (test.run)(&server);
                    Ok(())
                }));
            }
        }
    }
    if let Some(server) = harness::server_too_old() {
        trials.push(Trial::test("redis-6.2::loading::refuses_a_server_too_old", move || {
            loading::refuses_a_server_too_old(&server?);
            Ok(())
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
