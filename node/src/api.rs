//! The local API: how commands talk to the node that runs on their data directory.
//!
//! HTTP on loopback. The port is the system's choice and stands, with a token that every call must bring, in `api.json`, which only the
//! operator may read; so nobody else on the machine can use it, and no web page can.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{
        Method, StatusCode,
        header::{AUTHORIZATION, HOST},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    history::{PartHistory, thinned},
    runtime::{Assembly, NodeError, NodeHandle},
    status::Status,
    store::{DataDir, write_private},
};

/// The longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Intervals of a history that are served at most; the older are merged.
const HISTORY_LINES_MAX: usize = 2000;

/// What `api.json` holds.
#[derive(Serialize, Deserialize)]
struct Door {
    address: SocketAddr,
    token: String,
}

/// An API that cannot be served or reached.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The port or the file.
    #[error("the node's local API: {0}")]
    Io(#[from] std::io::Error),
    /// The running node did not answer as expected.
    #[error("the running node does not answer ({0}): it may be starting or stopping; try again in a moment")]
    Call(String),
}

/// Serves the API until the process ends. `api.json` is in place when this returns.
pub async fn serve(dir: &DataDir, handle: NodeHandle) -> Result<(), ApiError> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let secret = libp2p::identity::ed25519::Keypair::generate();
    let token = paris_protocol::hash::Hash::of(secret.secret().as_ref()).to_string();
    let door = Door { address: listener.local_addr()?, token };
    write_private(&dir.api_path(), serde_json::to_string(&door).unwrap_or_default().as_bytes())?;
    let expected = format!("Bearer {}", door.token);
    let routes = Router::new()
        .route("/status", get(status))
        .route("/manifest", get(manifest))
        .route("/assembly", post(assembly))
        .route("/v1/history/{part}", get(history))
        .layer(middleware::from_fn_with_state(expected, require_token))
        .with_state(handle);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("the local API stopped: {error}");
        }
    });
    Ok(())
}

/// Takes `api.json` away when the node stops, so that commands see at once that none runs.
pub fn close(dir: &DataDir) {
    remove(&dir.api_path());
}

fn remove(path: &std::path::Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!("{}: {error}", path.display());
    }
}

async fn require_token(State(expected): State<String>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    // Comparing hashes tells nothing of the token by the time it takes.
    match given.is_some_and(|given| blake3::hash(given) == blake3::hash(expected.as_bytes())) {
        true => next.run(request).await,
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn status(State(handle): State<NodeHandle>) -> Result<Json<Status>, Stopped> {
    Ok(Json(handle.status().await?))
}

async fn manifest(State(handle): State<NodeHandle>) -> Json<String> {
    Json(handle.manifest_hex())
}

async fn assembly(State(handle): State<NodeHandle>) -> Result<Json<Assembly>, Stopped> {
    Ok(Json(handle.assembly().await?))
}

/// A part's history, thinned to what a page can show; empty for a part that was never trained here.
async fn history(State(handle): State<NodeHandle>, Path(part): Path<String>) -> Result<Json<PartHistory>, StatusCode> {
    // A name that is none could lead out of the folder.
    if !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(StatusCode::NOT_FOUND);
    }
    let history = handle.history().clone();
    let lines = tokio::task::spawn_blocking(move || Ok::<_, std::io::Error>((history.lines(&part)?, part))).await;
    match lines {
        Ok(Ok((lines, part))) => Ok(Json(PartHistory::new(part, thinned(lines, HISTORY_LINES_MAX)))),
        Ok(Err(_)) | Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// A node that is stopping answers nothing else.
struct Stopped;

impl From<NodeError> for Stopped {
    fn from(_: NodeError) -> Self {
        Self
    }
}

impl IntoResponse for Stopped {
    fn into_response(self) -> Response {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

/// Calls the node that runs on a data directory.
pub struct Client {
    door: Door,
}

impl Client {
    /// A client for the node that runs on `dir`; none if none does.
    pub fn of(dir: &DataDir) -> Option<Self> {
        let bytes = std::fs::read(dir.api_path()).ok()?;
        let door = serde_json::from_slice(&bytes).ok()?;
        // An api.json can outlive a node that was killed: then its lock is free.
        dir.lock().is_err().then_some(Self { door })
    }

    /// The node's view of its run.
    pub async fn status(&self) -> Result<Status, ApiError> {
        self.call(Method::GET, "/status").await
    }

    /// The run's manifest, as its bytes in hexadecimal.
    pub async fn manifest_hex(&self) -> Result<String, ApiError> {
        self.call(Method::GET, "/manifest").await
    }

    /// How the training of a part went on the node's machine.
    pub async fn history(&self, part: &str) -> Result<PartHistory, ApiError> {
        self.call(Method::GET, &format!("/v1/history/{part}")).await
    }

    /// The mixture as far as the node has it; see [`NodeHandle::assembly`].
    pub async fn assembly(&self) -> Result<Assembly, ApiError> {
        self.call(Method::POST, "/assembly").await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ApiError> {
        let broken = |error: hyper::Error| ApiError::Call(error.to_string());
        let stream = tokio::net::TcpStream::connect(self.door.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.door.address.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.door.token))
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiError::Call(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if !response.status().is_success() {
            return Err(ApiError::Call(response.status().to_string()));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ApiError::Call(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| ApiError::Call(error.to_string()))
    }
}
