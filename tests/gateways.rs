//! Caddy, Traefik and Envoy with the configurations of examples/: whom they let through to an application, and what they tell him and it.
//! nginx is in the tests of /verify.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use socket2::{Domain, Socket, Type};

use crate::harness::{
    Reply as _, Response, Server, Serving, Sut, eventually, expect, free_port, installed, server_tests,
};

server_tests![caddy_guards_as_its_example_says, traefik_guards_as_its_example_says, envoy_guards_as_its_example_says,];

/// Where calls come from: not the address of the proxies, which are believed about others'.
const CALLER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const UNKNOWN: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\"")];
const SCOPE: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\", error=\"insufficient_scope\"")];

/// A proxy, and what is its own.
struct Kind {
    program: &'static str,
    example: &'static str,
    /// With `EXAMPLE` for the configuration, and `PORT`.
    arguments: &'static [&'static str],
    /// Whether he who is let in is told of his limits.
    tells_limits: bool,
    /// Whether it keeps names with underscores from the application, which may take them for those with dashes.
    drops_underscores: bool,
    /// Whether what keyguard says while Redis is away is passed on, or only the status.
    passes_on_503: bool,
    /// The status while keyguard itself is away.
    without_keyguard: u16,
}

const CADDY: Kind = Kind {
    program: "caddy",
    example: "Caddyfile",
    arguments: &["run", "--adapter", "caddyfile", "--config", "EXAMPLE"],
    tells_limits: false,
    drops_underscores: true,
    passes_on_503: true,
    without_keyguard: 503,
};

const TRAEFIK: Kind = Kind {
    program: "traefik",
    example: "traefik_gate.yml",
    arguments: &["--entryPoints.web.address=127.0.0.1:PORT", "--providers.file.filename=EXAMPLE"],
    tells_limits: false,
    drops_underscores: false,
    passes_on_503: true,
    without_keyguard: 500,
};

const ENVOY: Kind = Kind {
    program: "envoy",
    example: "envoy.yaml",
    arguments: &["--config-path", "EXAMPLE", "--concurrency", "1", "--use-dynamic-base-id"],
    tells_limits: true,
    drops_underscores: true,
    passes_on_503: false,
    without_keyguard: 503,
};

fn caddy_guards_as_its_example_says(sut: &Sut) {
    guards(sut, &CADDY);
}

fn traefik_guards_as_its_example_says(sut: &Sut) {
    guards(sut, &TRAEFIK);
}

fn envoy_guards_as_its_example_says(sut: &Sut) {
    guards(sut, &ENVOY);
}

/// An application that answers with the head of the request as it got it. It runs until the tests end.
fn application() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming() {
            thread::spawn(move || {
                let mut connection = connection.unwrap();
                let lines = BufReader::new(connection.try_clone().unwrap()).lines();
                let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let body = head.join("\n");
                let length = body.len();
                let _ = write!(
                    connection,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            });
        }
    });
    port
}

/// A proxy with the configuration of its example, until this is dropped.
struct Gateway {
    port: u16,
    child: Child,
}

impl Gateway {
    fn start(kind: &Kind, server: &Server, serving: &Serving, application: u16) -> Self {
        let port = free_port();
        let folder = server.directory();
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(kind.example)).unwrap();
        let ports: [(u16, u16); 3] = [(8000, port), (8080, serving.port), (9000, application)];
        // All at once: one of ours may have another's of the example in it.
        let at = |number: u16| format!("<{number}>");
        let text = ports.iter().fold(text, |text, (example, _)| text.replace(&example.to_string(), &at(*example)));
        let text = ports.iter().fold(text, |text, (example, ours)| text.replace(&at(*example), &ours.to_string()));
        let example = folder.join(kind.example);
        fs::write(&example, text).unwrap();
        let log = folder.join("gateway.log");
        let file = File::create(&log).unwrap();
        let program = installed("KEYGUARD_GATEWAYS", "target/gateways/bin").join(kind.program);
        let arguments = kind.arguments.iter().map(|argument| {
            argument.replace("EXAMPLE", &example.display().to_string()).replace("PORT", &port.to_string())
        });
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).env("HOME", folder).env("XDG_DATA_HOME", folder);
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let gateway = Self { port, child };
        // Traefik listens before it knows its routes.
        eventually(kind.program, || {
            let knows = gateway.try_get("/api/", &[]).is_some_and(|answer| answer.status != 404);
            expect(knows, || fs::read_to_string(&log).unwrap_or_default())
        });
        gateway
    }

    /// What is answered to a request from [`CALLER`].
    fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response {
        self.try_get(target, headers).expect("an answer")
    }

    fn try_get(&self, target: &str, headers: &[(&str, &str)]) -> Option<Response> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((CALLER, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).into()).ok()?;
        Response::over(socket.into(), "GET", target, headers, "").ok()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The limit of two in an hour, as far as this proxy tells who is let in.
fn limits(kind: &Kind, left: &'static str, ratelimit: &'static str) -> Vec<(&'static str, &'static str)> {
    if !kind.tells_limits {
        return Vec::new();
    }
    full(left, ratelimit)
}

fn full(left: &'static str, ratelimit: &'static str) -> Vec<(&'static str, &'static str)> {
    let policy = ("ratelimit-policy", "\"default\";q=2;w=3600");
    let [limit, reset] = [("x-ratelimit-limit", "2"), ("x-ratelimit-reset", "~3600")];
    vec![limit, ("x-ratelimit-remaining", left), reset, policy, ("ratelimit", ratelimit)]
}

fn guards(sut: &Sut, kind: &Kind) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let mut new_key = |arguments: &str| c.ok(format!("KG.NEWKEY acme shop {arguments}")).list()[1].text();
    let key = new_key("web SCOPES orders:read");
    let none = new_key("none");
    let limited = new_key("limited SCOPES * LIMIT 2 1h");
    let elsewhere = new_key("elsewhere SCOPES * ALLOW 192.0.2.0/24");
    let serving = Serving::start(&server, &["--trusted-proxy", "127.0.0.1"]);
    let gateway = Gateway::start(kind, &server, &serving, application());
    let get = |key: &str| gateway.get("/api/page", &[("X-API-Key", key)]);

    let seen = get(&key);
    seen.check("valid", 200, "", &[]);
    assert!(seen.body.starts_with("GET /api/page HTTP/1.1\n"), "{seen:?}");
    gateway.get("/api/page", &[("Authorization", &format!("Bearer {key}"))]).check("Bearer", 200, "", &[]);
    get("kg_live_nobody").check("an unknown key", 401, "NOT_FOUND", UNKNOWN);
    gateway.get("/api/page", &[]).check("no key", 401, "NOT_FOUND", UNKNOWN);
    get(&none).check("a scope that it lacks", 403, "INSUFFICIENT_SCOPE", SCOPE);
    get(&elsewhere).check("another address", 403, "IP_NOT_ALLOWED", &[]);
    get(&limited).check("the first", 200, "", &limits(kind, "1", "\"default\";r=1;t=~3600"));
    get(&limited).check("the second", 200, "", &limits(kind, "0", "\"default\";r=0;t=~3600"));
    let mut over = full("0", "\"default\";r=0;t=~3600");
    over.push(("retry-after", "~3600"));
    get(&limited).check("the third", 429, "RATE_LIMITED", &over);

    what_a_caller_says_of_himself_counts_for_nothing(kind, &gateway, &key, &none, &elsewhere);
    c.ok(format!("KG.BLOCKIP acme {CALLER} 1h PATH /api/orders"));
    no_spelling_gets_round_a_rule_for_a_path(&gateway, &key);

    server.kill();
    get(&key).check("no server", 503, if kind.passes_on_503 { "UNAVAILABLE" } else { "" }, &[]);
    drop(serving);
    get(&key).check("no keyguard either", kind.without_keyguard, "", &[]);

    drop(gateway);
    let lenient = Serving::start(&server, &["--trusted-proxy", "127.0.0.1", "--fail-open"]);
    let gateway = Gateway::start(kind, &server, &lenient, application());
    let seen = gateway.get("/api/page", &[("X-API-Key", &key), ("X-Keyguard-Organization", "mallory")]);
    seen.check("let in unseen", 200, "", &[]);
    assert!(!seen.body.contains("mallory"), "{seen:?}");
}

fn what_a_caller_says_of_himself_counts_for_nothing(
    kind: &Kind,
    gateway: &Gateway,
    key: &str,
    none: &str,
    elsewhere: &str,
) {
    for (name, value) in [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Real-IP", "192.0.2.1"),
        ("Forwarded", "for=192.0.2.1"),
        ("X-Forwarded-Uri", "/verify"),
        ("X-Forwarded-Method", "TRACE"),
        ("X-Original-URI", "/"),
        ("X-Original-Method", "PUT"),
        ("X-Envoy-Original-Path", "/"),
        ("X-Required-Scope", "profile"),
        ("X-Required-Cost", "1"),
        ("X-Keyguard-Organization", "mallory"),
        ("X-Keyguard-Code", "mallory"),
        ("X_Keyguard_Organization", "mallory"),
        ("X-Keyguard_Organization", "mallory"),
    ] {
        let with = |key: &str| gateway.get("/api/page?scope=", &[("X-API-Key", key), (name, value)]);
        let seen = with(key);
        seen.check(name, 200, "", &[]);
        let told = seen.body.to_lowercase();
        let organizations: Vec<_> = told.lines().filter(|line| line.starts_with("x-keyguard-organization:")).collect();
        assert_eq!(organizations, ["x-keyguard-organization: shop"], "{name}: {told}");
        assert!(!told.contains("mallory") || name.contains('_') && !kind.drops_underscores, "{name}: {told}");
        for part in ["x-keyguard-key-id: 2", "x-keyguard-label: web", "x-keyguard-scopes: orders:read"] {
            assert!(told.lines().any(|line| line == part), "{name}: {part}: {told}");
        }
        with(none).check(name, 403, "INSUFFICIENT_SCOPE", SCOPE);
        with(elsewhere).check(name, 403, "IP_NOT_ALLOWED", &[]);
    }
}

fn no_spelling_gets_round_a_rule_for_a_path(gateway: &Gateway, key: &str) {
    let get = |target: &str| gateway.get(target, &[("X-API-Key", key)]);
    get("/api/page").check("another path", 200, "", &[]);
    let mut refused = 0;
    for target in [
        "/api/orders",
        "/api/orders/1?x",
        "/api/%6frders",
        "/api/orders%2f1",
        "/api//orders",
        "//api/orders",
        "/api/./orders",
        "/api/%2e/orders",
        "/api/x/../orders",
        "/api/x/%2e%2e/orders",
        "/api/x%2f..%2forders",
        "/api/x%2f%2e%2e%2forders",
        "/api/%3f/../orders",
        "/api/%23/../orders",
        "/api/x/..%2forders",
        "/api/orders;x=1",
        "/api;x/orders",
        "/api/x\\..\\orders",
        "/api/orders%00",
        "/api/orders%3f",
        "/api/x?/../../orders",
        "/api/x#/../orders",
        "http://localhost/api/orders",
    ] {
        let seen = get(target);
        if seen.status == 200 {
            let reached = seen.body.split(' ').nth(1).expect("the application was reached").to_owned();
            let path = as_an_application_may_read(&reached);
            let is_ruled = path.split('/').take(3).eq(["", "api", "orders"]) || path.contains('\0');
            assert!(!is_ruled, "{target} reached {path:?}");
        } else {
            assert!((400..500).contains(&seen.status), "{target}: {seen:?}");
            refused += 1;
        }
    }
    assert!(refused >= 12, "{refused}");
    let blocked = get("/api/%6frders?x");
    blocked.check("a blocked path", 403, "IP_BLOCKED", &[("retry-after", "~3600")]);
}

/// The path in which everything is decoded, once, and then resolved, as some read backslashes, and parameters of segments.
fn as_an_application_may_read(target: &str) -> String {
    let target = target.strip_prefix("http://localhost").unwrap_or(target);
    let path = target.split(['?', '#']).next().unwrap();
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let value = |bytes: &std::str::Bytes| {
            let digits: String = bytes.clone().take(2).map(char::from).collect();
            u8::from_str_radix(&digits, 16).ok()
        };
        match value(&bytes) {
            Some(value) if byte == b'%' => {
                decoded.push(value);
                bytes.nth(1);
            }
            _ => decoded.push(byte),
        }
    }
    let decoded = String::from_utf8(decoded).unwrap();
    let mut parts: Vec<&str> = Vec::new();
    for part in decoded.split(['/', '\\']) {
        match part.split(';').next().unwrap() {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
