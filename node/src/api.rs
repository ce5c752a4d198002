//! The local API: how commands talk to the node that runs on their data directory.
//!
//! HTTP on loopback. The port is the system's choice and stands, with a token that every call must bring, in `api.json`, which only the
//! operator may read; so nobody else on the machine can use it, and no web page can.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path as UrlPath, Request, State},
    http::{
        Method, StatusCode,
        header::{AUTHORIZATION, HOST},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use paris_protocol::{
    agent::InviteError,
    codec::Wire,
    hash::Hash,
    identity::{NodeId, NotAKey},
    mixture::Mixture,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    hex,
    history::{PartHistory, thinned},
    runtime::{Assembly, KeepError, NodeError, NodeHandle},
    status::Status,
    store::DataDir,
};

/// The longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Intervals of a history that are served at most; the older are merged.
const HISTORY_LINES_MAX: usize = 2000;

/// The answer to what may be possible later; its body says why.
const NOT_YET: StatusCode = StatusCode::NOT_FOUND;
/// The answer to what is not possible; its body says why.
const REFUSED: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

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
    /// The running node cannot do what was asked, for now.
    #[error("{0}")]
    NotYet(String),
    /// The running node cannot do what was asked.
    #[error("{0}")]
    Refused(String),
}

/// Serves the API until the process ends. `api.json` is in place when this returns.
pub async fn serve(dir: &DataDir, handle: NodeHandle) -> Result<(), ApiError> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let secret = libp2p::identity::ed25519::Keypair::generate();
    let token = paris_protocol::hash::Hash::of(secret.secret().as_ref()).to_string();
    let door = Door { address: listener.local_addr()?, token };
    paris_model::whole_file::write_private(
        &dir.api_path(),
        serde_json::to_string(&door).unwrap_or_default().as_bytes(),
    )?;
    let expected = format!("Bearer {}", door.token);
    let routes = Router::new()
        .route("/status", get(status))
        .route("/manifest", get(manifest))
        .route("/assembly", post(assembly))
        .route("/history/{part}", get(history))
        .route("/invitations", post(invite))
        .route("/mixtures", get(mixtures).post(keep_mixture))
        .route("/mixtures/{hash}", post(mixture).delete(drop_mixture))
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
async fn history(
    State(handle): State<NodeHandle>,
    UrlPath(part): UrlPath<String>,
) -> Result<Json<PartHistory>, StatusCode> {
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

async fn invite(State(handle): State<NodeHandle>, body: String) -> Result<Json<bool>, Refusal> {
    let node = body.parse().map_err(|error: NotAKey| Refusal::Never(error.to_string()))?;
    let invited = handle.invite(node).await.map_err(|error| Refusal::NotYet(error.to_string()))?;
    Ok(Json(invited.map_err(|error| match error {
        InviteError::Listening => Refusal::NotYet(error.to_string()),
        _ => Refusal::Never(error.to_string()),
    })?))
}

async fn mixtures(State(handle): State<NodeHandle>) -> Json<Vec<String>> {
    Json(handle.mixtures().iter().map(Hash::to_string).collect())
}

async fn keep_mixture(State(handle): State<NodeHandle>, body: String) -> Result<Json<String>, Refusal> {
    let bytes = hex::decode(&body).ok_or_else(|| Refusal::Never("a mixture comes in hexadecimal".to_owned()))?;
    let mixture = Mixture::from_bytes(&bytes).map_err(|error| Refusal::Never(error.to_string()))?;
    Ok(Json(handle.keep_mixture(&mixture).await?.to_string()))
}

async fn mixture(State(handle): State<NodeHandle>, UrlPath(hash): UrlPath<String>) -> Result<Json<Assembly>, Refusal> {
    Ok(Json(handle.mixture(name(&hash)?).await?))
}

async fn drop_mixture(State(handle): State<NodeHandle>, UrlPath(hash): UrlPath<String>) -> Result<Json<bool>, Refusal> {
    Ok(Json(handle.drop_mixture(name(&hash)?).await?))
}

fn name(hash: &str) -> Result<Hash, Refusal> {
    hash.parse().map_err(|error: paris_protocol::hash::NotAHash| Refusal::Never(error.to_string()))
}

/// Why something is not done, for the operator to read.
enum Refusal {
    /// It may be possible later.
    NotYet(String),
    Never(String),
}

impl From<KeepError> for Refusal {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Unavailable { .. } => Self::NotYet(error.to_string()),
            _ => Self::Never(error.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NotYet(why) => (NOT_YET, why).into_response(),
            Self::Never(why) => (REFUSED, why).into_response(),
        }
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
        self.call(Method::GET, "/status", String::new()).await
    }

    /// The run's manifest, as its bytes in hexadecimal.
    pub async fn manifest_hex(&self) -> Result<String, ApiError> {
        self.call(Method::GET, "/manifest", String::new()).await
    }

    /// How the training of a part went on the node's machine.
    pub async fn history(&self, part: &str) -> Result<PartHistory, ApiError> {
        self.call(Method::GET, &format!("/history/{part}"), String::new()).await
    }

    /// The mixture as far as the node has it; see [`NodeHandle::assembly`].
    pub async fn assembly(&self) -> Result<Assembly, ApiError> {
        self.call(Method::POST, "/assembly", String::new()).await
    }

    /// Lets a key own parts; see [`NodeHandle::invite`].
    pub async fn invite(&self, node: NodeId) -> Result<bool, ApiError> {
        self.call(Method::POST, "/invitations", node.key()).await
    }

    /// The mixtures that the node keeps, by their names.
    pub async fn mixtures(&self) -> Result<Vec<String>, ApiError> {
        self.call(Method::GET, "/mixtures", String::new()).await
    }

    /// Has the node keep a mixture whose weights it holds; see [`NodeHandle::keep_mixture`].
    pub async fn keep_mixture(&self, mixture: &Mixture) -> Result<String, ApiError> {
        let bytes = mixture.to_bytes().map_err(|error| ApiError::Refused(error.to_string()))?;
        self.call(Method::POST, "/mixtures", hex::encode(&bytes)).await
    }

    /// A mixture by its name, fetched and kept; see [`NodeHandle::mixture`].
    pub async fn mixture(&self, hash: Hash) -> Result<Assembly, ApiError> {
        self.call(Method::POST, &format!("/mixtures/{hash}"), String::new()).await
    }

    /// Has the node let go of a mixture; false if it kept no such one.
    pub async fn drop_mixture(&self, hash: Hash) -> Result<bool, ApiError> {
        self.call(Method::DELETE, &format!("/mixtures/{hash}"), String::new()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: String) -> Result<T, ApiError> {
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
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ApiError::Call(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ApiError::Call(error.to_string()))?.to_bytes();
        let said = || String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|error| ApiError::Call(error.to_string())),
            NOT_YET => Err(ApiError::NotYet(said())),
            REFUSED => Err(ApiError::Refused(said())),
            status => Err(ApiError::Call(status.to_string())),
        }
    }
}
