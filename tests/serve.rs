//! `keyguard serve` as a process that runs for long: what it reads again when it is told to, HTTPS, and what it answers while the server
//! takes its time.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::admin::{Admin, new_token};
use crate::harness::{Serving, Sut, eventually, expect, installed, server_tests, tool};
use crate::verify::signal;

server_tests![
    admin_tokens_are_read_again_on_a_hangup,
    certificates_are_read_again_on_a_hangup,
    while_the_server_is_busy_or_loading_it_is_asked_again_later,
    it_ends_when_told_also_if_all_places_are_taken_by_who_never_reads,
    a_body_that_does_not_arrive_is_not_waited_for_without_end,
    http_2_is_not_spoken,
];

/// Tells it to read its files again, and waits for the line that says what came of it; all lines since.
fn hang_up(serving: &Serving, line: &str) -> String {
    let before = serving.log().len();
    signal(serving.id(), "-HUP");
    eventually("the files being read again", || {
        let log = serving.log()[before..].to_owned();
        expect(log.lines().any(|told| told.contains(line)), || format!("{line}: {log}")).map(|()| log)
    })
}

fn admin_tokens_are_read_again_on_a_hangup(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server);
    let file = server.directory().join("tokens");
    let status = |token: &str| admin.serving.send("GET", "/admin/orgs", &[("X-Admin-Key", token)], "").status;
    let made = new_token(&server, &["--role", "read", "--name", "late", "--file", "tokens"]);
    let late = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert_eq!([status(&admin.write), status(&late)], [200, 403], "nothing has told it to look");
    hang_up(&admin.serving, "read again: 3 admin tokens");
    assert_eq!([status(&admin.write), status(&late)], [200, 200]);

    // A line is taken out, and its token is none any more.
    let lines = fs::read_to_string(&file).unwrap();
    let without: String =
        lines.lines().filter(|line| !line.starts_with("write ")).map(|line| line.to_owned() + "\n").collect();
    fs::write(&file, &without).unwrap();
    hang_up(&admin.serving, "read again: 2 admin tokens");
    assert_eq!([status(&admin.write), status(&late)], [403, 200]);

    // A file that is none leaves those that there were, and its content stays where it is.
    let digest = "b".repeat(64);
    for content in [format!("{without}hush sha256:{digest}\n"), "\0\n".to_owned()] {
        fs::write(&file, content).unwrap();
        let told = hang_up(&admin.serving, "the admin tokens stay as they were");
        assert!(!told.contains("hush") && !told.contains(&digest), "{told}");
        assert_eq!([status(&admin.write), status(&late)], [403, 200]);
    }
    fs::remove_file(&file).unwrap();
    hang_up(&admin.serving, "the admin tokens stay as they were");
    assert_eq!([status(&admin.write), status(&late)], [403, 200]);

    // With the last line, the last who was let in is gone.
    fs::write(&file, "# nobody\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    hang_up(&admin.serving, "read again: 0 admin tokens");
    assert_eq!([status(&admin.write), status(&late)], [403, 403]);

    // Without files there is nothing to read, and nothing ends.
    let serving = Serving::start(&server, &[]);
    hang_up(&serving, "nothing to read again");
    assert_eq!(serving.send("GET", "/healthz", &[], "").status, 200);
}

/// Makes a certificate for this machine, signed by its own key: `cert.pem` and `key.pem` in a folder.
const CERTIFICATE: &str = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "keyguard")])
now = datetime.datetime.now(datetime.timezone.utc)
here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
made = made.serial_number(x509.random_serial_number()).add_extension(here, critical=False)
made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
made = made.sign(key, hashes.SHA256())
pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
open(sys.argv[1] + "/cert.pem", "wb").write(made.public_bytes(pem))
open(sys.argv[1] + "/key.pem", "wb").write(key.private_bytes(pem, form, serialization.NoEncryption()))
"#;

/// Asks over HTTPS, and trusts one certificate: prints the status and what is spoken, or why there was no answer.
const ASK: &str = r#"
import http.client, ssl, sys
trusting = ssl.create_default_context(cafile=sys.argv[1])
# The certificate stands for itself, without what authorities have in theirs.
trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT
trusting.set_alpn_protocols(["h2", "http/1.1"])
try:
    connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[2]), context=trusting, timeout=60)
    connection.connect()
    spoken = connection.sock.selected_alpn_protocol()
    connection.request("GET", "/healthz")
    print(connection.getresponse().status, spoken)
except ssl.SSLCertVerificationError:
    print("not trusted")
"#;

/// What it prints of an answer.
const OK: &str = "200 http/1.1";

fn run_python(program: &str, arguments: &[&str]) -> String {
    let python = installed("KEYGUARD_PREDECESSORS", "target/predecessors/bin/python");
    let output = Command::new(python).args(["-c", program]).args(arguments).env_remove("PYTHONPATH").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A new certificate in a folder of its own.
fn new_certificate(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    run_python(CERTIFICATE, &[folder.to_str().unwrap()]);
}

fn certificates_are_read_again_on_a_hangup(sut: &Sut) {
    let server = sut.server();
    let [first, second, used] = ["first", "second", "used"].map(|name| server.directory().join(name));
    new_certificate(&first);
    new_certificate(&second);
    fs::create_dir(&used).unwrap();
    let install = |from: &Path, files: &[&str]| {
        for file in files {
            fs::copy(from.join(file), used.join(file)).unwrap();
        }
    };
    install(&first, &["cert.pem", "key.pem"]);
    let [certificate, key] = ["cert.pem", "key.pem"].map(|file| used.join(file));
    let arguments = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let serving = Serving::start(&server, &arguments);
    let ask =
        |trusted: &Path| run_python(ASK, &[trusted.join("cert.pem").to_str().unwrap(), &serving.port.to_string()]);
    assert_eq!([ask(&first), ask(&second)], [OK, "not trusted"]);
    assert!(serving.log().contains("https://"), "{}", serving.log());
    // Who speaks HTTP is not served.
    let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.windows(4).any(|bytes| bytes == b"HTTP"), "{answer:?}");

    install(&second, &["cert.pem", "key.pem"]);
    assert_eq!([ask(&first), ask(&second)], [OK, "not trusted"], "nothing has told it to look");
    hang_up(&serving, "read again: the certificate and its key");
    assert_eq!([ask(&first), ask(&second)], ["not trusted", OK]);

    // A certificate that another key is for, no certificate, no key, no file.
    let broken = |spoil: &dyn Fn()| {
        spoil();
        let told = hang_up(&serving, "the certificate and its key stay as they were");
        assert!(told.contains("--tls-cert") && !told.contains("hush"), "{told}");
        assert_eq!(ask(&second), OK);
        install(&second, &["cert.pem", "key.pem"]);
    };
    broken(&|| install(&first, &["cert.pem"]));
    broken(&|| fs::write(&certificate, "hush").unwrap());
    broken(&|| fs::write(&key, "-----BEGIN PRIVATE KEY-----\nhush\n").unwrap());
    broken(&|| fs::remove_file(&key).unwrap());
    drop(serving);

    // One that would not do at first is told of, and nothing is served.
    install(&first, &["cert.pem"]);
    let output = tool(&server).args(["serve", "--listen", "127.0.0.1:0"]).args(arguments).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && told.contains("--tls-cert"), "{told}");
}

fn while_the_server_is_busy_or_loading_it_is_asked_again_later(sut: &Sut) {
    let server = sut.setup().with("busy-reply-threshold", "1").with("rdbcompression", "no").start();
    let mut c = server.client();
    c.ok("KG.ADDORG acme shop");
    let admin = Admin::start(&server);
    let told = |what: &str| {
        eventually(what, || {
            let answer = admin.serving.send("GET", "/admin/orgs", &[("X-Admin-Key", &admin.write)], "");
            expect(answer.status == 503, || format!("{answer:?}"))?;
            assert_eq!(answer.headers["retry-after"], "1");
            let body: Json = serde_json::from_str(&answer.body).unwrap();
            expect(body["detail"].as_str().unwrap().contains(what), || answer.body)
        });
    };
    let works = || {
        eventually("the server answering again", || {
            let answer = admin.serving.send("GET", "/admin/orgs", &[("X-Admin-Key", &admin.write)], "");
            expect(answer.status == 200, || format!("{answer:?}"))
        });
    };
    let mut busy = server.client();
    busy.send(["EVAL", "while true do end", "0"].map(|word| word.as_bytes().to_vec()).to_vec());
    told("BUSY");
    c.ok("SCRIPT KILL");
    works();

    busy.receive();
    busy.send("DEBUG SLEEP 3");
    told("does not answer");
    works();

    // A file whose every record takes a while to be read, between which others are answered.
    c.ok("DEBUG POPULATE 2000 key 1000");
    c.ok("CONFIG SET loading-process-events-interval-bytes 1024");
    c.ok("CONFIG SET key-load-delay 10000");
    busy.receive();
    busy.send("DEBUG RELOAD");
    told("LOADING");
    c.ok("CONFIG SET key-load-delay 0");
    works();
    assert_eq!(admin.ok("POST", "/admin/orgs", json!({"name": "new"}))["name"], "new");
}

/// A connection over which this is sent; waiting for an answer fails after a minute.
fn sent(serving: &Serving, bytes: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, serving.port)).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    connection.write_all(bytes).unwrap();
    connection
}

fn it_ends_when_told_also_if_all_places_are_taken_by_who_never_reads(sut: &Sut) {
    let server = sut.server();
    let mut admin = Admin::start(&server).another(&server, &["--max-connections", "2"]);
    // More than the buffers on the way hold.
    let script = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let deaf = [&script, &script].map(|script| sent(&admin.serving, script.as_bytes()));
    let mut third = sent(&admin.serving, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    third.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let error = third.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "there is no place for it");
    signal(admin.serving.id(), "-TERM");
    eventually("its end", || expect(admin.serving.has_ended(), || admin.serving.log()));
    drop((deaf, third));
}

fn a_body_that_does_not_arrive_is_not_waited_for_without_end(sut: &Sut) {
    let server = sut.server();
    let admin = Admin::start(&server).another(&server, &["--max-connections", "1"]);
    let before = server.client().state();
    let head = format!("POST /admin/orgs HTTP/1.1\r\nHost: x\r\nX-Admin-Key: {}\r\n", admin.write);
    let about_body = "Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"name\"";
    let mut half = sent(&admin.serving, [&*head, about_body].concat().as_bytes());
    let mut answer = [0; 12];
    half.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    // Its place is free again, though it is still there.
    let mut next = sent(&admin.serving, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    next.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(server.client().state(), before, "nothing was changed");
    drop(half);
}

fn http_2_is_not_spoken(sut: &Sut) {
    let serving = Serving::start(&sut.server(), &[]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut answer = Vec::new();
    if let Err(error) = sent(&serving, preface).read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "which is as good an end");
    }
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
}
