//! Models by repository id, from a server on the loopback address that answers as Hugging Face does.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use common::{fixture, ids};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A server with one repository, `org/llama`, which is a fixture; it lives as long as the test process.
struct Site {
    endpoint: String,
    /// Path and token of every request.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn new() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is its own business.
                let _ = serve(stream, &fixture("models/llama"), &seen);
            }
        });
        Site { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn serve(mut stream: TcpStream, folder: &Path, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let lines: Vec<String> = BufReader::new(stream.try_clone()?)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    };
    seen.lock()
        .expect("not poisoned")
        .push(format!("{path} {}", header("authorization").unwrap_or("no token")));
    if path == "/api/models/org/llama/revision/main" {
        let names = std::fs::read_dir(folder)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let siblings: Vec<Value> = names.map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let name = path.strip_prefix(&format!("/org/llama/resolve/{COMMIT}/"));
    let Some(bytes) = name.and_then(|name| std::fs::read(folder.join(name)).ok()) else {
        return write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let (start, end) =
        header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1).min(bytes.len());
    write!(
        stream,
        "HTTP/1.1 206 Partial\r\nETag: \"{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n\
         Content-Range: bytes {start}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        end - 1,
        bytes.len(),
        end - start,
        name = name.unwrap_or_default().replace('.', "-"),
    )?;
    stream.write_all(&bytes[start..end])
}

/// `mantissa` with a cache of its own.
fn mantissa(home: &Path) -> Command {
    let mut command = Command::cargo_bin("mantissa").expect("the binary");
    for variable in ["MANTISSA_POLICY", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"] {
        command.env_remove(variable);
    }
    command.env("HF_HOME", home);
    command
}

const RUN: [&str; 8] = ["-p", "Once", "--greedy", "-n", "6", "--json", "--no-stats", "--ignore-eos"];

#[test]
fn a_repository_is_downloaded_once_and_then_taken_from_the_cache() {
    let site = Site::new();
    let home = tempfile::tempdir().expect("a folder");
    let generated = |command: &mut Command| {
        let output = command.assert().success().get_output().stdout.clone();
        ids(&serde_json::from_slice::<Value>(&output).expect("JSON")["ids"])
    };
    let local = generated(mantissa(home.path()).arg("run").arg(fixture("models/llama")).args(RUN));
    let mut first = mantissa(home.path());
    first
        .args(["run", "org/llama"])
        .args(RUN)
        .env("HF_ENDPOINT", &site.endpoint)
        .env("HF_TOKEN", "hf_secret");
    assert_eq!(generated(&mut first), local);
    let requests = site.requests();
    assert!(requests.iter().any(|request| request.contains("model.safetensors")), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains("expected")), "{requests:?}");
    assert!(requests.iter().all(|request| request.ends_with(" Bearer hf_secret")), "{requests:?}");

    // Without the server's address: the network would not be reached.
    let mut second = mantissa(home.path());
    assert_eq!(generated(second.args(["run", "org/llama"]).args(RUN).env("HF_HUB_OFFLINE", "1")), local);
    assert_eq!(site.requests().len(), requests.len());
}

#[test]
fn what_the_hub_refuses_names_the_repository_and_helps() {
    let site = Site::new();
    let home = tempfile::tempdir().expect("a folder");
    let mut refused = mantissa(home.path());
    refused.args(["inspect", "org/private"]).env("HF_ENDPOINT", &site.endpoint);
    refused.assert().code(1).stderr(contains("org/private").and(contains("401")).and(contains("HF_TOKEN")));

    let mut offline = mantissa(home.path());
    offline.args(["run", "org/llama", "-p", "x"]).env("HF_HUB_OFFLINE", "true");
    offline.assert().code(1).stderr(contains("org/llama").and(contains("HF_HUB_OFFLINE")));

    let mut unclear = mantissa(home.path());
    unclear.args(["run", "org/llama", "-p", "x"]).env("HF_HUB_OFFLINE", "perhaps");
    unclear.assert().code(1).stderr(contains("HF_HUB_OFFLINE").and(contains("perhaps")));
}
