//! The examples that guard an HTTP API, each as it stands: what is answered, by which status and headers, and what is not let in.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use crate::harness::{
    Client, Reply, Response, Server, Sut, args, eventually, expect, free_port, installed, python, server_tests,
};

server_tests![the_examples_answer_as_documented, nobody_is_let_in_while_keyguard_is_away];

const PASSWORD: &str = "correct horse";

/// One of the examples, running, with a store of its own.
struct Service {
    name: &'static str,
    port: u16,
    child: Child,
}

impl Service {
    /// All of them, started together.
    fn all(server: &Server) -> Vec<Self> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut fastapi = Command::new(python());
        fastapi.arg(examples.join("fastapi_gate.py"));
        let mut express = Command::new("node");
        express.arg(examples.join("express_gate.js"));
        express.env("NODE_PATH", installed("KEYGUARD_NODE_MODULES", "target/node/node_modules"));
        let axum = Command::new(installed("KEYGUARD_AXUM_GATE", "target/axum_gate/debug/axum_gate"));
        let services = [("fastapi", fastapi), ("express", express), ("axum", axum)].map(|(name, mut command)| {
            let port = free_port();
            let log = File::create(server.directory().join(format!("{name}.log"))).unwrap();
            command.env("KEYGUARD_URL", format!("redis://127.0.0.1:{}", server.port())).env("KEYGUARD_STORE", name);
            command.env("PORT", port.to_string()).env("PASSWORD", PASSWORD).env("HOME", server.directory());
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            Self { name, port, child: command.spawn().expect("the example runs") }
        });
        for service in &services {
            eventually("the example listening", || {
                let log = std::fs::read_to_string(server.directory().join(format!("{}.log", service.name)));
                expect(TcpStream::connect((Ipv4Addr::LOCALHOST, service.port)).is_ok(), || log.unwrap_or_default())
            });
        }
        services.into()
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        Response::of(self.port, method, path, headers, body)
    }

    /// With the key in X-API-Key.
    fn get(&self, path: &str, key: &str) -> Response {
        self.send("GET", path, &[("X-API-Key", key)], "")
    }

    fn log_in(&self, password: &str) -> Response {
        self.send("POST", "/login", &[], &format!("{{\"password\":\"{password}\"}}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new key of the organization.
fn new_key(c: &mut Client, store: &str, arguments: &str) -> (i64, String) {
    let reply = c.ok(format!("KG.NEWKEY {store} {arguments}"));
    (reply.list()[0].int(), reply.list()[1].text())
}

fn the_examples_answer_as_documented(sut: &Sut) {
    let server = sut.server();
    let services = Service::all(&server);
    thread::scope(|scope| {
        for service in &services {
            let mut c = server.client();
            scope.spawn(move || {
                c.ok(format!("KG.ADDORG {} shop", service.name));
                every_code_has_its_status_and_headers(service, &mut c);
                a_limit_lets_through_exactly_as_many_as_it_says(service, &mut c);
                no_spelling_of_a_path_gets_round_a_rule(service, &mut c);
                logins_are_limited_by_address(service, &mut c);
            });
        }
    });
    for service in &services {
        keeps_keys_to_itself(&server, service);
    }
}

fn every_code_has_its_status_and_headers(service: &Service, c: &mut Client) {
    const UNKNOWN: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\"")];
    const SCOPE: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\", error=\"insufficient_scope\"")];
    let limits = |left: &'static str, ratelimit: &'static str| {
        let [limit, reset] = [("x-ratelimit-limit", "2"), ("x-ratelimit-reset", "~3600")];
        let policy = ("ratelimit-policy", "\"default\";q=2;w=3600");
        vec![limit, ("x-ratelimit-remaining", left), reset, policy, ("ratelimit", ratelimit)]
    };
    let store = service.name;
    c.ok(format!("KG.ADDORG {store} lab"));
    let (_, web) = new_key(c, store, "shop web SCOPES orders:read,profile");
    let (_, all) = new_key(c, store, "shop all SCOPES *");
    let (_, none) = new_key(c, store, "shop none");
    let (_, expired) = new_key(c, store, "shop expired EXPIREAT 1");
    let (gone_id, gone) = new_key(c, store, "shop gone SCOPES *");
    let (_, suspended) = new_key(c, store, "lab suspended SCOPES *");
    let (_, limited) = new_key(c, store, "shop limited LIMIT 2 1h");
    let (_, metered) = new_key(c, store, "shop metered QUOTA 1 day");
    let (_, elsewhere) = new_key(c, store, "shop elsewhere ALLOW 192.0.2.0/24");
    c.ok(format!("KG.SETORG {store} lab STATUS suspended"));
    c.ok(format!("KG.BLOCKIP {store} 192.0.2.9"));
    // A key that is revoked between two requests is of no use at the second.
    service.get("/api/orders", &gone).check(store, 200, "", &[]);
    c.ok(args!["KG.REVOKE", store, gone_id]);

    let typo = format!("{web}x");
    for (what, key, path, status, code, headers) in [
        ("an unknown key", "kg_live_nobody", "/api/orders", 401, "NOT_FOUND", UNKNOWN),
        ("a key with a typo", &typo, "/api/orders", 401, "NOT_FOUND", UNKNOWN),
        ("an empty key", "", "/api/orders", 401, "NOT_FOUND", UNKNOWN),
        // To these the answer is the same.
        ("a revoked key", &gone, "/api/orders", 401, "NOT_FOUND", UNKNOWN),
        ("an expired key", &expired, "/api/orders", 401, "NOT_FOUND", UNKNOWN),
        ("a suspended organization", &suspended, "/api/orders", 403, "ORG_SUSPENDED", &[]),
        ("another address", &elsewhere, "/api/me", 403, "IP_NOT_ALLOWED", &[]),
        ("a scope that the key lacks", &none, "/api/orders", 403, "INSUFFICIENT_SCOPE", SCOPE),
        ("a path that is not listed", &web, "/api/else", 403, "INSUFFICIENT_SCOPE", SCOPE),
        ("the root of what is guarded", &web, "/api", 403, "INSUFFICIENT_SCOPE", SCOPE),
        ("a scope that the key has", &web, "/api/orders", 200, "", &[]),
        ("a query", &web, "/api/orders?page=2", 200, "", &[]),
        ("no scope needed", &none, "/api/me", 200, "", &[]),
        ("every scope", &all, "/api/orders", 200, "", &[]),
        ("every scope, and nothing there", &all, "/api/else", 404, "", &[]),
        ("nothing that is guarded", "", "/apiary", 404, "", &[]),
        ("the first within the quota", &metered, "/api/me", 200, "", &[]),
    ] {
        service.get(path, key).check(&format!("{store}, {what}"), status, code, headers);
    }
    let bearer =
        |scheme: &str| service.send("GET", "/api/orders", &[("Authorization", &format!("{scheme} {web}"))], "");
    bearer("Bearer").check(store, 200, "", &[]);
    bearer("bearer").check(store, 200, "", &[]);
    bearer("Basic").check(store, 401, "NOT_FOUND", UNKNOWN);
    service.send("GET", "/api/orders", &[], "").check(store, 401, "NOT_FOUND", UNKNOWN);
    service.send("DELETE", "/api/orders", &[("X-API-Key", &web)], "").check(store, 403, "INSUFFICIENT_SCOPE", SCOPE);
    let me: serde_json::Value = serde_json::from_str(&service.get("/api/me", &web).body).expect("JSON");
    assert_eq!(me, serde_json::json!({"org": "shop", "label": "web", "scopes": ["orders:read", "profile"]}));

    // What is left, until nothing is.
    service.get("/api/me", &limited).check(store, 200, "", &limits("1", "\"default\";r=1;t=~3600"));
    service.get("/api/me", &limited).check(store, 200, "", &limits("0", "\"default\";r=0;t=~3600"));
    let mut full = limits("0", "\"default\";r=0;t=~3600");
    full.push(("retry-after", "~3600"));
    service.get("/api/me", &limited).check(store, 429, "RATE_LIMITED", &full);
    let over = service.get("/api/me", &metered);
    over.check_status_and_wait(store, 429, "QUOTA_EXCEEDED", 86_400);

    // The address is that of the connection, whatever a header says.
    for forwarded in ["X-Forwarded-For", "Forwarded", "X-Real-IP"] {
        let headers = [(forwarded, "192.0.2.9"), ("X-API-Key", &*web)];
        service.send("GET", "/api/orders", &headers, "").check(store, 200, "", &[]);
        let headers = [(forwarded, "192.0.2.1"), ("X-API-Key", &*elsewhere)];
        service.send("GET", "/api/me", &headers, "").check(store, 403, "IP_NOT_ALLOWED", &[]);
    }
    for (block, headers) in [("1h", &[("retry-after", "~3600")][..]), ("", &[])] {
        c.ok(format!("KG.BLOCKIP {store} 127.0.0.1 {block}"));
        for key in [&*web, "kg_live_nobody", ""] {
            service.get("/api/orders", key).check(store, 403, "IP_BLOCKED", headers);
        }
    }
    c.ok(format!("KG.UNBLOCKIP {store} 127.0.0.1"));
    service.get("/api/orders", &web).check(store, 200, "", &[]);
}

/// What the example wrote holds no key.
fn keeps_keys_to_itself(server: &Server, service: &Service) {
    let log = std::fs::read_to_string(server.directory().join(format!("{}.log", service.name))).unwrap();
    assert!(!log.contains("kg_live_") && !log.contains(PASSWORD), "{log}");
}

fn a_limit_lets_through_exactly_as_many_as_it_says(service: &Service, c: &mut Client) {
    const LIMIT: usize = 20;
    let (_, key) = new_key(c, service.name, &format!("shop web LIMIT {LIMIT} 1h"));
    let answers: Vec<u16> = thread::scope(|scope| {
        let ask = || (0..8).map(|_| service.get("/api/me", &key).status).collect::<Vec<_>>();
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(200), count(429)), (LIMIT, 64 - LIMIT), "{}: {answers:?}", service.name);
}

fn no_spelling_of_a_path_gets_round_a_rule(service: &Service, c: &mut Client) {
    const SPELLINGS: [&str; 14] = [
        "/api/orders",
        "/api/orders/",
        "/api/orders?x=/api/me",
        "/API/orders",
        "/api/Orders",
        "/api//orders",
        "//api/orders",
        "/api/%6frders",
        "/%61pi/orders",
        "/api%2forders",
        "/api/./orders",
        "/api/me/../orders",
        "/api/orders;x",
        "/api/orders%20",
    ];
    let store = service.name;
    let (_, none) = new_key(c, store, "shop none");
    let (_, all) = new_key(c, store, "shop all SCOPES *");
    for path in SPELLINGS {
        let answer = service.get(path, &none);
        assert!([307, 308, 400, 401, 403, 404].contains(&answer.status), "{store}, {path}: {answer:?}");
    }
    c.ok(format!("KG.BLOCKIP {store} 127.0.0.1 PATH /api/orders"));
    for path in SPELLINGS {
        let answer = service.get(path, &all);
        assert!([307, 308, 400, 401, 403, 404].contains(&answer.status), "{store}, {path}: {answer:?}");
    }
    service.get("/api/orders", &all).check(store, 403, "IP_BLOCKED", &[]);
    service.get("/api/me", &all).check(store, 200, "", &[]);
    c.ok(format!("KG.UNBLOCKIP {store} 127.0.0.1 PATH /api/orders"));
}

fn logins_are_limited_by_address(service: &Service, c: &mut Client) {
    let store = service.name;
    let (_, key) = new_key(c, store, "shop web");
    let wrong = |times: usize| (0..times).map(|_| service.log_in("wrong").status).collect::<Vec<_>>();
    // A success forgets the failures before it.
    for _ in 0..2 {
        assert_eq!(wrong(4), [401; 4], "{store}");
        assert_eq!(service.log_in(PASSWORD).status, 200, "{store}");
    }
    assert_eq!(wrong(5), [401; 5], "{store}");
    service.log_in("wrong").check_status_and_wait(store, 429, "RATE_LIMITED", 900);
    // From now on not even the right password helps, but the rest is not locked.
    let locked = service.log_in(PASSWORD);
    assert!([403, 429].contains(&locked.status), "{store}: {locked:?}");
    locked.check_status_and_wait(store, locked.status, "", 900);
    service.get("/api/me", &key).check(store, 200, "", &[]);
    c.ok(format!("KG.CLEARIP {store} 127.0.0.1 PATH /login"));
    assert_eq!(service.log_in(PASSWORD).status, 200, "{store}");
}

fn nobody_is_let_in_while_keyguard_is_away(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let services = Service::all(&server);
    // A store that is not there is no reason to call a key unknown.
    for service in &services {
        service.get("/api/me", "kg_live_nobody").check(service.name, 503, "UNAVAILABLE", &[]);
    }
    let mut c = server.client();
    let keys: Vec<String> = services
        .iter()
        .map(|service| {
            c.ok(format!("KG.ADDORG {} shop", service.name));
            new_key(&mut c, service.name, "shop web").1
        })
        .collect();
    let all_get = |status: u16, code: &str| {
        thread::scope(|scope| {
            for (service, key) in services.iter().zip(&keys) {
                scope.spawn(move || {
                    service.get("/api/me", key).check(service.name, status, code, &[]);
                    if status != 200 {
                        service.log_in(PASSWORD).check(service.name, status, code, &[]);
                    }
                });
            }
        });
    };
    all_get(200, "");
    server.kill();
    all_get(503, "UNAVAILABLE");
    all_get(503, "UNAVAILABLE");
    server.start_again();
    for (service, key) in services.iter().zip(&keys) {
        eventually("the example being connected again", || {
            let answer = service.get("/api/me", key);
            expect(answer.status == 200, || format!("{}: {answer:?}", service.name))
        });
    }
    for service in &services {
        keeps_keys_to_itself(&server, service);
    }
}
