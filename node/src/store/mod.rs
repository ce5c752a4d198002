//! What a node keeps on disk.
//!
//! ```text
//! DATA_DIR/
//!   node.key     the secret key, readable by its owner only
//!   node.lock    held while a program uses the directory
//!   node.redb    runs, tickets, claim log, register, which checkpoints are held, peers met: small and durable
//!   api.json     where the running node's local API listens
//!   blobs/       checkpoints and shards by hash: disposable, refilled from peers
//!   snapshots/   by run and part, the last states of what is in training: what a killed node goes on from
//!   history/     by run and part, how training went
//!   shards/      shards so small that the blob store has them in no file of their own, for training to read
//!   weights/     checkpoints exported for sampling
//! ```

mod database;
mod directory;
mod room;

pub use self::{
    database::{Database, DatabaseError, HeldOutLoss},
    directory::{DataDir, DirLock, DirectoryError},
    room::free_bytes,
};
