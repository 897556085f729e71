//! `keyguard serve` as other HTTP servers ask it: what /verify answers, by which status and headers, and what is not let in.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    Client, Cluster, Reply, Response, Server, Serving, Sut, args, eventually, expect, free_port, server_tests, tool,
};

server_tests![
    every_code_has_its_status_and_headers,
    a_proxy_is_believed_about_path_method_and_address,
    a_path_that_can_be_read_in_two_ways_is_kept_out_by_every_block_and_let_in_by_none_that_allows,
    a_mistake_of_whoever_asks_is_told_to_him_and_is_no_failure_of_the_server,
    the_prefix_of_a_key_says_which_store_is_asked,
    a_cluster_is_asked_at_whichever_node_has_the_store,
    a_user_who_cannot_find_a_store_in_a_cluster_is_told_what_is_missing,
    a_primary_that_hangs_and_is_replaced_is_found_again,
    a_node_that_hangs_from_the_start_keeps_nobody_from_the_others,
    an_unknown_key_is_never_let_in_while_the_server_comes_and_goes,
    a_server_that_hangs_holds_nobody_up_for_long,
    a_server_that_has_hung_is_found_again_while_calls_go_on,
    with_fail_open_only_an_absent_server_lets_in,
    with_fail_open_nobody_is_let_in_for_a_mistake_in_how_it_is_set_up,
    metrics_and_health_say_how_it_stands,
    what_is_under_way_is_answered_before_the_end,
    requests_that_are_too_large_or_too_slow_are_ended,
    connections_that_do_nothing_keep_others_waiting_for_a_while_at_most,
    who_may_not_open_as_many_files_as_there_may_be_connections_is_told,
    what_cannot_be_listened_on_is_said,
    nginx_passes_on_what_is_answered,
    nginx_lets_nobody_in_whatever_it_is_answered_instead,
];

const UNKNOWN: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\"")];
const SCOPE: &[(&str, &str)] = &[("www-authenticate", "Bearer realm=\"api\", error=\"insufficient_scope\"")];

fn new_key(c: &mut Client, store: &str, arguments: &str) -> String {
    c.ok(format!("KG.NEWKEY {store} {arguments}")).list()[1].text()
}

fn get(serving: &Serving, path: &str, key: &str) -> Response {
    serving.send("GET", path, &[("X-API-Key", key)], "")
}

/// The headers of a limit of two in an hour.
fn limits(left: &'static str, ratelimit: &'static str) -> Vec<(&'static str, &'static str)> {
    let [limit, reset] = [("x-ratelimit-limit", "2"), ("x-ratelimit-reset", "~3600")];
    let policy = ("ratelimit-policy", "\"default\";q=2;w=3600");
    vec![limit, ("x-ratelimit-remaining", left), reset, policy, ("ratelimit", ratelimit)]
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn pid_of(server: &Server) -> u32 {
    server.client().info_number("server", "process_id").try_into().unwrap()
}

fn every_code_has_its_status_and_headers(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let serving = Serving::start(&server, &[]);
    // A store that is not there is no reason to call a key unknown.
    get(&serving, "/verify", "kg_live_nobody").check("no store", 503, "UNAVAILABLE", &[]);
    c.ok("KG.ADDORG acme shop");
    c.ok("KG.ADDORG acme lab");
    let web = new_key(&mut c, "acme", "shop web SCOPES orders:read,profile");
    let none = new_key(&mut c, "acme", "shop none");
    let gone = new_key(&mut c, "acme", "shop gone");
    let expired = new_key(&mut c, "acme", "shop expired EXPIREAT 1");
    let suspended = new_key(&mut c, "acme", "lab suspended");
    let limited = new_key(&mut c, "acme", "shop limited LIMIT 2 1h");
    let metered = new_key(&mut c, "acme", "shop metered QUOTA 3 day");
    let tokens = new_key(&mut c, "acme", "shop tokens QUOTA 5 total UNIT tokens");
    let elsewhere = new_key(&mut c, "acme", "shop elsewhere ALLOW 192.0.2.0/24");
    c.ok("KG.SETORG acme lab STATUS suspended");
    c.ok(args!["KG.REVOKE", "acme", "KEY", &gone]);
    let orders = "/verify?scope=orders:read";
    for (what, key, path, status, code, headers) in [
        ("an unknown key", "kg_live_nobody", "/verify", 401, "NOT_FOUND", UNKNOWN),
        ("an empty key", "", "/verify", 401, "NOT_FOUND", UNKNOWN),
        ("a revoked key", &gone, "/verify", 401, "NOT_FOUND", UNKNOWN),
        ("an expired key", &expired, "/verify", 401, "NOT_FOUND", UNKNOWN),
        ("a suspended organization", &suspended, "/verify", 403, "ORG_SUSPENDED", &[]),
        ("another address", &elsewhere, "/verify", 403, "IP_NOT_ALLOWED", &[]),
        ("a scope that the key lacks", &none, orders, 403, "INSUFFICIENT_SCOPE", SCOPE),
        ("one of two that it lacks", &web, "/verify?scope=profile&scope=x", 403, "INSUFFICIENT_SCOPE", SCOPE),
        ("a scope that the key has", &web, orders, 200, "", &[]),
        ("no scope", &none, "/verify", 200, "", &[]),
        ("a word that it does not know", &web, "/verify?scopes=profile", 400, "BAD_REQUEST", &[]),
        ("a cost of nothing", &web, "/verify?cost=0", 400, "BAD_REQUEST", &[]),
        ("nothing that is there", &web, "/verifying", 404, "NOT_FOUND", &[]),
        ("a cost", &metered, "/verify?cost=2", 200, "", &[]),
        ("a cost in tokens", &tokens, "/verify?cost=1&cost=4:tokens", 200, "", &[]),
        ("more tokens than are left", &tokens, "/verify?cost=2:tokens", 429, "QUOTA_EXCEEDED", &[]),
    ] {
        get(&serving, path, key).check(what, status, code, headers);
    }
    let bearer = |scheme: &str| serving.send("GET", orders, &[("Authorization", &format!("{scheme} {web}"))], "");
    bearer("Bearer").check("Bearer", 200, "", &[]);
    bearer("bearer").check("bearer", 200, "", &[]);
    bearer("Basic").check("Basic", 401, "NOT_FOUND", UNKNOWN);
    serving.send("GET", orders, &[], "").check("no key", 401, "NOT_FOUND", UNKNOWN);
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
        serving.send(method, orders, &[("X-API-Key", &web)], "").check(method, 200, "", &[]);
    }
    // What the proxy demands in a header, it demands, too.
    let demand =
        |name: &str, value: &str, key: &str| serving.send("GET", "/verify", &[("X-API-Key", key), (name, value)], "");
    demand("X-Required-Scope", "orders:read, profile", &web).check("both scopes", 200, "", &[]);
    demand("X-Required-Scope", "orders:read other", &web).check("scopes", 403, "INSUFFICIENT_SCOPE", SCOPE);
    let over = demand("X-Required-Cost", "2", &metered);
    over.check_status_and_wait("a cost", 429, "QUOTA_EXCEEDED", 86_400);

    let caller = get(&serving, "/verify", &web);
    assert!(caller.body.is_empty(), "{caller:?}");
    let named = [("key-id", "3"), ("organization", "shop"), ("label", "web"), ("scopes", "orders:read profile")];
    for (name, value) in named {
        assert_eq!(caller.headers[&format!("x-keyguard-{name}")], value);
    }

    assert_eq!(get(&serving, "/verify", &none).headers["x-keyguard-scopes"], "-");

    get(&serving, "/verify", &limited).check("the first", 200, "", &limits("1", "\"default\";r=1;t=~3600"));
    get(&serving, "/verify", &limited).check("the second", 200, "", &limits("0", "\"default\";r=0;t=~3600"));
    let mut full = limits("0", "\"default\";r=0;t=~3600");
    full.push(("retry-after", "~3600"));
    get(&serving, "/verify", &limited).check("the third", 429, "RATE_LIMITED", &full);

    for (block, headers) in [("1h", &[("retry-after", "~3600")][..]), ("", &[])] {
        c.ok(format!("KG.BLOCKIP acme 127.0.0.1 {block}"));
        for key in [&*web, "kg_live_nobody", ""] {
            get(&serving, "/verify", key).check("a blocked address", 403, "IP_BLOCKED", headers);
        }
    }
    c.ok("KG.UNBLOCKIP acme 127.0.0.1");
    get(&serving, "/verify", &web).check("unblocked", 200, "", &[]);
    let log = serving.log();
    assert!(!log.contains("kg_live_"), "{log}");
}

fn a_proxy_is_believed_about_path_method_and_address(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    let elsewhere = new_key(&mut c, "acme", "shop elsewhere ALLOW 192.0.2.0/24");
    c.ok("KG.BLOCKIP acme 127.0.0.1 PATH /admin");
    c.ok("KG.BLOCKIP acme 198.51.100.7");
    let trusting = Serving::start(&server, &[]);
    let ask = |path: &str, headers: &[(&str, &str)]| {
        let headers = [&[("X-API-Key", &*key)], headers].concat();
        trusting.send("GET", path, &headers, "")
    };
    for name in ["X-Original-URI", "X-Forwarded-Uri"] {
        for uri in [
            "/admin",
            "/admin/x?y",
            "/%61dmin",
            "//admin",
            "/admin/x://y/z",
            "/x/../admin",
            "/public/%3F/../admin",
            "http://localhost/x/%3f/../../admin",
            "http://localhost/admin",
        ] {
            ask("/verify", &[(name, uri)]).check(uri, 403, "IP_BLOCKED", &[]);
        }
        for uri in ["/", "/public?x=/admin", "/public?x#y", "/administration"] {
            ask("/verify", &[(name, uri)]).check(uri, 200, "", &[]);
        }
    }
    // Envoy appends path and query of the request.
    ask("/verify/admin", &[]).check("Envoy", 403, "IP_BLOCKED", &[]);
    ask("/verify/admin/x?scope=any", &[]).check("Envoy", 403, "IP_BLOCKED", &[]);
    ask("/verify/", &[]).check("Envoy", 200, "", &[]);
    ask("/verify/?page=2", &[]).check("the caller's query", 200, "", &[]);
    ask("/verify/public?scope=any&cost=5", &[]).check("the caller's query", 200, "", &[]);
    ask("/verify/public", &[("X-Forwarded-Proto", "https"), ("X-Envoy-Original-Path", "/")]).check(
        "Envoy",
        200,
        "",
        &[],
    );
    // One who names a path beside it may be the caller: which of the two is guarded is not certain.
    for (name, value) in [
        ("X-Original-URI", "/"),
        ("X-Forwarded-Uri", "/public"),
        ("X-Original-Method", "GET"),
        ("X-Forwarded-Method", "GET"),
    ] {
        for path in ["/verify/", "/verify/public", "/verify/admin"] {
            ask(path, &[(name, value)]).check(name, 400, "BAD_REQUEST", &[]);
        }
    }
    // Whoever demands something behind a slash must not believe that it is heeded.
    for demand in ["scope=orders:read", "x=y&scope=x", "cost=5", "%73cope=x"] {
        ask(&format!("/verify/?{demand}"), &[]).check(demand, 400, "BAD_REQUEST", &[]);
    }
    // A caller cannot make a rule miss by a header that the proxy leaves alone.
    let two = [("X-Original-URI", "/"), ("X-Forwarded-Uri", "/admin")];
    ask("/verify", &two).check("two paths", 400, "BAD_REQUEST", &[]);
    let two = [("X-Forwarded-Uri", "/"), ("X-Forwarded-Uri", "/admin")];
    ask("/verify", &two).check("two paths", 400, "BAD_REQUEST", &[]);
    ask("/verify", &[("X-Original-URI", "/"), ("X-Forwarded-Uri", "/")]).check("one path", 200, "", &[]);
    for name in ["X-Original-Method", "X-Forwarded-Method"] {
        ask("/verify", &[(name, "DELETE")]).check(name, 200, "", &[]);
    }

    let forwarded = |serving: &Serving, key: &str, addresses: &str| {
        serving.send("GET", "/verify", &[("X-API-Key", key), ("X-Forwarded-For", addresses)], "")
    };
    forwarded(&trusting, &key, "198.51.100.7").check("blocked", 403, "IP_BLOCKED", &[]);
    forwarded(&trusting, &key, "192.0.2.1, 198.51.100.7").check("blocked", 403, "IP_BLOCKED", &[]);
    forwarded(&trusting, &key, "198.51.100.7, 192.0.2.1").check("written by the caller", 200, "", &[]);
    forwarded(&trusting, &elsewhere, "192.0.2.1").check("allowed", 200, "", &[]);
    forwarded(&trusting, &elsewhere, "192.0.2.1, 203.0.113.1").check("elsewhere", 403, "IP_NOT_ALLOWED", &[]);
    forwarded(&trusting, &key, "unknown").check("no address", 400, "BAD_REQUEST", &[]);
    let chain = Serving::start(&server, &["--trusted-proxy", "127.0.0.1", "--trusted-proxy", "203.0.113.0/24"]);
    forwarded(&chain, &elsewhere, "192.0.2.1, 203.0.113.1").check("two proxies", 200, "", &[]);
    let wary = Serving::start(&server, &["--trusted-proxy", "203.0.113.0/24"]);
    forwarded(&wary, &key, "198.51.100.7").check("no proxy", 200, "", &[]);
    forwarded(&wary, &elsewhere, "192.0.2.1").check("no proxy", 403, "IP_NOT_ALLOWED", &[]);
}

/// What stands behind the proxy may read such a path in another way than we do: then it is none that a rule could miss.
fn a_path_that_can_be_read_in_two_ways_is_kept_out_by_every_block_and_let_in_by_none_that_allows(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    c.ok("KG.BLOCKIP acme 198.51.100.7 PATH /admin");
    c.ok("KG.BLOCKIP acme 198.51.100.8");
    c.ok("KG.ALLOWIP acme 198.51.100.8 PATH /public");
    let serving = Serving::start(&server, &[]);
    let ask = |address: &str, uri: &str| {
        let headers = [("X-API-Key", &*key), ("X-Forwarded-For", address), ("X-Original-URI", uri)];
        serving.send("GET", "/verify", &headers, "")
    };
    let [blocked_there, allowed_there] = ["198.51.100.7", "198.51.100.8"];
    ask(blocked_there, "/public/x").check("another path", 200, "", &[]);
    ask(allowed_there, "/public/x").check("the path", 200, "", &[]);
    let long = format!("/public/{}", "x".repeat(2000));
    for uri in [
        "",
        "*",
        "admin",
        "localhost:443",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public%2f..%2fadmin",
        "/public/./x",
        r"/public\..\admin",
        r"/public\x",
        "/public%5c..%5cadmin",
        "/public;/../admin",
        "/public/..;/admin",
        "/public/..%3bx/admin",
        "/public;x=1/y",
        "//public/admin",
        "/%2fpublic/admin",
        "http://localhost//public/x",
        r"http://localhost\admin/public/x",
        "admin/x://localhost/public/x",
        "://localhost/public/x",
        "/public/%00",
        "/public/%0a",
        "/public/%ff",
        "/public/%c0%ae%c0%ae/admin",
        &long,
    ] {
        for address in [blocked_there, allowed_there] {
            ask(address, uri).check(uri, 403, "IP_BLOCKED", &[]);
        }
        ask("192.0.2.1", uri).check(uri, 200, "", &[]);
    }
    // Where one reads a path on, another may take it to end.
    for uri in ["/public#/../admin", "/admin#", "#", "http://localhost#/admin"] {
        ask("192.0.2.1", uri).check(uri, 400, "BAD_REQUEST", &[]);
    }
}

fn a_mistake_of_whoever_asks_is_told_to_him_and_is_no_failure_of_the_server(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    let serving = Serving::start(&server, &["--store-by-prefix", "stray=stray"]);
    let long = "M".repeat(40);
    for (path, header) in [
        ("/verify", ("X-Original-Method", "NO METHOD")),
        ("/verify", ("X-Forwarded-Method", &*long)),
        ("/verify?cost=+5", ("X-None", "")),
        ("/verify?cost=%2B5", ("X-None", "")),
        ("/verify?cost=1&cost=2", ("X-None", "")),
        ("/verify?cost=1", ("X-Required-Cost", "1")),
        ("/verify?cost=1:%20", ("X-None", "")),
        ("/verify?scope=a%20b", ("X-None", "")),
    ] {
        let answer = serving.send("GET", path, &[("X-API-Key", &key), header], "");
        answer.check(path, 400, "BAD_REQUEST", &[]);
        assert!(answer.body.contains("detail") && !answer.body.contains("MMM"), "{answer:?}");
    }
    assert!(!serving.log().contains("no answer"), "{}", serving.log());
    assert!(serving_metric(&serving, "keyguard_verify_answers_total{code=\"BAD_REQUEST\"} 8"));
    // One store that is not there says nothing about the others, and is told of once.
    for _ in 0..10 {
        get(&serving, "/verify", "stray_key").check("no store", 503, "UNAVAILABLE", &[]);
        get(&serving, "/verify", &key).check("a store", 200, "", &[]);
    }
    let log = serving.log();
    assert_eq!(log.matches("no answer to KG.AUTH").count(), 1, "{log}");
    assert!(log.contains("stray") && !log.contains("again"), "{log}");
    c.ok("KG.ADDORG stray shop");
    let stray = new_key(&mut c, "stray", "shop web PREFIX stray");
    eventually("the store being told of", || {
        get(&serving, "/verify", &stray).check("the store", 200, "", &[]);
        expect(serving.log().contains("answered again"), || serving.log())
    });
}

fn the_prefix_of_a_key_says_which_store_is_asked(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    for store in ["acme", "one", "two"] {
        c.ok(format!("KG.ADDORG {store} shop"));
    }
    let keys = [("acme", "kg"), ("one", "one"), ("two", "one_two")];
    let keys = keys.map(|(store, prefix)| (store, new_key(&mut c, store, &format!("shop {store} PREFIX {prefix}"))));
    let routes = ["--store-by-prefix", "one=one", "--store-by-prefix", "one_two=two"];
    let serving = Serving::start(&server, &routes);
    for (store, key) in &keys {
        let answer = get(&serving, "/verify", key);
        answer.check(store, 200, "", &[]);
        assert_eq!(answer.headers["x-keyguard-label"], *store);
    }
    let stray = new_key(&mut c, "acme", "shop stray PREFIX one_x");
    get(&serving, "/verify", &stray).check("a key of another store", 401, "NOT_FOUND", UNKNOWN);
}

fn a_cluster_is_asked_at_whichever_node_has_the_store(sut: &Sut) {
    let setups = (0..2).map(|_| sut.setup().cluster(5000)).collect();
    let cluster = Cluster::start(setups, Vec::new());
    let stores: Vec<String> = (0..2)
        .map(|node| {
            let mut names = (0..).map(|n| format!("store{n}"));
            names.find(|name| cluster.place_of(name.as_bytes()).1 == node).unwrap()
        })
        .collect();
    let keys: Vec<String> = (0..2)
        .map(|node| {
            let mut c = cluster.primaries[node].client();
            c.ok(format!("KG.ADDORG {} shop", stores[node]));
            new_key(&mut c, &stores[node], &format!("shop web PREFIX s{node}"))
        })
        .collect();
    let routes: Vec<String> = (0..2).map(|node| format!("--store-by-prefix=s{node}={}", stores[node])).collect();
    let serving = Serving::start(&cluster.primaries[0], &[&*routes[0], &*routes[1]]);
    let both = |about: &str| {
        for key in &keys {
            get(&serving, "/verify", key).check(about, 200, "", &[]);
        }
    };
    both("at rest");
    let figures = cluster
        .primaries
        .iter()
        .map(|node| format!("keyguard_server_auth_valid{{node=\"127.0.0.1:{}\"}} 1", node.port()));
    metrics_with(&serving, &figures.collect::<Vec<_>>());
    let (slot, source) = cluster.place_of(stores[1].as_bytes());
    cluster.begin_migration(slot, source, 0);
    // While keys are on their way, a node may miss one that it needs, and says so.
    let meanwhile = |about: &str| {
        let answer = get(&serving, "/verify", &keys[1]);
        assert!([200, 503].contains(&answer.status), "{about}: {answer:?}");
        get(&serving, "/verify", &keys[0]).check(about, 200, "", &[]);
        get(&serving, "/verify", &format!("{}x", keys[1])).status
    };
    assert_ne!(meanwhile("about to move"), 200);
    let (mut from, to) = (cluster.primaries[source].client(), cluster.primaries[0].client());
    for key in from.ok(format!("CLUSTER GETKEYSINSLOT {slot} 100")).list() {
        crate::harness::migrate(&mut from, &to, &key.bytes());
    }
    assert_ne!(meanwhile("on its way"), 200);
    cluster.end_migration(slot, 0);
    both("moved");
}

/// One store on each of the cluster's first two nodes, and a key of each.
fn stores_on_two_nodes(cluster: &Cluster) -> [(String, String); 2] {
    [0, 1].map(|node| {
        let mut names = (0..).map(|n| format!("store{n}"));
        let store = names.find(|name| cluster.place_of(name.as_bytes()).1 == node).unwrap();
        let mut c = cluster.primaries[node].client();
        c.ok(format!("KG.ADDORG {store} shop"));
        let key = new_key(&mut c, &store, &format!("shop web PREFIX s{node}"));
        (store, key)
    })
}

/// Serves the stores by the prefixes of their keys.
fn serve_two_nodes(at: &Server, stores: &[(String, String); 2], url: &str, further: &[&str]) -> Serving {
    let routes = [0, 1].map(|node| format!("--store-by-prefix=s{node}={}", stores[node].0));
    Serving::start(at, &[&["--url", url, &*routes[0], &*routes[1]], further].concat())
}

fn a_user_who_cannot_find_a_store_in_a_cluster_is_told_what_is_missing(sut: &Sut) {
    let cluster = Cluster::start((0..2).map(|_| sut.setup().cluster(5000)).collect(), Vec::new());
    let stores = stores_on_two_nodes(&cluster);
    for (user, rights) in [("gate", "+kg.auth"), ("reader", "+kg.auth +info")] {
        for node in &cluster.primaries {
            node.client().ok(format!("ACL SETUSER {user} on nopass ~* {rights}"));
        }
        let url = format!("redis://{user}:x@127.0.0.1:{}", cluster.primaries[0].port());
        let serving = serve_two_nodes(&cluster.primaries[0], &stores, &url, &["--fail-open"]);
        if user == "gate" {
            get(&serving, "/verify", &stores[0].1).check("a store of this node", 200, "", &[]);
        }
        get(&serving, "/verify", &stores[1].1).check("a store of another node", 503, "UNAVAILABLE", &[]);
        let log = serving.log();
        let wanted = if user == "gate" { "+info and +cluster|slots" } else { "cluster|slots" };
        assert!(log.contains(wanted), "{log}");
    }
}

fn a_primary_that_hangs_and_is_replaced_is_found_again(sut: &Sut) {
    let node = || sut.setup().cluster(60_000).with("cluster-require-full-coverage", "no");
    let replica = || node().with("cluster-replica-no-failover", "yes");
    let cluster = Cluster::start([(); 2].map(|()| node()).into(), [(); 2].map(|()| replica()).into());
    let stores = stores_on_two_nodes(&cluster);
    for (primary, replica) in cluster.primaries.iter().zip(&cluster.replicas) {
        primary.wait_for(replica);
    }
    // The URL's own node is the last to go: it is no more than the one that was asked first.
    for victim in [1, 0] {
        let url = format!("redis://127.0.0.1:{}", cluster.primaries[0].port());
        let serving = serve_two_nodes(&cluster.primaries[0], &stores, &url, &[]);
        for (store, key) in &stores {
            eventually("at rest", || {
                let answer = get(&serving, "/verify", key);
                expect(answer.status == 200, || format!("{store}: {answer:?} {}", serving.log()))
            });
        }
        let pid = pid_of(&cluster.primaries[victim]);
        signal(pid, "-STOP");
        let (hung, well) = (&stores[victim].1, &stores[1 - victim].1);
        get(&serving, "/verify", hung).check("it hangs", 503, "UNAVAILABLE", &[]);
        get(&serving, "/verify", well).check("another node", 200, "", &[]);
        cluster.replicas[victim].client().ok("CLUSTER FAILOVER TAKEOVER");
        let begun = Instant::now();
        eventually("the successor being found", || {
            get(&serving, "/verify", well).check("another node", 200, "", &[]);
            let answer = get(&serving, "/verify", hung);
            expect(answer.status == 200, || format!("node {victim}: {answer:?} {}", serving.log()))
        });
        let took = begun.elapsed();
        signal(pid, "-CONT");
        assert!(took < Duration::from_secs(30), "{took:?}");
        // It learns that it is a replica now.
        eventually("the old primary giving in", || {
            let role = cluster.primaries[victim].client().ok("ROLE").list()[0].text();
            expect(role == "slave", || role.clone())
        });
    }
}

fn a_node_that_hangs_from_the_start_keeps_nobody_from_the_others(sut: &Sut) {
    let node = || sut.setup().cluster(60_000).with("cluster-require-full-coverage", "no");
    let cluster = Cluster::start([(); 2].map(|()| node()).into(), Vec::new());
    let stores = stores_on_two_nodes(&cluster);
    let pid = pid_of(&cluster.primaries[1]);
    signal(pid, "-STOP");
    let url = format!("redis://127.0.0.1:{}", cluster.primaries[0].port());
    let serving = serve_two_nodes(&cluster.primaries[0], &stores, &url, &[]);
    eventually("a store of a node that does not hang", || {
        let answer = get(&serving, "/verify", &stores[0].1);
        expect(answer.status == 200, || format!("{answer:?} {}", serving.log()))
    });
    // What is asked of the other in between, and comes to nothing, changes nothing about that.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                get(&serving, "/verify", &stores[1].1).check("it hangs", 503, "UNAVAILABLE", &[]);
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) && !asked.is_finished() {
            get(&serving, "/verify", &stores[0].1).check("another node", 200, "", &[]);
        }
        over.store(true, Ordering::SeqCst);
    });
    signal(pid, "-CONT");
    eventually("the node that hung", || {
        let answer = get(&serving, "/verify", &stores[1].1);
        expect(answer.status == 200, || format!("{answer:?} {}", serving.log()))
    });
}

fn an_unknown_key_is_never_let_in_while_the_server_comes_and_goes(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let valid = new_key(&mut c, "acme", "shop web");
    // It may start before the server does.
    server.kill();
    let serving = Serving::start(&server, &[]);
    get(&serving, "/verify", &valid).check("no server", 503, "UNAVAILABLE", &[]);
    server.start_again();
    let back = |about| {
        eventually(about, || {
            let answer = get(&serving, "/verify", &valid);
            expect(answer.status == 200, || format!("{answer:?}"))
        });
    };
    back("the server being found");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (key, wanted) in [(&*valid, [200, 503]), ("kg_live_nobody", [401, 503])].repeat(2) {
            let (serving, over) = (&serving, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = get(serving, "/verify", key);
                    assert!(wanted.contains(&answer.status), "{key}: {answer:?}");
                    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
                }
            });
        }
        for _ in 0..2 {
            server.kill();
            get(&serving, "/verify", &valid).check("killed", 503, "UNAVAILABLE", &[]);
            server.start_again();
            back("the server being found again");
        }
        over.store(true, Ordering::Relaxed);
    });
    // What changes within a second is told later.
    eventually("the log saying so", || {
        get(&serving, "/verify", &valid).check("back", 200, "", &[]);
        expect(serving.log().contains("is answered again"), || serving.log())
    });
    let log = serving.log();
    assert!(!log.contains(&valid) && !log.contains("kg_live_"), "{log}");

    // A server that may not write lets nobody in either.
    let primary = sut.server();
    let mut c = server.client();
    c.ok(format!("REPLICAOF 127.0.0.1 {}", primary.port()));
    get(&serving, "/verify", &valid).check("a replica", 503, "UNAVAILABLE", &[]);
    assert_eq!(serving.send("GET", "/healthz", &[], "").status, 503);
}

fn a_server_that_hangs_holds_nobody_up_for_long(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web LIMIT 100 1h");
    let serving = Serving::start(&server, &[]);
    get(&serving, "/verify", &key).check(
        "at rest",
        200,
        "",
        &[
            ("x-ratelimit-limit", "100"),
            ("x-ratelimit-remaining", "99"),
            ("x-ratelimit-reset", "~3600"),
            ("ratelimit-policy", "\"default\";q=100;w=3600"),
            ("ratelimit", "\"default\";r=99;t=~3600"),
        ],
    );
    let pid = pid_of(&server);
    signal(pid, "-STOP");
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| get(&serving, "/verify", &key).check("it hangs", 503, "UNAVAILABLE", &[]));
        }
    });
    let took = begun.elapsed();
    // And now it has to connect first.
    let begun = Instant::now();
    get(&serving, "/verify", &key).check("it hangs still", 503, "UNAVAILABLE", &[]);
    let took_again = begun.elapsed();
    signal(pid, "-CONT");
    for took in [took, took_again] {
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    }
    // What it was asked while it hung it does later, once each at most.
    eventually("an answer", || {
        let answer = get(&serving, "/verify", &key);
        expect(answer.status == 200, || format!("{answer:?}"))
    });
    let left: u32 = get(&serving, "/verify", &key).headers["x-ratelimit-remaining"].parse().unwrap();
    assert!(left >= 100 - 1 - 9 - 2 - 1, "{left}");
}

/// The server by a long line: so much later comes what either side says.
fn long_line(to: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let pass = move |mut from: TcpStream, mut to: TcpStream| {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            thread::sleep(delay);
            if to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    };
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || pass(near, far));
            thread::spawn(move || pass(far_too, near_too));
        }
    });
    port
}

/// To connect takes longer than the time between two calls: whoever connects must not be hurried by whoever waits.
fn a_server_that_has_hung_is_found_again_while_calls_go_on(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    let line = long_line(server.port(), Duration::from_millis(15));
    let serving = Serving::start(&server, &["--url", &format!("redis://127.0.0.1:{line}")]);
    get(&serving, "/verify", &key).check("at rest", 200, "", &[]);
    let is_over = AtomicBool::new(false);
    let (pid, port) = (pid_of(&server), serving.port);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut calls = VecDeque::new();
            while !is_over.load(Ordering::Relaxed) {
                if let Ok(mut call) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    let _ = write!(call, "GET /verify HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n");
                    calls.push_back(call);
                }
                // Nobody waits for the answers of those before.
                calls.drain(..calls.len().saturating_sub(600));
                thread::sleep(Duration::from_millis(5));
            }
        });
        let ended = std::panic::catch_unwind(|| {
            signal(pid, "-STOP");
            eventually("nobody being let in", || {
                expect(get(&serving, "/verify", &key).status == 503, || "it is let in".to_owned())
            });
            get(&serving, "/verify", &key).check("it hangs still", 503, "UNAVAILABLE", &[]);
            signal(pid, "-CONT");
            eventually("an answer", || {
                let answer = get(&serving, "/verify", &key);
                expect(answer.status == 200, || format!("{answer:?}"))
            });
        });
        is_over.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn with_fail_open_only_an_absent_server_lets_in(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    let serving = Serving::start(&server, &["--fail-open"]);
    let nowhere = Serving::start(&server, &["--fail-open", "--store", "nowhere"]);
    get(&serving, "/verify", &key).check("valid", 200, "", &[]);
    get(&serving, "/verify", "kg_live_nobody").check("a refusal", 401, "NOT_FOUND", UNKNOWN);
    get(&nowhere, "/verify", &key).check("no such store", 503, "UNAVAILABLE", &[]);
    server.kill();
    for key in [&*key, "kg_live_nobody"] {
        let answer = get(&serving, "/verify", key);
        answer.check("no server", 200, "", &[]);
        assert_eq!(answer.headers["x-keyguard-code"], "UNAVAILABLE");
        // What a caller says that he is, the proxy replaces by this, which must not be empty: some then leave what he said.
        for name in ["key-id", "organization", "label", "scopes"] {
            assert_eq!(answer.headers[&format!("x-keyguard-{name}")], "-");
        }
    }
    server.start_again();
    eventually("refusals being back", || {
        let answer = get(&serving, "/verify", "kg_live_nobody");
        expect(answer.status == 401, || format!("{answer:?}"))
    });
}

/// A server that answers whatever it is sent with this.
fn stranger(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                while let Ok(1..) = connection.read(&mut [0; 4096]) {
                    let _ = connection.write_all(answer);
                }
            });
        }
    });
    port
}

fn with_fail_open_nobody_is_let_in_for_a_mistake_in_how_it_is_set_up(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    c.ok("ACL SETUSER guest on nopass ~* +info");
    c.ok("ACL SETUSER closed on nopass resetkeys +@all");
    let bare = sut.setup().without_module().start();
    let (port, bare) = (server.port(), bare.port());
    let http = stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    // As often as it is asked something at once.
    let old = stranger(b"-NOPROTO unsupported protocol version\r\n-ERR no\r\n-ERR no\r\n");
    for (about, url, reason) in [
        ("a user who may not ask", format!("redis://guest:x@127.0.0.1:{port}"), "not_permitted"),
        ("a user who may not see the store", format!("redis://closed:x@127.0.0.1:{port}"), "not_permitted"),
        ("a user that there is not", format!("redis://nobody:x@127.0.0.1:{port}"), "not_permitted"),
        ("no module", format!("redis://127.0.0.1:{bare}"), "no_module"),
        ("no such database", format!("redis://127.0.0.1:{port}/99"), ""),
        ("no TLS", format!("rediss://127.0.0.1:{http}"), "misconfigured"),
        ("another protocol", format!("redis://127.0.0.1:{http}"), ""),
        ("an older protocol", format!("redis://127.0.0.1:{old}"), ""),
    ] {
        let serving = Serving::start(&server, &["--fail-open", "--url", &url]);
        get(&serving, "/verify", &key).check(about, 503, "UNAVAILABLE", &[]);
        let health = serving.send("GET", "/healthz", &[], "");
        assert!(health.status == 503 && health.body.contains(reason), "{about}: {health:?} {}", serving.log());
    }
    for url in [format!("redis://127.0.0.1:{}", free_port()), "unix:///nowhere/redis.sock".to_owned()] {
        let serving = Serving::start(&server, &["--fail-open", "--url", &url]);
        get(&serving, "/verify", &key).check("no server", 200, "", &[]);
    }
}

fn metrics_and_health_say_how_it_stands(sut: &Sut) {
    let mut server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    let serving = Serving::start(&server, &[]);
    let health = || {
        let answer = serving.send("GET", "/healthz", &[], "");
        (answer.status, answer.body)
    };
    assert_eq!(health(), (200, "ok".to_owned()));
    for key in [&*key, &*key, "kg_live_nobody"] {
        get(&serving, "/verify", key);
    }
    let lines = [
        "keyguard_verify_answers_total{code=\"VALID\"} 2",
        "keyguard_verify_answers_total{code=\"NOT_FOUND\"} 1",
        "keyguard_auth_duration_seconds_count 3",
        "keyguard_verify_in_flight 0",
        "keyguard_server_auth_valid 2",
        // Asking for its health counts nowhere.
        "keyguard_server_auth_not_found 1",
    ];
    let metrics = metrics_with(&serving, &lines);
    assert!(metrics.contains("keyguard_build_info{version=") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(!metrics.contains(&key), "{metrics}");
    server.kill();
    assert_eq!(health(), (503, "unreachable".to_owned()));
    get(&serving, "/verify", &key).check("no server", 503, "UNAVAILABLE", &[]);
    let metrics = serving.send("GET", "/metrics", &[], "").body;
    assert!(metrics.contains("keyguard_verify_errors_total{reason=\"unreachable\"} 1"), "{metrics}");
    let bare = sut.setup().without_module().start();
    let serving = Serving::start(&bare, &[]);
    let answer = serving.send("GET", "/healthz", &[], "");
    assert_eq!((answer.status, &*answer.body), (503, "no_module"));
    get(&serving, "/verify", &key).check("no module", 503, "UNAVAILABLE", &[]);
}

fn what_is_under_way_is_answered_before_the_end(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web");
    for name in ["-TERM", "-INT"] {
        let serving = Serving::start(&server, &[]);
        get(&serving, "/verify", &key).check("at rest", 200, "", &[]);
        let pid = pid_of(&server);
        signal(pid, "-STOP");
        thread::scope(|scope| {
            let asked = scope.spawn(|| get(&serving, "/verify", &key));
            let begun = || serving_metric(&serving, "keyguard_verify_in_flight 1");
            eventually("the request being under way", || expect(begun(), || serving.log()));
            signal(serving.id(), name);
            eventually("no more being taken", || {
                expect(TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).is_err(), || serving.log())
            });
            signal(pid, "-CONT");
            let answer = asked.join().unwrap();
            assert!([200, 503].contains(&answer.status), "{answer:?}");
        });
    }
}

/// What /metrics says, once it has these lines: the figures of a server that takes its time are not waited for.
fn metrics_with(serving: &Serving, lines: &[impl AsRef<str>]) -> String {
    eventually("the lines standing in /metrics", || {
        let metrics = serving.send("GET", "/metrics", &[], "").body;
        let missing = lines.iter().map(AsRef::as_ref).find(|line| !metrics.lines().any(|found| found == *line));
        missing.map_or(Ok(()), |line| Err(format!("without {line}: {metrics}"))).map(|()| metrics)
    })
}

/// Whether /metrics has the line.
fn serving_metric(serving: &Serving, line: &str) -> bool {
    serving.send("GET", "/metrics", &[], "").body.lines().any(|found| found == line)
}

fn requests_that_are_too_large_or_too_slow_are_ended(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    let serving = Serving::start(&server, &[]);
    let converse = |sent: &[u8]| {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let _ = connection.write_all(sent);
        let mut answer = Vec::new();
        // A connection may also be reset, which is as good an end.
        if let Err(error) = connection.read_to_end(&mut answer) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it waits for us");
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let status = |answer: &str| answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    let head = "GET /verify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let large = converse(format!("{head}X-API-Key: {}\r\n\r\n", "k".repeat(1 << 20)).as_bytes());
    assert!(status(&large).is_none_or(|status| status == 431), "{large}");
    let many = converse(format!("{head}{}\r\n", "X-A: b\r\n".repeat(200)).as_bytes());
    assert_eq!(status(&many), Some(431), "{many}");
    let long = converse(format!("{head}X-API-Key: {}\r\n\r\n", "k".repeat(40_000)).as_bytes());
    assert_eq!(status(&long), Some(401), "{long}");
    assert_eq!(status(&converse(b"nonsense\r\n\r\n")), Some(400));
    // A body that never comes is not waited for.
    let announced = converse(format!("{head}Content-Length: 1000000\r\n\r\n").as_bytes());
    assert_eq!(status(&announced), Some(401), "{announced}");
    thread::scope(|scope| {
        let (converse, status) = (&converse, &status);
        for part in ["", "GET /verify HT", head] {
            scope.spawn(move || {
                let answer = converse(part.as_bytes());
                assert!(status(&answer).is_none_or(|status| status == 408), "{part:?}: {answer}");
            });
        }
    });
    get(&serving, "/verify", "").check("others", 401, "NOT_FOUND", UNKNOWN);
}

fn connections_that_do_nothing_keep_others_waiting_for_a_while_at_most(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    let serving = Serving::start(&server, &["--max-connections", "2"]);
    get(&serving, "/verify", "").check("nobody else", 401, "NOT_FOUND", UNKNOWN);
    let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).unwrap();
    let idle = [connect(), connect()];
    let mut third = connect();
    third.write_all(b"GET /verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    third.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = [0; 12];
    assert_eq!(third.read(&mut answer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "there is no place for it");
    third.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    third.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    drop(idle);
    let alone = Serving::start(&server, &["--max-connections", "1"]);
    for _ in 0..20 {
        get(&alone, "/verify", "").check("one after the other", 401, "NOT_FOUND", UNKNOWN);
    }
}

fn who_may_not_open_as_many_files_as_there_may_be_connections_is_told(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    for (limits, warned) in [("ulimit -n 128", true), ("ulimit -Sn 128", false)] {
        let program = tool(&server);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\"")).arg(program.get_program()).stdin(Stdio::null());
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let serving = Serving::by(shell, &server, &["--max-connections", "400"]);
        // More than it may have files for at first.
        let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).unwrap();
        let idle: Vec<TcpStream> = (0..if warned { 10 } else { 200 }).map(connect).collect();
        get(&serving, "/verify", "").check(limits, 401, "NOT_FOUND", UNKNOWN);
        drop(idle);
        let said = serving.log();
        assert_eq!(said.contains("takes 64 connections at a time, not 400"), warned, "{limits}: {said}");
    }
}

fn what_cannot_be_listened_on_is_said(sut: &Sut) {
    let server = sut.server();
    let serving = Serving::start(&server, &[]);
    let address = format!("127.0.0.1:{}", serving.port);
    let told = format!("listens on http://{address}");
    eventually("the address being told", || expect(serving.log().contains(&told), || serving.log()));
    let refused = |arguments: &[&str], code: i32, text: &str| {
        let output = tool(&server).arg("serve").args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    };
    refused(&["--listen", &address], 6, &format!("cannot listen on {address}"));
    refused(&["--listen", "nowhere"], 2, "--listen");
    refused(&["--tls-cert", "cert.pem"], 2, "--tls-key");
    refused(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"], 2, "--tls-cert cert.pem");
    refused(&["--trusted-proxy", "10.0.0.0/99"], 2, "a network");
    refused(&["--store-by-prefix", "acme"], 2, "PREFIX=STORE");
    refused(&["--store-by-prefix", "a=b", "--store-by-prefix", "a=c"], 2, "one store");
}

/// nginx with the configuration of the example, until this is dropped.
struct Nginx {
    port: u16,
    child: Child,
}

impl Nginx {
    /// It asks what listens on that port.
    fn start(server: &Server, asked: u16) -> Self {
        let (port, folder) = (free_port(), server.directory().join("nginx"));
        fs::create_dir_all(folder.join("html/api")).unwrap();
        fs::write(folder.join("html/api/page"), "the page\n").unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/nginx.conf");
        let text = fs::read_to_string(example).unwrap();
        let text = text.replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"));
        let text = text.replace("127.0.0.1:8080", &format!("127.0.0.1:{asked}"));
        fs::write(folder.join("nginx.conf"), text).unwrap();
        let log = File::create(folder.join("start.log")).unwrap();
        // Not every user's PATH has it.
        let program =
            ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"].into_iter().find(|at| Path::new(at).exists());
        let mut command = Command::new(program.expect("nginx: scripts/test installs it"));
        // What happens before the configuration is read is logged where -e says, or where only root may write.
        command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let nginx = Self { port, child };
        eventually("nginx listening", || {
            let seen = || {
                ["start.log", "error.log"].map(|log| fs::read_to_string(folder.join(log)).unwrap_or_default()).concat()
            };
            expect(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), seen)
        });
        nginx
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        Response::of(self.port, "GET", path, headers, "")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it only if it may say so.
        signal(self.child.id(), "-TERM");
        let _ = self.child.wait();
    }
}

fn nginx_passes_on_what_is_answered(sut: &Sut) {
    let mut server = sut.setup().with("appendonly", "yes").with("appendfsync", "always").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let key = new_key(&mut c, "acme", "shop web SCOPES orders:read");
    let none = new_key(&mut c, "acme", "shop none");
    let limited = new_key(&mut c, "acme", "shop limited SCOPES * LIMIT 2 1h");
    let elsewhere = new_key(&mut c, "acme", "shop elsewhere SCOPES * ALLOW 192.0.2.0/24");
    let serving = Serving::start(&server, &[]);
    let nginx = Nginx::start(&server, serving.port);
    let get = |key: &str| nginx.get("/api/page", &[("X-API-Key", key)]);
    get(&key).check("valid", 200, "", &[]);
    assert_eq!(get(&key).body, "the page\n");
    get("kg_live_nobody").check("an unknown key", 401, "NOT_FOUND", UNKNOWN);
    nginx.get("/api/page", &[]).check("no key", 401, "NOT_FOUND", UNKNOWN);
    get(&none).check("a scope that it lacks", 403, "INSUFFICIENT_SCOPE", SCOPE);
    get(&elsewhere).check("another address", 403, "IP_NOT_ALLOWED", &[]);
    get(&limited).check("the first", 200, "", &limits("1", "\"default\";r=1;t=~3600"));
    get(&limited).check("the second", 200, "", &limits("0", "\"default\";r=0;t=~3600"));
    let mut full = limits("0", "\"default\";r=0;t=~3600");
    full.push(("retry-after", "~3600"));
    get(&limited).check("the third", 429, "RATE_LIMITED", &full);
    nginx.get("/api/none", &[("X-API-Key", &key)]).check("let in, but nothing there", 404, "", &[]);
    assert_eq!(nginx.get("/keyguard", &[("X-API-Key", &key)]).status, 403, "the question is not for callers");
    // What a caller adds changes nothing.
    let cookies = "x".repeat(7000);
    for (name, value) in [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Uri", "/"),
        ("X-Original-URI", "/"),
        ("X-Forwarded-Method", "PUT"),
        ("X-Required-Scope", "x"),
        ("X-Required-Cost", "1000"),
        ("Cookie", &cookies),
    ] {
        nginx.get("/api/page", &[("X-API-Key", &key), (name, value)]).check(name, 200, "", &[]);
        nginx.get("/api/page", &[("X-API-Key", &elsewhere), (name, value)]).check(name, 403, "IP_NOT_ALLOWED", &[]);
    }
    c.ok("KG.BLOCKIP acme 127.0.0.1 1h PATH /api/orders");
    let blocked = nginx.get("/api/%6frders?x", &[("X-API-Key", &key)]);
    blocked.check("a blocked path", 403, "IP_BLOCKED", &[("retry-after", "~3600")]);
    server.kill();
    get(&key).check("no server", 503, "UNAVAILABLE", &[]);
    drop(serving);
    get(&key).check("no keyguard either", 503, "UNAVAILABLE", &[]);
}

fn nginx_lets_nobody_in_whatever_it_is_answered_instead(sut: &Sut) {
    let server = sut.server();
    // Without the header that says which it is, it may be anybody's.
    for status in [400, 404, 405, 413, 414, 429, 431, 500, 502, 503, 504] {
        let answer: &'static str = format!("HTTP/1.1 {status} What\r\nContent-Length: 0\r\n\r\n").leak();
        let nginx = Nginx::start(&server, stranger(answer.as_bytes()));
        let answer = nginx.get("/api/page", &[("X-API-Key", "kg_live_nobody")]);
        answer.check(&status.to_string(), 503, "UNAVAILABLE", &[]);
    }
    // Of this one nginx makes nothing but a failure.
    let late = Nginx::start(&server, stranger(b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(late.get("/api/page", &[]).status, 500);
}
