//! No step is lost: snapshots, the way back from failures, takeover, and a process killed at any moment.

mod health;
mod kill;
mod part;
mod resume;
mod snapshots;
mod takeover;
