use std::{
    cell::RefCell,
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::json;
use tempfile::TempDir;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A site with one repository, `org/model`, on the loopback address. It serves until the test process ends.
struct Site {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// How a site misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Every answer has this status.
    Status(u16),
    /// Files end after half their bytes, without a length that would tell.
    Truncate,
    /// The commit is a path.
    Commit,
}

impl Site {
    fn new(files: &[(&str, &str)], fault: Fault) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let files: HashMap<String, String> =
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is its own business.
                let _ = serve(stream, &files, fault, &seen);
            }
        });
        Site { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn serve(
    stream: TcpStream,
    files: &HashMap<String, String>,
    fault: Fault,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let token = headers.get("authorization").map(String::as_str).unwrap_or("no token");
    seen.lock().expect("not poisoned").push(format!("{path} {token}"));
    let answer = answer(&path, headers.get("range").map(String::as_str), files, fault);
    { stream }.write_all(&answer)
}

fn answer(path: &str, range: Option<&str>, files: &HashMap<String, String>, fault: Fault) -> Vec<u8> {
    let status =
        |status: u16| format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if let Fault::Status(number) = fault {
        return status(number).into_bytes();
    }
    if path == "/api/models/org/model/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let sha = if fault == Fault::Commit { "../../x" } else { COMMIT };
        let body = json!({"sha": sha, "siblings": siblings}).to_string();
        let length = body.len();
        return format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
            .into();
    }
    let file = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/")).and_then(|name| files.get(name));
    let Some(file) = file else { return status(404).into_bytes() };
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).expect("a range");
    let start: usize = range.0.parse().expect("a number");
    let end = range.1.parse::<usize>().map_or(file.len(), |last| last + 1).min(file.len());
    let (total, etag) =
        (file.len(), format!("{:x}-{}", file.len(), file.bytes().map(u64::from).sum::<u64>()));
    let mut head = format!(
        "HTTP/1.1 206 Partial\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n\
         Content-Range: bytes {start}-{}/{total}\r\nConnection: close\r\n",
        end.saturating_sub(1)
    );
    let mut body = &file.as_bytes()[start.min(end)..end];
    if fault == Fault::Truncate {
        body = &body[..body.len() / 2];
    } else {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Remembers what it was told.
#[derive(Default)]
struct Log(RefCell<Vec<String>>);

impl DownloadProgress for Log {
    fn start(&self, file: &str, bytes: u64) {
        self.0.borrow_mut().push(format!("{file} {bytes}"));
    }

    fn advance(&self, bytes: u64) {
        if bytes > 0 {
            self.0.borrow_mut().push(format!("+{bytes}"));
        }
    }

    fn finish(&self) {
        self.0.borrow_mut().push("done".to_owned());
    }
}

fn settings(home: &TempDir, site: &Site) -> HubSettings {
    HubSettings {
        endpoint: Some(format!("{}/", site.endpoint)),
        cache_home: Some(home.path().to_owned()),
        ..HubSettings::default()
    }
}

fn id(text: &str) -> RepoId {
    text.parse().expect("a repository")
}

fn get(name: &str, site: &Site) -> Result<PathBuf, String> {
    let home = TempDir::new().expect("a folder");
    let path = fetch(&id(name), &settings(&home, site), &NoDownloadProgress);
    path.map_err(|error| error.to_string().replace(&site.endpoint, "SITE"))
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).to_string();
    let site = Site::new(
        &[
            ("config.json", "{}"),
            ("model.safetensors.index.json", &index),
            ("model-1.safetensors", "first"),
            ("model-2.safetensors", "second"),
            ("tokenizer.json", "{\"tokens\": 1}"),
            ("README.md", "not needed"),
            ("model.gguf", "not needed either"),
        ],
        Fault::None,
    );
    let home = TempDir::new().expect("a folder");
    let settings = HubSettings { token: Some("secret".to_owned()), ..settings(&home, &site) };
    let offline = HubSettings { offline: true, ..settings.clone() };
    let message = fetch(&id("org/model"), &offline, &NoDownloadProgress).expect_err("not there").to_string();
    assert!(message.starts_with("org/model is not (completely) in the cache "), "{message}");
    assert!(site.requests().is_empty());

    let log = Log::default();
    let folder = fetch(&id("org/model"), &settings, &log).expect("downloaded");
    assert!(folder.ends_with(format!("hub/models--org--model/snapshots/{COMMIT}")), "{}", folder.display());
    assert_eq!(fs::read_to_string(folder.join("model-2.safetensors")).expect("there"), "second");
    assert!(folder.join("tokenizer.json").exists());
    assert!(!folder.join("README.md").exists() && !folder.join("model.gguf").exists());
    assert!(log.0.borrow().windows(3).any(|lines| lines == ["model-1.safetensors 5", "+5", "done"]));
    let requests = site.requests();
    assert!(requests.iter().all(|request| request.ends_with(" Bearer secret")), "{requests:?}");

    assert_eq!(fetch(&id("org/model"), &settings, &NoDownloadProgress).expect("cached"), folder);
    assert_eq!(fetch(&id("org/model"), &offline, &NoDownloadProgress).expect("cached"), folder);
    assert_eq!(site.requests().len(), requests.len(), "the cache is enough");
}

#[test]
fn gguf_files_are_chosen_or_asked_for() {
    let one = Site::new(&[("m-F16.gguf", "GGUF"), ("README.md", "")], Fault::None);
    let home = TempDir::new().expect("a folder");
    let path = fetch(&id("org/model"), &settings(&home, &one), &NoDownloadProgress).expect("downloaded");
    assert!(path.ends_with("m-F16.gguf"));
    let offline = HubSettings { offline: true, ..settings(&home, &one) };
    assert_eq!(fetch(&id("org/model"), &offline, &NoDownloadProgress).expect("cached"), path);
    assert_eq!(fetch(&id("org/model:m-F16.gguf"), &offline, &NoDownloadProgress).expect("cached"), path);

    let two = Site::new(&[("a.gguf", "GGUF"), ("sub/b.gguf", "GGUFb")], Fault::None);
    assert_eq!(
        get("org/model", &two).expect_err("several"),
        "org/model has several .gguf files; name one as org/model:FILE, of a.gguf, sub/b.gguf"
    );
    assert!(get("org/model:sub/b.gguf", &two).expect("downloaded").ends_with("sub/b.gguf"));
    assert_eq!(
        get("org/model:c.gguf", &two).expect_err("absent"),
        "org/model has no file \"c.gguf\"; its .gguf files: a.gguf, sub/b.gguf"
    );
    let none = Site::new(&[("config.json", "{}"), ("pytorch_model.bin", "")], Fault::None);
    assert!(
        get("org/model", &none).expect_err("no weights").starts_with("org/model has neither config.json")
    );
}

#[test]
fn refusals_name_repository_file_and_status() {
    let message = |status| get("org/model", &Site::new(&[], Fault::Status(status))).expect_err("refused");
    assert_eq!(
        message(401),
        "SITE: the list of files of org/model: HTTP status 401 (the name may be wrong; a private or gated repository \
         needs HF_TOKEN, set to a token that may read it)"
    );
    assert!(message(403).contains("HTTP status 403") && message(403).contains("HF_TOKEN"));
    assert!(message(404).contains("HTTP status 404 (check the name and the revision"));
    assert!(message(503).contains("try again later"));
    let missing_revision = get("org/model@v2", &Site::new(&[], Fault::None)).expect_err("no such revision");
    assert!(missing_revision.contains("HTTP status 404"), "{missing_revision}");

    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let gone = Site { endpoint: format!("http://{gone}"), requests: Arc::default() };
    let message = get("org/model", &gone).expect_err("nobody there");
    assert!(message.starts_with("SITE: the list of files of org/model: "), "{message}");
}

#[test]
fn hostile_sites_are_refused() {
    let files = [("config.json", "{}"), ("model.safetensors", "weights!")];
    let message = get("org/model", &Site::new(&files, Fault::Commit)).expect_err("no commit");
    assert!(message.contains("the commit \"../../x\", which is none"), "{message}");
    let climbing = json!({"weight_map": {"a": "../../x"}}).to_string();
    let files = [("config.json", "{}"), ("model.safetensors.index.json", climbing.as_str())];
    let message = get("org/model", &Site::new(&files, Fault::None)).expect_err("outside");
    assert!(message.starts_with("model.safetensors.index.json of org/model: \"../../x\" is no file name"));
}

#[test]
fn truncated_downloads_leave_nothing_behind() {
    let files = [("config.json", "{\"a\": 1}"), ("model.safetensors", "weights!")];
    let home = TempDir::new().expect("a folder");
    let broken = Site::new(&files, Fault::Truncate);
    let error = fetch(&id("org/model"), &settings(&home, &broken), &NoDownloadProgress).expect_err("cut off");
    assert_eq!(
        error.to_string(),
        "config.json of org/model: the download ended after 4 of 8 bytes; try again"
    );
    let whole = Site::new(&files, Fault::None);
    let folder = fetch(&id("org/model"), &settings(&home, &whole), &NoDownloadProgress).expect("whole now");
    assert_eq!(fs::read_to_string(folder.join("config.json")).expect("there"), "{\"a\": 1}");
}

#[test]
fn names_of_repositories_are_parsed() {
    let parsed = id("Qwen/Qwen2.5-0.5B@refs/pr/1:sub/x.gguf");
    assert_eq!(
        (parsed.repo(), parsed.revision(), parsed.file()),
        ("Qwen/Qwen2.5-0.5B", "refs/pr/1", Some("sub/x.gguf"))
    );
    assert_eq!(parsed.to_string(), "Qwen/Qwen2.5-0.5B@refs/pr/1:sub/x.gguf");
    assert_eq!((id("a/b").revision(), id("a/b").to_string()), ("main", "a/b".to_owned()));
    for bad in [
        "",
        "a",
        "a/b/c",
        "/a",
        "a/",
        "../b",
        "a/..",
        "a b/c",
        "./a",
        "a/b@",
        "a/b@../x",
        "a/b:",
        "a/b:x.bin",
        "a/b:../x.gguf",
        "a/b:/x.gguf",
        "-a/b",
        "a/b@x y",
    ] {
        let error = bad.parse::<RepoId>().expect_err("names nothing");
        assert!(error.to_string().contains("names no Hugging Face repository"), "{bad}: {error}");
    }
}

#[test]
fn without_a_home_there_is_no_cache() {
    let error = fetch(&id("a/b"), &HubSettings::default(), &NoDownloadProgress).expect_err("no home");
    assert_eq!(error.to_string(), "a/b: there is no home folder for the cache; set HF_HOME to a folder");
}
