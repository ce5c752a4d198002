//! Downloads from the hub, against a hub of its own on loopback: whole, broken off and gone on with, and without any hub.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use paris_node::hub::{Hub, Repository};

const VERSION: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that serves one repository, and breaks off where it is told to.
#[derive(Clone)]
struct FakeHub {
    address: String,
    state: Arc<Mutex<State>>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Bytes after which answers with a file's body break off, one each; whole once they are used up.
    breaks: Vec<usize>,
    /// The file and the first byte of every body that was asked for.
    asked: Vec<(String, usize)>,
}

impl FakeHub {
    fn start(files: BTreeMap<String, Vec<u8>>, breaks: Vec<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Self { address, state: Arc::new(Mutex::new(State { files, breaks, asked: Vec::new() })) };
        let serving = hub.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = serving.clone();
                // A client that goes away is no concern of the hub.
                thread::spawn(move || hub.serve(stream).ok());
            }
        });
        hub
    }

    /// Answers one request and closes, as `Connection: close` says.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut range = None;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(asked) = line.strip_prefix("range: bytes=") {
                let (first, last) = asked.split_once('-').unwrap();
                range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().ok()));
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if path == "/api/models/owner/paris/revision/main" {
            let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "sha": VERSION, "siblings": siblings }).to_string();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        let file = path.strip_prefix(&format!("/owner/paris/resolve/{VERSION}/"));
        let Some((name, bytes)) = file.and_then(|name| Some((name.to_owned(), state.files.get(name)?.clone()))) else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        };
        let (first, last) = range.unwrap_or((0, None));
        let end = last.map_or(bytes.len(), |last| (last + 1).min(bytes.len()));
        let etag = blake3::hash(&bytes);
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {VERSION}\r\n\
             Content-Range: bytes {first}-{}/{}\r\nContent-Length: {}\r\n\r\n",
            end.max(1) - 1,
            bytes.len(),
            end - first
        )?;
        let mut body = &bytes[first..end];
        // The client asks for the first byte alone to learn the rest from the headers.
        if last.is_none() {
            state.asked.push((name, first));
            if !state.breaks.is_empty() {
                let broken = state.breaks.remove(0);
                body = &body[..broken.min(body.len())];
            }
        }
        stream.write_all(body)
    }

    fn asked(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn break_after(&self, bytes: &[usize]) {
        self.state.lock().unwrap().breaks = bytes.to_vec();
    }
}

const BIG: &str = "expert_0/diffusion_pytorch_model.safetensors";

fn files() -> BTreeMap<String, Vec<u8>> {
    let big = (0..300_000u32).map(|it| (it % 251) as u8).collect();
    let small = |name: &str| (name.to_owned(), format!("{{\"file\": \"{name}\"}}").into_bytes());
    let names =
        ["config.json", "expert_0/config.json", "router/config.json", "README.md", "expert_0/pytorch_model.bin"];
    names.into_iter().map(small).chain([(BIG.to_owned(), big)]).collect()
}

fn repository() -> Repository {
    "hub:owner/paris".parse().unwrap()
}

fn assert_whole(folder: &Path) {
    for (name, bytes) in files() {
        let is_read = name != "README.md" && !name.ends_with(".bin");
        assert_eq!(fs::read(folder.join(&name)).ok(), is_read.then_some(bytes), "{name}");
    }
}

#[test]
fn a_repository_is_downloaded_once_and_then_taken_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = FakeHub::start(files(), Vec::new());
    let hub = Hub::at(&server.address, cache.path()).unwrap();
    let downloaded = hub.download(&repository()).unwrap();
    assert_whole(&downloaded.folder);
    assert_eq!((downloaded.stale, server.asked().len()), (None, 4));
    assert_eq!(hub.download(&repository()).unwrap().folder, downloaded.folder);
    assert_eq!(server.asked(), []);

    // Without a hub the cache will do, and it is said that nobody was asked.
    let offline = Hub::at("http://127.0.0.1:1", cache.path()).unwrap().download(&repository()).unwrap();
    assert_eq!(offline.folder, downloaded.folder);
    assert!(offline.stale.is_some());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let cache = tempfile::tempdir().unwrap();
    let server = FakeHub::start(files(), Vec::new());
    let hub = Hub::at(&server.address, cache.path()).unwrap();
    // config.json and expert_0/config.json are whole, then the line breaks twice in the big file.
    server.break_after(&[usize::MAX, usize::MAX, 100_000, 50_000]);
    assert_whole(&hub.download(&repository()).unwrap().folder);
    let asked = server.asked();
    let of_big: Vec<usize> = asked.iter().filter(|(name, _)| name == BIG).map(|(_, first)| *first).collect();
    assert_eq!(of_big, [0, 100_000, 150_000]);
}

#[test]
fn what_was_downloaded_before_the_hub_went_away_is_not_asked_for_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = FakeHub::start(files(), Vec::new());
    server.break_after(&[usize::MAX, usize::MAX, 100_000, 0, 0, 0]);
    let said = Hub::at(&server.address, cache.path()).unwrap().download(&repository()).unwrap_err().to_string();
    assert!(
        said.contains(BIG) && said.contains("goes on from there") && said.contains("hf download owner/paris"),
        "{said}"
    );
    server.asked();
    let downloaded = Hub::at(&server.address, cache.path()).unwrap().download(&repository()).unwrap();
    assert_whole(&downloaded.folder);
    let of_big: Vec<_> = server.asked().into_iter().filter(|(name, _)| !name.ends_with("config.json")).collect();
    assert_eq!(of_big, [(BIG.to_owned(), 100_000)]);
}

#[test]
fn a_hub_that_is_not_there_and_a_repository_that_is_no_mixture_are_named() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::at("http://127.0.0.1:1", cache.path()).unwrap();
    let said = hub.download(&repository()).unwrap_err().to_string();
    assert!(said.contains("hub:owner/paris cannot be downloaded") && said.contains("--local-dir"), "{said}");

    let mut other = files();
    other.remove("router/config.json");
    let server = FakeHub::start(other, Vec::new());
    let hub = Hub::at(&server.address, cache.path()).unwrap();
    let said = hub.download(&repository()).unwrap_err().to_string();
    assert!(said.contains("no router/config.json"), "{said}");
    let said = hub.download(&"hub:owner/nothing".parse().unwrap()).unwrap_err().to_string();
    assert!(said.contains("not there"), "{said}");
}
