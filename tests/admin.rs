//! The admin API of `keyguard serve`: what it answers, to whom, and what it refuses.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value as Json, json};

use crate::harness::{
    Client, Reply, Response, Server, Serving, Sut, args, eventually, expect, free_port, installed, server_tests, tool,
};

use crate::verify::signal;

server_tests![
    clients_of_keyguard_python_are_answered_as_before,
    keys_are_changed_rotated_and_revoked,
    a_new_secret_is_shown_though_the_server_goes_away_at_once,
    organizations_are_suspended_changed_and_deleted,
    a_new_organization_is_told_of_though_the_server_goes_away_at_once,
    addresses_are_blocked_allowed_and_let_go,
    usage_is_shown,
    lists_come_in_pages,
    a_store_that_is_not_there_is_an_empty_one,
    only_who_holds_a_token_is_let_in_and_only_as_its_role_says,
    a_change_is_written_down_though_who_asked_for_it_hangs_up,
    a_change_is_written_down_though_the_program_is_told_to_end,
    what_may_have_been_changed_is_written_down_by_its_name,
    nothing_that_is_sent_breaks_a_line_of_the_log,
    wrong_tokens_are_counted_and_lock_nobody_out,
    what_cannot_be_is_refused_and_not_repeated,
    the_file_of_tokens_is_for_its_owner_alone,
    a_token_is_shown_once_and_kept_as_a_digest,
    without_tokens_there_is_no_admin_api,
    says_so_while_the_server_is_away,
    describes_itself_without_a_network,
];

/// The admin API of a server, and a token for each role.
pub struct Admin {
    pub serving: Serving,
    pub write: String,
    read: String,
}

impl Admin {
    pub fn start(server: &Server) -> Self {
        let [write, read] = ["write", "read"].map(|role| {
            let made = new_token(server, &["--role", role, "--name", role, "--file", "tokens"]);
            assert!(made.status.success(), "{made:?}");
            String::from_utf8(made.stdout).unwrap().trim().to_owned()
        });
        let serving = Serving::start(server, &["--admin-tokens", "tokens"]);
        Self { serving, write, read }
    }

    /// Another program for the same tokens, with further arguments.
    pub fn another(&self, server: &Server, arguments: &[&str]) -> Self {
        let serving = Serving::start(server, &[&["--admin-tokens", "tokens"], arguments].concat());
        Self { serving, write: self.write.clone(), read: self.read.clone() }
    }

    fn ask(&self, method: &str, path: &str, body: impl Into<Option<Json>>) -> Response {
        let body = body.into().map(|body| body.to_string()).unwrap_or_default();
        self.serving.send(method, path, &[("X-Admin-Key", &self.write)], &body)
    }

    /// Asks for an organization, and waits for nothing.
    fn ask_for_organization(&self, name: &str) -> TcpStream {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.serving.port)).unwrap();
        let body = json!({ "name": name }).to_string();
        let head = format!("POST /admin/orgs HTTP/1.1\r\nHost: x\r\nX-Admin-Key: {}\r\n", self.write);
        let about_body = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all([head, about_body, body].concat().as_bytes()).unwrap();
        connection
    }

    /// What it answers to what it does.
    pub fn ok(&self, method: &str, path: &str, body: impl Into<Option<Json>>) -> Json {
        let answer = self.ask(method, path, body);
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        assert_eq!(answer.headers["cache-control"], "no-store");
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// What it says to what it does not do.
    fn refused(&self, status: u16, method: &str, path: &str, body: impl Into<Option<Json>>) -> String {
        detail(&self.ask(method, path, body), status)
    }
}

fn detail(answer: &Response, status: u16) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    let body: Json = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["detail"].as_str().expect("a detail").to_owned()
}

/// `keyguard token new` in the server's directory.
pub fn new_token(server: &Server, arguments: &[&str]) -> Output {
    tool(server).args(["token", "new"]).args(arguments).output().expect("it runs")
}

/// Serves keyguard_python's own router, and sends each of two servers the commands of that package's README and what else its
/// clients may send; prints what they answered.
const PREDECESSOR: &str = r##"
import http.client, importlib.metadata, json, re, shlex, sys, threading, time
import uvicorn
from fastapi import FastAPI
from keyguard.api.admin import create_admin_router
from keyguard.config import KeyGuardConfig
from keyguard.core import KeyGuard

folder, port, ours, token = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
guard = KeyGuard(KeyGuardConfig(secret_key="my-secret", database_url=f"sqlite+aiosqlite:///{folder}/theirs.db"))
app = FastAPI()
app.include_router(create_admin_router(guard), prefix="/admin")
app.add_event_handler("startup", guard.init_db) if hasattr(app, "add_event_handler") else app.router.on_startup.append(guard.init_db)
server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.01)

readme = importlib.metadata.metadata("keyguard_python").get_payload()
if not readme.strip():
    readme = importlib.metadata.metadata("keyguard_python")["Description"]
block = next(block for block in re.findall(r"```bash\n(.*?)```", readme, re.S) if "/admin/orgs" in block)
block = re.sub(r"(?m)^#.*$", "", block.replace("\\\n", " "))
requests = []
for words in (shlex.split(line) for line in block.splitlines() if line.strip()):
    method, headers, body, url = None, {}, None, None
    rest = iter(words[1:])
    for word in rest:
        if word == "-X": method = next(rest)
        elif word == "-H": name, value = next(rest).split(": "); headers[name] = value
        elif word == "-d": body = next(rest)
        else: url = word
    requests.append((method or "GET", url.removeprefix("http://localhost:8000"), headers, body))
assert len(requests) == 4, requests

def more(method, path, body=None, key="my-secret"):
    headers = {"X-Admin-Key": key, "Content-Type": "application/json"}
    requests.append((method, path, headers, None if body is None else json.dumps(body)))
more("POST", "/admin/orgs", {"name": "Acme Corp"})
more("GET", "/admin/orgs")
more("POST", "/admin/orgs", {"name": ""})
more("POST", "/admin/orgs", {"name": "x" * 256})
more("POST", "/admin/orgs", {})
more("POST", "/admin/orgs", [])
more("POST", "/admin/keys", {"org_name": "nobody", "label": "x"})
more("POST", "/admin/keys", {"org_name": "Acme Corp", "label": ""})
more("POST", "/admin/keys", {"org_name": "Acme Corp", "label": "x", "rate_limit_per_minute": 0})
more("POST", "/admin/keys", {"org_name": "Acme Corp", "label": "x", "rate_limit_per_minute": 10001})
more("POST", "/admin/keys", {"org_name": "Acme Corp", "label": "second", "prefix": "kg_test_", "scopes": ["a", "b"]})
more("GET", "/admin/orgs", key="wrong")
more("DELETE", "/admin/keys/no-such-key")
more("DELETE", "/admin/keys/{id}")
more("DELETE", "/admin/keys/{id}")
more("GET", "/admin/keys")
more("GET", "/admin/stats")

def answers(port, key):
    found, id = [], None
    for method, path, headers, body in requests:
        if headers["X-Admin-Key"] == "my-secret":
            headers = {**headers, "X-Admin-Key": key}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path.replace("{id}", str(id)), body, headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        id = body.get("id", id) if path == "/admin/keys" else id
        found.append([f"{method} {path} {answer.status}", body])
    return found

print(json.dumps([answers(port, "my-secret"), answers(ours, token)]))
"##;

fn clients_of_keyguard_python_are_answered_as_before(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    let python = installed("KEYGUARD_PREDECESSORS", "target/predecessors/bin/python");
    let ports = [free_port().to_string(), admin.serving.port.to_string()];
    let output = Command::new(python)
        .args(["-c", PREDECESSOR, &server.directory().display().to_string(), &ports[0], &ports[1], &admin.write])
        .env_remove("PYTHONPATH")
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: [Vec<(String, Json)>; 2] = serde_json::from_slice(&output.stdout).expect("JSON");
    let [theirs, ours] = &answers;
    assert_eq!(theirs.len(), 21);
    for ((about, theirs), (ours_about, ours)) in theirs.iter().zip(ours) {
        assert_eq!(ours_about, about, "{ours}");
        if about.ends_with(" 422") {
            // Theirs is a list of objects that repeat what was sent.
            assert!(ours["detail"].is_string(), "{about}: {ours}");
        } else {
            expect_has_all(about, theirs, ours);
        }
    }
    let created = &ours[1].1;
    assert_eq!(created["rate_limit_per_minute"], 120);
    assert_eq!(created["scopes"], json!(["read"]));
    assert!(created["raw_key"].as_str().unwrap().starts_with(created["prefix"].as_str().unwrap()));
    assert_eq!(ours[2].1["total"], 1);
    // What was made so is let in, as far as it was not revoked.
    let raw_key = created["raw_key"].as_str().unwrap();
    assert_eq!(server.client().code(args!["KG.AUTH", "acme", raw_key, "SCOPE", "read"]), "VALID");
}

/// Every field of theirs is there, with a value of the same type.
fn expect_has_all(about: &str, theirs: &Json, ours: &Json) {
    match (theirs, ours) {
        (Json::Object(theirs), Json::Object(ours)) => {
            for (name, value) in theirs {
                let our = ours.get(name).unwrap_or_else(|| panic!("{about}: no {name} in {ours:?}"));
                expect_has_all(about, value, our);
            }
        }
        (Json::Array(theirs), Json::Array(ours)) => {
            assert_eq!(theirs.len(), ours.len(), "{about}: {ours:?}");
            theirs.iter().zip(ours).for_each(|(theirs, ours)| expect_has_all(about, theirs, ours));
        }
        _ => assert_eq!(
            std::mem::discriminant(theirs),
            std::mem::discriminant(ours),
            "{about}: {ours} is of another type than {theirs}"
        ),
    }
}

fn keys_are_changed_rotated_and_revoked(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let admin = Admin::start(&server);
    admin.ok("POST", "/admin/orgs", json!({"name": "shop"}));
    let limits = json!([
        {"count": 5, "window": "90s", "unit": "requests"},
        {"count": 9000, "window": "1h", "unit": "tokens"}
    ]);
    let quotas = json!([{"count": 7, "period": "month", "unit": "requests"}]);
    let made = admin.ok(
        "POST",
        "/admin/keys",
        json!({
            "org_name": "shop", "label": "web", "scopes": ["orders:read"], "limits": limits, "quotas": quotas,
            "allow": ["192.0.2.0/24"], "expires_at": "2100-01-01T00:00:00Z", "meta": {"plan": "gold"}
        }),
    );
    let id = made["id"].as_str().unwrap().to_owned();
    let path = format!("/admin/keys/{id}");
    let shown = admin.ok("GET", &path, None);
    for (field, value) in [
        ("limits", limits.clone()),
        ("quotas", quotas),
        ("allow", json!(["192.0.2.0/24"])),
        ("expires_at", json!("2100-01-01T00:00:00Z")),
        ("meta", json!({"plan": "gold"})),
        ("rate_limit_per_minute", Json::Null),
        ("is_active", json!(true)),
    ] {
        assert_eq!(shown[field], value, "{field}");
        assert_eq!(made[field], value, "{field}");
    }
    assert!(shown.get("raw_key").is_none());
    let raw_key = made["raw_key"].as_str().unwrap();
    let mut auth = |key: &str| c.code(args!["KG.AUTH", "acme", key, "IP", "192.0.2.7", "SCOPE", "orders:read"]);
    assert_eq!(auth(raw_key), "VALID");

    // What is left out stays.
    let changed = admin.ok("PATCH", &path, json!({"label": "SCOPES", "active": false}));
    assert_eq!((&changed["label"], &changed["is_active"]), (&json!("SCOPES"), &json!(false)));
    assert_eq!(changed["limits"], limits);
    assert_eq!(auth(raw_key), "DISABLED");
    let changed = admin.ok(
        "PATCH",
        &path,
        json!({"active": true, "scopes": [], "limits": [], "quotas": [], "allow": [], "expires_at": null, "meta": null}),
    );
    for field in ["scopes", "limits", "quotas", "allow"] {
        assert_eq!(changed[field], json!([]), "{field}");
    }
    assert_eq!((&changed["expires_at"], &changed["meta"]), (&Json::Null, &Json::Null));
    assert_eq!(auth(raw_key), "INSUFFICIENT_SCOPE");
    admin.ok("PATCH", &path, json!({"scopes": ["orders:*", "read"], "limits": [{"count": 60, "window": "60"}]}));
    assert_eq!(admin.ok("GET", &path, None)["rate_limit_per_minute"], 60);
    assert_eq!(auth(raw_key), "VALID");
    // Nothing to change is nothing wrong.
    admin.ok("PATCH", &path, json!({}));

    let rotated = admin.ok("POST", &format!("{path}/rotate"), json!({"grace": "1h"}));
    assert_eq!(rotated["id"], *id);
    assert!(rotated["rotated_until"].is_string());
    assert_eq!(auth(raw_key), "VALID");
    let again = admin.ok("POST", &format!("{path}/rotate"), None);
    let newest = again["raw_key"].as_str().unwrap();
    assert_eq!(auth(newest), "VALID");
    assert_eq!(auth(rotated["raw_key"].as_str().unwrap()), "NOT_FOUND");

    let revoked = admin.ok("DELETE", &path, None);
    assert_eq!(revoked, json!({"detail": "Key 'SCOPES' revoked.", "key_id": id}));
    assert_eq!(auth(newest), "DISABLED");
    assert_eq!(admin.ok("GET", &path, None)["status"], "revoked");
    admin.refused(409, "POST", &format!("{path}/rotate"), json!({}));
    admin.refused(409, "PATCH", &path, json!({"active": true}));
    admin.ok("DELETE", &format!("{path}?purge=true"), None);
    admin.refused(404, "GET", &path, None);

    // Keys of the vault are none of this API's.
    let vault = c.ok("KG.ADDKEY acme openai sk-not-a-real-secret").int();
    let path = format!("/admin/keys/{vault}");
    for (method, path) in [
        ("GET", path.clone()),
        ("PATCH", path.clone()),
        ("DELETE", path.clone()),
        ("DELETE", format!("{path}?purge=true")),
        ("POST", format!("{path}/rotate")),
    ] {
        let body = ["PATCH", "POST"].contains(&method).then(|| json!({}));
        assert_eq!(admin.refused(404, method, &path, body), "Key not found.");
    }
    assert_eq!(c.ok("KG.COUNTKEYS acme TYPE vault").int(), 1);
    assert_eq!(admin.ok("GET", "/admin/keys", None)["total"], 0);
    assert!(!admin.serving.log().contains("kg_live_"), "{}", admin.serving.log());
}

/// A way to the server that is there no more once it has handed on the answer to this command; its URL.
fn way_that_ends_after(command: &'static str, server: &Server) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, server_port) = (listener.local_addr().unwrap().port(), server.port());
    let over = Arc::new(AtomicBool::new(false));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            if over.load(Ordering::SeqCst) {
                break;
            }
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).unwrap();
            let [from_client, from_server] = [&client, &server].map(|stream| stream.try_clone().unwrap());
            let (was_asked, over) = (Arc::new(AtomicBool::new(false)), Arc::clone(&over));
            let is_asked = Arc::clone(&was_asked);
            thread::spawn(move || {
                hand_on(from_client, server, |bytes| {
                    let asked = bytes.windows(command.len()).any(|bytes| bytes == command.as_bytes());
                    is_asked.fetch_or(asked, Ordering::SeqCst);
                    true
                });
            });
            thread::spawn(move || {
                hand_on(from_server, client, |_| {
                    over.fetch_or(was_asked.load(Ordering::SeqCst), Ordering::SeqCst);
                    !over.load(Ordering::SeqCst)
                });
            });
        }
    });
    format!("redis://127.0.0.1:{port}")
}

/// Writes what it reads, until one of the two ends or it has written something that was to be the last.
fn hand_on(mut from: TcpStream, mut to: TcpStream, mut goes_on: impl FnMut(&[u8]) -> bool) {
    let mut bytes = [0; 16_384];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        let goes_on = goes_on(&bytes[..length]);
        if to.write_all(&bytes[..length]).is_err() || !goes_on {
            break;
        }
    }
    [from, to].iter().for_each(|stream| _ = stream.shutdown(Shutdown::Both));
}

fn a_new_secret_is_shown_though_the_server_goes_away_at_once(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    // All is told as it is when the server stays, but for what is new with each key.
    let mut check = |made: &Json, as_told: &Json| {
        let raw_key = made["raw_key"].as_str().unwrap();
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw_key, "IP", "127.0.0.1"]), "VALID");
        assert!(raw_key.starts_with(made["prefix"].as_str().unwrap()), "{made}");
        for (field, value) in as_told.as_object().unwrap() {
            match &**field {
                "id" | "raw_key" | "created_at" => assert!(made[field].is_string(), "{field}"),
                "last_used_at" => {}
                "prefix" => assert_eq!(made[field].to_string().len(), value.to_string().len()),
                _ => assert_eq!(made[field], *value, "{field}"),
            }
        }
    };
    let wish = json!({
        "org_name": "shop", "label": "web", "prefix": "kg_test_", "scopes": ["a", "b"], "meta": {"plan": "gold"},
        "rate_limit_per_minute": 7, "limits": [{"count": 9, "window": "1h"}], "expires_at": "4102444800",
        "quotas": [{"count": 5, "period": "day"}], "allow": ["127.0.0.0/8"]
    });
    for wish in [wish, json!({"org_name": "shop", "label": "web", "expires_at": "2100-01-01T00:00:00Z"})] {
        let told = admin.ok("POST", "/admin/keys", wish.clone());
        let cut = admin.another(&server, &["--url", &way_that_ends_after("KG.NEWKEY", &server)]);
        check(&cut.ok("POST", "/admin/keys", wish), &told);
        cut.refused(503, "GET", "/admin/keys", None);

        let rotate = format!("/admin/keys/{}/rotate", told["id"].as_str().unwrap());
        for how in [None, Some(json!({"grace": "1h"}))] {
            let cut = admin.another(&server, &["--url", &way_that_ends_after("KG.ROTATE", &server)]);
            check(&cut.ok("POST", &rotate, how), &told);
            cut.refused(503, "GET", "/admin/keys", None);
        }
    }
}

fn organizations_are_suspended_changed_and_deleted(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let admin = Admin::start(&server);
    let limits = json!([{"count": 1000, "window": "1m", "unit": "requests"}]);
    let quotas = json!([{"count": 5, "period": "day", "unit": "tokens"}]);
    let name = "M\u{fc}ller & S\u{f6}hne / 50%";
    let made = admin.ok("POST", "/admin/orgs", json!({"name": name, "limits": limits, "quotas": quotas}));
    assert_eq!((&made["limits"], &made["quotas"], &made["name"]), (&limits, &quotas, &json!(name)));
    assert!(admin.refused(400, "POST", "/admin/orgs", json!({"name": name})).contains("already exists"));
    let path = "/admin/orgs/M%C3%BCller%20&%20S%C3%B6hne%20%2F%2050%25";
    assert_eq!(admin.ok("GET", path, None), made);
    let key = admin.ok("POST", "/admin/keys", json!({"org_name": name, "label": "web"}));
    let raw_key = key["raw_key"].as_str().unwrap();
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw_key]), "VALID");
    let changed = admin.ok("PATCH", path, json!({"status": "suspended", "quotas": []}));
    assert_eq!(
        (&changed["status"], &changed["quotas"], &changed["limits"], &changed["key_count"]),
        (&json!("suspended"), &json!([]), &limits, &json!(1))
    );
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw_key]), "ORG_SUSPENDED");
    admin.ok("PATCH", path, json!({"status": "active"}));
    assert_eq!(c.code(args!["KG.AUTH", "acme", raw_key]), "VALID");

    assert!(admin.refused(409, "DELETE", path, None).contains("keys"));
    admin.ok("DELETE", &format!("/admin/keys/{}?purge=true", key["id"].as_str().unwrap()), None);
    admin.ok("DELETE", path, None);
    for (method, body) in [("GET", None), ("PATCH", Some(json!({"status": "active"}))), ("DELETE", None)] {
        assert_eq!(admin.refused(404, method, path, body), "Organization not found.");
    }
}

fn a_new_organization_is_told_of_though_the_server_goes_away_at_once(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    let cut = admin.another(&server, &["--url", &way_that_ends_after("KG.ADDORG", &server)]);
    let limits = json!([{"count": 1000, "window": "1m"}]);
    let wish = json!({"name": "new", "limits": limits, "quotas": [{"count": 5, "period": "day", "unit": "tokens"}]});
    let mut told = cut.ok("POST", "/admin/orgs", wish);
    cut.refused(503, "GET", "/admin/orgs", None);
    let mut made = admin.ok("GET", "/admin/orgs/new", None);
    for org in [&mut told, &mut made] {
        assert!(org["created_at"].take().is_string(), "which may differ by a little");
    }
    assert_eq!(told, made);
    assert!(cut.serving.log().contains("POST \"/admin/orgs\" 200: organization \"new\""), "{}", cut.serving.log());
}

fn addresses_are_blocked_allowed_and_let_go(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let admin = Admin::start(&server);
    let rule = json!({"net": "192.0.2.0/24", "duration": "1h", "path": "/api", "reason": "UNTIL"});
    admin.ok("POST", "/admin/addresses", rule);
    admin.ok("POST", "/admin/addresses", json!({"net": "192.0.2.7", "kind": "allow"}));
    let mut code = |addr: &str| c.code(args!["KG.CHECKIP", "acme", addr, "PATH", "/api/x"]);
    assert_eq!([code("192.0.2.8"), code("192.0.2.7")], ["IP_BLOCKED", "VALID"]);
    let listed = admin.ok("GET", "/admin/addresses", None);
    assert_eq!(listed["next"], Json::Null);
    let rules = listed["addresses"].as_array().unwrap();
    let block = rules.iter().find(|rule| rule["kind"] == "block").unwrap();
    assert_eq!(
        (&block["net"], &block["path"], &block["reason"]),
        (&json!("192.0.2.0/24"), &json!("/api"), &json!("UNTIL"))
    );
    assert!(block["expires_at"].is_string());
    assert_eq!((rules.len(), rules.iter().filter(|rule| rule["kind"] == "allow").count()), (2, 1));

    admin.refused(404, "DELETE", "/admin/addresses?net=192.0.2.0/24", None);
    admin.ok("DELETE", "/admin/addresses?net=192.0.2.0/24&path=/api", None);
    admin.ok("DELETE", "/admin/addresses?net=192.0.2.7&kind=allow", None);
    assert_eq!(admin.ok("GET", "/admin/addresses", None)["addresses"], json!([]));
    assert_eq!(code("192.0.2.8"), "VALID");
    let words = json!({"net": "192.0.2.9", "duration": "PATH"});
    assert!(admin.refused(422, "POST", "/admin/addresses", words).starts_with("duration"));
    let both = json!({"net": "192.0.2.9", "duration": "1h", "until": "16:00"});
    admin.refused(422, "POST", "/admin/addresses", both);
    admin.refused(422, "POST", "/admin/addresses", json!({"net": "nowhere"}));
}

fn usage_is_shown(sut: &Sut) {
    let server = sut.setup().counting_usage().start();
    let mut c = server.client();
    let admin = Admin::start(&server);
    admin.ok("POST", "/admin/orgs", json!({"name": "shop"}));
    let key = admin.ok("POST", "/admin/keys", json!({"org_name": "shop", "label": "web"}));
    let (id, raw_key) = (key["id"].as_str().unwrap(), key["raw_key"].as_str().unwrap());
    for status in [200, 200, 500, 200] {
        assert_eq!(c.code(args!["KG.AUTH", "acme", raw_key, "IP", "192.0.2.1", "PATH", "/a"]), "VALID");
        let about = ["PATH", "/a", "METHOD", "GET", "STATUS"];
        c.ok(args![
            "KG.LOG",
            "acme",
            id,
            about[0],
            about[1],
            about[2],
            about[3],
            about[4],
            status,
            "LATENCY",
            5,
            "IP",
            "192.0.2.1"
        ]);
    }
    assert_eq!(c.code(args!["KG.AUTH", "acme", "kg_live_unknown", "IP", "192.0.2.1"]), "NOT_FOUND");
    eventually("the log being written", || {
        let entries = admin.ok("GET", "/admin/stats", None)["log_entries"].as_i64().unwrap();
        expect(entries == 5, || entries.to_string())
    });
    let stats = admin.ok("GET", "/admin/stats?hours=2", None);
    for (field, value) in [
        ("total_organizations", json!(1)),
        ("total_keys", json!(1)),
        ("active_keys", json!(1)),
        ("total_requests", json!(4)),
        ("recent_requests_1h", json!(4)),
        ("error_rate", json!(25.0)),
        ("refusals", json!({"NOT_FOUND": 1})),
        ("top_keys", json!([{"id": id, "label": "web", "prefix": key["prefix"], "requests": 4}])),
    ] {
        assert_eq!(stats[field], value, "{field}");
    }
    let of_hours: i64 = stats["hours"].as_array().unwrap().iter().map(|hour| hour["requests"].as_i64().unwrap()).sum();
    assert_eq!(of_hours, 4);
    let of_key = admin.ok("GET", &format!("/admin/stats?key={id}&days=2"), None);
    assert_eq!((&of_key["total_requests"], &of_key["errors"], &of_key["key_id"]), (&json!(4), &json!(1), &json!(id)));
    assert!(!of_key["days"].as_array().unwrap().is_empty());
    for query in ["days=1", "key=7&hours=1", "hours=0", "hours=2161", "key=x", "hours=x", "hours=1&hours=2", "x=1"] {
        admin.refused(422, "GET", &format!("/admin/stats?{query}"), None);
    }
    admin.refused(404, "GET", "/admin/stats?key=999", None);

    let mut entries = Vec::new();
    let mut next = String::new();
    loop {
        let page = admin.ok("GET", &format!("/admin/usage?limit=2{next}"), None);
        entries.extend(page["entries"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(entries.len(), 5);
    assert_eq!((&entries[0]["code"], &entries[0]["status"]), (&json!("NOT_FOUND"), &Json::Null));
    assert_eq!(entries[1]["key_id"], *id);
    assert_eq!(
        (&entries[2]["status"], &entries[2]["path"], &entries[2]["latency_ms"]),
        (&json!(500), &json!("/a"), &json!(5))
    );
    let of_key = admin.ok("GET", &format!("/admin/usage?key={id}&from=2020-01-01T00:00:00Z"), None);
    assert_eq!(of_key["entries"].as_array().unwrap().len(), 4);
    let of_the_past = admin.ok("GET", "/admin/usage?to=2020-01-01T00:00:00Z", None);
    assert_eq!(of_the_past["entries"], json!([]));
}

fn lists_come_in_pages(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    let admin = Admin::start(&server);
    for org in ["a", "b", "c"] {
        c.ok(args!["KG.ADDORG", "acme", org]);
    }
    // More than one call of the module lists at a time.
    let commands: Vec<_> = (0..450)
        .map(|n: i64| args!["KG.NEWKEY", "acme", if n % 2 == 0 { "a" } else { "b" }, format!("k{n}")])
        .collect();
    c.pipeline(&commands);
    let walk = |path: &str, list: &str, limit: usize| {
        let (mut labels, mut after) = (Vec::new(), String::new());
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = admin.ok("GET", &format!("{path}{separator}limit={limit}{after}"), None);
            let items = page[list].as_array().unwrap();
            assert!(items.len() <= limit);
            labels.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return (labels, page["total"].as_u64().unwrap()),
            }
        }
    };
    for limit in [7, 200, 225, 449, 450, 1000] {
        let (mut ids, total) = walk("/admin/keys", "keys", limit);
        assert_eq!((ids.len(), total), (450, 450), "{limit}");
        ids.dedup();
        assert_eq!(ids.len(), 450);
    }
    let (ids, total) = walk("/admin/keys?org=b", "keys", 100);
    assert_eq!((ids.len(), total), (225, 225));
    let (ids, total) = walk("/admin/orgs", "organizations", 2);
    assert_eq!((ids.len(), total), (3, 3));
    // A client that knows of no pages has all of them.
    assert_eq!(admin.ok("GET", "/admin/keys", None)["keys"].as_array().unwrap().len(), 450);
    assert_eq!(admin.refused(404, "GET", "/admin/keys?org=nobody", None), "Organization not found.");
    for query in ["limit=0", "limit=1001", "limit=-1", "limit=x", "after=x", "after=-1", "offset=1"] {
        admin.refused(422, "GET", &format!("/admin/keys?{query}"), None);
        admin.refused(422, "GET", &format!("/admin/orgs?{query}"), None);
    }
}

fn a_store_that_is_not_there_is_an_empty_one(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    assert_eq!(admin.ok("GET", "/admin/orgs", None), json!({"organizations": [], "total": 0, "next": null}));
    assert_eq!(admin.ok("GET", "/admin/keys", None), json!({"keys": [], "total": 0, "next": null}));
    assert_eq!(admin.ok("GET", "/admin/addresses", None), json!({"addresses": [], "next": null}));
    assert_eq!(admin.ok("GET", "/admin/usage", None), json!({"entries": [], "next": null}));
    assert_eq!(admin.ok("GET", "/admin/stats?hours=1", None)["total_requests"], 0);
    admin.refused(404, "GET", "/admin/keys/1", None);
    admin.refused(404, "POST", "/admin/keys", json!({"org_name": "x", "label": "x"}));
    assert_eq!(admin.serving.send("GET", "/admin/keys", &[("X-Admin-Key", "wrong")], "").status, 403);
}

/// Every method and path that there is.
const ALL: [(&str, &str); 16] = [
    ("POST", "/admin/orgs"),
    ("GET", "/admin/orgs"),
    ("GET", "/admin/orgs/shop"),
    ("PATCH", "/admin/orgs/shop"),
    ("DELETE", "/admin/orgs/shop"),
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys"),
    ("GET", "/admin/keys/7"),
    ("PATCH", "/admin/keys/7"),
    ("DELETE", "/admin/keys/7"),
    ("POST", "/admin/keys/7/rotate"),
    ("GET", "/admin/addresses"),
    ("POST", "/admin/addresses"),
    ("DELETE", "/admin/addresses"),
    ("GET", "/admin/stats"),
    ("GET", "/admin/usage"),
];

fn only_who_holds_a_token_is_let_in_and_only_as_its_role_says(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    // Uncounted, or they would soon be told to wait.
    c.ok("KG.ALLOWIP acme 127.0.0.1");
    let admin = Admin::start(&server);
    let document: Json = serde_json::from_str(&admin.serving.send("GET", "/openapi.json", &[], "").body).unwrap();
    let described: usize =
        document["paths"].as_object().unwrap().values().map(|of| of.as_object().unwrap().len()).sum();
    assert_eq!(described, ALL.len(), "what is described is what is tried here");
    let before = c.state();
    for (method, path) in ALL {
        let send = |headers: &[(&str, &str)]| admin.serving.send(method, path, headers, "{}");
        let missing = send(&[]);
        assert_eq!(detail(&missing, 401), "The header X-Admin-Key is missing.", "{method} {path}");
        assert!(missing.headers.contains_key("www-authenticate"));
        let almost = format!("{}A", admin.write);
        let unknown = format!("kga_{}", "A".repeat(43));
        for wrong in ["", "kga_", "x", &almost, &admin.write[1..], &admin.write[..40], &unknown, &"x".repeat(4000)] {
            assert_eq!(detail(&send(&[("X-Admin-Key", wrong)]), 403), "Invalid admin key.", "{method} {path}");
        }
        let twice = send(&[("X-Admin-Key", &admin.write), ("X-Admin-Key", &admin.write)]);
        assert_eq!(detail(&twice, 403), "Invalid admin key.");
        let reader = send(&[("X-Admin-Key", &admin.read)]);
        if method == "GET" {
            assert!([200, 404].contains(&reader.status), "{method} {path}: {reader:?}");
        } else {
            assert_eq!(detail(&reader, 403), "This admin key may only read.", "{method} {path}");
        }
    }
    assert_eq!(c.state(), before, "nothing was changed");
    // Who changed what is written down, and by what token nowhere.
    admin.ok("POST", "/admin/orgs", json!({"name": "new"}));
    let log = admin.serving.log();
    assert!(
        log.contains("admin: write (write) from 127.0.0.1: POST \"/admin/orgs\" 200: organization \"new\""),
        "{log}"
    );
    assert!(!log.contains("kga_") && !server.log().contains("kga_"), "{log}");
}

fn a_change_is_written_down_though_who_asked_for_it_hangs_up(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    c.ok("CLIENT PAUSE 60000 WRITE");
    let waiting: Vec<_> = (10..30).map(|n| admin.ask_for_organization(&format!("n{n}"))).collect();
    eventually("the first of them waiting for the server", || one_is_blocked(&mut c));
    drop(waiting);
    c.ok("CLIENT UNPAUSE");
    // What is asked for last comes after all of them.
    admin.ok("POST", "/admin/orgs", json!({"name": "last"}));
    let made = admin.ok("GET", "/admin/orgs", None)["total"].as_u64().unwrap() - 1;
    assert!(made > 1, "the first and the last");
    eventually("every change standing in the log", || {
        let log = admin.serving.log();
        let told = log.matches("write (write) from 127.0.0.1: POST \"/admin/orgs\"").count() as u64;
        expect(told >= made, || format!("{made} changes: {log}"))
    });
}

/// Whether the one connection of the program waits for the server.
fn one_is_blocked(c: &mut Client) -> Result<(), String> {
    let blocked = c.info_number("clients", "blocked_clients");
    expect(blocked == 1, || blocked.to_string())
}

fn a_change_is_written_down_though_the_program_is_told_to_end(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    c.ok("CLIENT PAUSE 60000 WRITE");
    let waiting = admin.ask_for_organization("new");
    eventually("it waiting for the server", || one_is_blocked(&mut c));
    drop(waiting);
    signal(admin.serving.id(), "-TERM");
    eventually("nobody listening any more", || {
        expect(TcpStream::connect((Ipv4Addr::LOCALHOST, admin.serving.port)).is_err(), || "one does".to_owned())
    });
    c.ok("CLIENT UNPAUSE");
    let told = eventually("the change standing in the log", || {
        let log = admin.serving.log();
        let told = log.split_once("POST \"/admin/orgs\" ").filter(|(_, told)| told.ends_with('\n'));
        told.map(|(_, told)| told.to_owned()).ok_or(log)
    });
    // After two seconds of waiting it is not known what came of it.
    if told != "503: organization \"new\"\n" {
        assert_eq!(told, "200: organization \"new\"\n");
        c.ok("KG.GETORG acme new");
    }
}

fn what_may_have_been_changed_is_written_down_by_its_name(sut: &Sut) {
    let mut server = sut.server();
    let admin = Admin::start(&server);
    admin.ok("POST", "/admin/orgs", json!({"name": "new"}));
    admin.refused(400, "POST", "/admin/orgs", json!({"name": "new"}));
    server.kill();
    // It may have done so before it went.
    admin.refused(503, "POST", "/admin/orgs", json!({"name": "late"}));
    admin.refused(503, "POST", "/admin/addresses", json!({"net": "192.0.2.0/24", "path": "/x"}));
    admin.refused(503, "POST", "/admin/addresses", json!({"net": "192.0.2.1", "kind": "allow"}));
    let log = admin.serving.log();
    let lines: Vec<_> =
        log.lines().filter_map(|line| line.strip_prefix("admin: write (write) from 127.0.0.1: POST ")).collect();
    let wanted = [
        r#""/admin/orgs" 200: organization "new""#,
        r#""/admin/orgs" 400: organization "new""#,
        r#""/admin/orgs" 503: organization "late""#,
        r#""/admin/addresses" 503: block "192.0.2.0/24" for "/x""#,
        r#""/admin/addresses" 503: allow "192.0.2.1""#,
    ];
    assert_eq!(lines, wanted, "{log}");
}

fn nothing_that_is_sent_breaks_a_line_of_the_log(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    // Right to left, and no end to it.
    let bidi = "\u{202e}";
    admin.ok("POST", "/admin/orgs", json!({"name": format!("a\"{bidi}")}));
    let key = admin.ok("POST", "/admin/keys", json!({"org_name": format!("a\"{bidi}"), "label": "x"}));
    admin.ok("POST", "/admin/addresses", json!({"net": "192.0.2.0/24", "path": format!("/{bidi}")}));
    admin.refused(422, "DELETE", "/admin/orgs/a%0d%0Aadmin:%20root%22%20%1b[2J%E2%80%AE%E2%80%A8", None);
    admin.refused(404, "DELETE", "/admin/addresses?net=192.0.2.0%2F24&path=/%41", None);
    admin.refused(404, "DELETE", "/admin/orgs/%FF%0A", None);
    let log = admin.serving.log();
    let lines: Vec<_> =
        log.lines().filter_map(|line| line.strip_prefix("admin: write (write) from 127.0.0.1: ")).collect();
    let id = key["id"].as_str().unwrap();
    let wanted = [
        r#"POST "/admin/orgs" 200: organization "a\"\u{202e}""#.to_owned(),
        format!(r#"POST "/admin/keys" 200: key {id}"#),
        r#"POST "/admin/addresses" 200: block "192.0.2.0/24" for "/\u{202e}""#.to_owned(),
        r#"DELETE "/admin/orgs/a\r\nadmin: root\" \u{1b}[2J\u{202e}\u{2028}" 422"#.to_owned(),
        r#"DELETE "/admin/addresses?net=192.0.2.0/24&path=/A" 404"#.to_owned(),
        r#"DELETE "/admin/orgs/%FF%0A" 404"#.to_owned(),
    ];
    assert_eq!(lines, wanted, "{log}");
    assert!(log.chars().all(|of| of == '\n' || (' '..='~').contains(&of)), "{log:?}");
}

fn wrong_tokens_are_counted_and_lock_nobody_out(sut: &Sut) {
    let server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    let wrong = |path: &str, more: &[(&str, &str)]| {
        let headers: Vec<_> = [("X-Admin-Key", "wrong")].iter().chain(more).copied().collect();
        admin.serving.send("GET", path, &headers, "")
    };
    let statuses: Vec<u16> = (0..10).map(|_| wrong("/admin/orgs", &[]).status).collect();
    assert_eq!(statuses, [403; 10]);
    // Neither another path nor a header that names another address helps, and no token of another form.
    for (path, header) in [
        ("/admin/orgs", ("X-Forwarded-For", "192.0.2.1")),
        ("/admin/keys/1", ("Forwarded", "for=192.0.2.1")),
        ("/admin/stats?x=1", ("X-Real-IP", "192.0.2.1")),
    ] {
        let answer = wrong(path, &[header]);
        detail(&answer, 429);
        let wait: u64 = answer.headers["retry-after"].parse().unwrap();
        assert!((1..=60).contains(&wait), "{answer:?}");
    }
    admin.ok("GET", "/admin/orgs", None);
    admin.ok("POST", "/admin/orgs", json!({"name": "new"}));
    // It is counted by the module, for all who serve the store.
    let other = Serving::start(&server, &["--admin-tokens", "tokens"]);
    assert_eq!(other.send("GET", "/admin/orgs", &[("X-Admin-Key", "wrong")], "").status, 429);
    server.client().ok("KG.CLEARIP acme 127.0.0.1");
    assert_eq!(wrong("/admin/orgs", &[]).status, 403);
}

fn what_cannot_be_is_refused_and_not_repeated(sut: &Sut) {
    let server = sut.server();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let id = c.ok("KG.NEWKEY acme shop web").list()[0].int();
    let admin = Admin::start(&server);
    let key = |more: Json| {
        let mut body = json!({"org_name": "shop", "label": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let many = |n: usize| Json::Array((0..n).map(|n| json!(format!("hush{n}"))).collect());
    let limit = json!({"count": 1, "window": "1m"});
    let deep = "[".repeat(100_000);
    let path = format!("/admin/keys/{id}");
    let bodies = [
        ("POST", "/admin/orgs", String::new()),
        ("POST", "/admin/orgs", "hush".to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"hush""#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"hush"} hush"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"hush","name":"hush"}"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"hush\u0000"}"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"hush\ud800"}"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":null}"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":["hush"]}"#.to_owned()),
        ("POST", "/admin/orgs", r#"{"name":"x","hush":1}"#.to_owned()),
        ("POST", "/admin/orgs", json!({"name": "\u{10ffff}".repeat(200)}).to_string()),
        ("POST", "/admin/orgs", json!({"name": "x", "limits": [{"count": 1, "window": "1m", "hush": 1}]}).to_string()),
        ("POST", "/admin/orgs", json!({"name": "x", "limits": vec![&limit; 9]}).to_string()),
        ("POST", "/admin/orgs", json!({"name": "x", "quotas": [{"count": 1, "period": "hush"}]}).to_string()),
        ("POST", "/admin/keys", deep[..60_000].to_owned()),
        ("POST", "/admin/keys", key(json!({"scopes": ["hush,hush"]}))),
        ("POST", "/admin/keys", key(json!({"scopes": ["hush hush"]}))),
        ("POST", "/admin/keys", key(json!({"scopes": [""]}))),
        ("POST", "/admin/keys", key(json!({"scopes": many(65)}))),
        ("POST", "/admin/keys", key(json!({"allow": ["hush"]}))),
        ("POST", "/admin/keys", key(json!({"allow": (0..65).map(|n| format!("192.0.2.{n}")).collect::<Vec<_>>()}))),
        ("POST", "/admin/keys", key(json!({"prefix": "hush hush"}))),
        ("POST", "/admin/keys", key(json!({"prefix": "x".repeat(33)}))),
        ("POST", "/admin/keys", key(json!({"expires_at": "hush"}))),
        ("POST", "/admin/keys", key(json!({"expires_at": 7}))),
        ("POST", "/admin/keys", key(json!({"meta": ["hush"]}))),
        ("POST", "/admin/keys", key(json!({"meta": {"hush": "x".repeat(17_000)}}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": 0, "window": "1m"}]}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": -1, "window": "1m"}]}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": 1.5, "window": "1m"}]}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": 1, "window": "hush"}]}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": 1, "window": "367d"}]}))),
        ("POST", "/admin/keys", key(json!({"limits": [{"count": 1, "window": "1m", "unit": "hush hush"}]}))),
        ("PATCH", &path, json!({"rate_limit_per_minute": 7}).to_string()),
        ("PATCH", &path, json!({"label": ""}).to_string()),
        ("PATCH", &path, json!({"active": "hush"}).to_string()),
        ("PATCH", "/admin/orgs/shop", json!({"status": "hush"}).to_string()),
        ("POST", &format!("{path}/rotate"), json!({"grace": "hush"}).to_string()),
        ("POST", "/admin/addresses", json!({"net": "192.0.2.1", "path": "/hush/../x"}).to_string()),
        ("POST", "/admin/addresses", json!({"net": "192.0.2.1", "reason": "x".repeat(257)}).to_string()),
        ("POST", "/admin/addresses", json!({"net": "192.0.2.1", "until": "hush"}).to_string()),
    ];
    let before = c.state();
    for (method, path, body) in &bodies {
        let answer = admin.serving.send(method, path, &[("X-Admin-Key", &admin.write)], body);
        let told = detail(&answer, 422);
        assert!(!told.contains("hush") && told.len() < 300, "{method} {path} {:.200}: {told}", body);
    }
    // A body that is too large need not be read to its end: only its beginning is sent.
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, admin.serving.port)).unwrap();
    let head = "POST /admin/orgs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    write!(connection, "{head}X-Admin-Key: {}\r\nContent-Length: 65537\r\n\r\n{{", admin.write).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.ends_with(r#"{"detail":"The body is too large."}"#),
        "{answer}"
    );
    let mut answer = [0; 12];
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, admin.serving.port)).unwrap();
    let head = "POST /admin/orgs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\n";
    write!(connection, "{head}X-Admin-Key: {}\r\nContent-Length: 12\r\n\r\n{{\"name\":\"a\"}}", admin.write).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 415");
    let long = "x".repeat(70_000);
    // Which of the two depends on how much of it arrives at a time.
    assert!([414, 431].contains(&admin.ask("GET", &format!("/admin/orgs/{long}"), None).status));
    let headers: Vec<_> = (0..150).map(|n| (format!("X-{n}"), "x")).collect();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, *value)).collect();
    assert_eq!(admin.serving.send("GET", "/admin/orgs", &headers, "").status, 431);
    for path in
        ["/admin/keys/0", "/admin/keys/-1", "/admin/keys/07", "/admin/keys/99999999999999999999", "/admin/keys/%FF"]
    {
        assert_eq!(admin.refused(404, "GET", path, None), "Key not found.");
    }
    assert_eq!(admin.refused(404, "GET", "/admin/orgs/%FF", None), "Organization not found.");
    admin.refused(422, "GET", "/admin/orgs/%00", None);
    admin.refused(405, "PUT", "/admin/orgs", json!({}));
    assert_eq!(c.state(), before, "nothing was changed");
}

fn the_file_of_tokens_is_for_its_owner_alone(sut: &Sut) {
    let server = sut.server();
    let made = new_token(&server, &["--role", "write", "--name", "me", "--file", "tokens"]);
    assert!(made.status.success(), "{made:?}");
    let file = server.directory().join("tokens");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let line = fs::read_to_string(&file).unwrap();
    let starts = |why: &str| {
        let output = tool(&server)
            .args(["serve", "--listen", &format!("127.0.0.1:{}", free_port()), "--admin-tokens", "tokens"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(why), "{why}: {text}");
        assert!(!text.contains("sha256:b") && !text.contains("hush"), "{text}");
    };
    for mode in [0o640, 0o604, 0o620, 0o644] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        starts("chmod 600");
        let added = new_token(&server, &["--role", "read", "--name", "other", "--file", "tokens"]);
        assert!(!added.status.success() && added.stdout.is_empty(), "{added:?}");
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), line);
    let digest = "b".repeat(64);
    for (content, why) in [
        (String::new(), "no token"),
        ("# nobody\n\n".to_owned(), "no token"),
        (format!("{line}hush me2 sha256:{digest}\n"), "line 2"),
        (format!("{line}write me2 sha256:{digest}b\n"), "line 2"),
        (format!("{line}write hush\n"), "line 2"),
        (format!("{line}read me sha256:{digest}\n"), "line 2"),
        (format!("read a sha256:{digest}\nwrite b sha256:{digest}\n"), "line 2"),
    ] {
        fs::write(&file, content).unwrap();
        starts(why);
    }
    fs::remove_file(&file).unwrap();
    starts("tokens");
    fs::create_dir(&file).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o700)).unwrap();
    starts("not a file");
}

fn a_token_is_shown_once_and_kept_as_a_digest(sut: &Sut) {
    let server = sut.server();
    let made = new_token(&server, &["--role", "read", "--name", "ci.deploy-1"]);
    let token = String::from_utf8(made.stdout).unwrap();
    let token = token.trim();
    assert!(token.starts_with("kga_") && token.len() == 47, "{token}");
    let line = String::from_utf8(made.stderr).unwrap();
    assert!(line.starts_with("read ci.deploy-1 sha256:") && !line.contains(token), "{line}");
    // That line is what the file takes, also behind a last line without an end.
    let file: PathBuf = server.directory().join("tokens");
    fs::write(&file, format!("# who may\n{}", line.trim_end())).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let second = new_token(&server, &["--role", "write", "--name", "me", "--file", "tokens"]);
    assert!(second.status.success() && second.stderr.is_empty(), "{second:?}");
    let again = new_token(&server, &["--role", "write", "--name", "me", "--file", "tokens"]);
    assert!(!again.status.success() && again.stdout.is_empty(), "{again:?}");
    for name in ["", "a b", "a\n", &"x".repeat(65)] {
        let refused = new_token(&server, &["--role", "read", "--name", name]);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    }
    let serving = Serving::start(&server, &["--admin-tokens", "tokens"]);
    for token in [token, String::from_utf8(second.stdout).unwrap().trim()] {
        assert_eq!(serving.send("GET", "/admin/orgs", &[("X-Admin-Key", token)], "").status, 200);
    }
    assert!(serving.log().contains("2 tokens"), "{}", serving.log());
}

fn without_tokens_there_is_no_admin_api(sut: &Sut) {
    let server = sut.server();
    let serving = Serving::start(&server, &[]);
    for path in ["/admin/orgs", "/admin/keys", "/openapi.json", "/docs", "/docs/"] {
        assert_eq!(serving.send("GET", path, &[("X-Admin-Key", "x")], "").status, 404, "{path}");
    }
    assert!(serving.log().contains("no admin API"), "{}", serving.log());
}

fn says_so_while_the_server_is_away(sut: &Sut) {
    let mut server = sut.server();
    server.client().ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    admin.ok("GET", "/admin/orgs", None);
    server.kill();
    // Who is not let in hears so all the same.
    detail(&admin.serving.send("GET", "/admin/orgs", &[], ""), 401);
    for token in ["wrong", &format!("{}A", admin.write)] {
        detail(&admin.serving.send("GET", "/admin/orgs", &[("X-Admin-Key", token)], ""), 403);
    }
    for (method, body) in [("GET", ""), ("POST", r#"{"name":"x"}"#)] {
        let answer = admin.serving.send(method, "/admin/orgs", &[("X-Admin-Key", &admin.write)], body);
        detail(&answer, 503);
        assert_eq!(answer.headers["retry-after"], "1");
    }
    server.start_again();
    eventually("the server being found again", || {
        let answer = admin.ask("GET", "/admin/orgs", None);
        expect(answer.status == 200, || format!("{answer:?}"))
    });
    let plain = sut.setup().without_module().start();
    let admin = Admin::start(&plain);
    assert!(admin.refused(503, "GET", "/admin/orgs", None).contains("module"));
}

fn describes_itself_without_a_network(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    let answer = admin.serving.send("GET", "/openapi.json", &[], "");
    let document: Json = serde_json::from_str(&answer.body).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, of_path) in document["paths"].as_object().unwrap() {
        for (method, operation) in of_path.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for status in ["200", "401", "403", "405", "408", "414", "422", "429", "431", "500", "503"] {
                assert!(responses.contains_key(status), "{method} {path}: {status}");
            }
        }
    }
    let keys = &document["components"]["schemas"]["KeyCreate"]["properties"];
    assert_eq!((&keys["rate_limit_per_minute"]["maximum"], &keys["label"]["maxLength"]), (&json!(10000), &json!(255)));
    for file in ["", "index.css", "swagger-initializer.js"] {
        let page = admin.serving.send("GET", &format!("/docs/{file}"), &[], "");
        assert_eq!(page.status, 200);
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "no-referrer")]
        {
            assert_eq!(page.headers[name], value, "{file}");
        }
        let policy = &page.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("http"), "{policy}");
        assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{file}: {}", page.body);
    }
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"] {
        assert_eq!(admin.serving.send("HEAD", &format!("/docs/{file}"), &[], "").status, 200, "{file}");
    }
}
