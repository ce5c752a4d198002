//! The registry of exit codes: what a service manager may conclude from how the program ended.

use std::{fmt::Write, process::ExitCode};

use crate::{
    runtime::NodeError,
    store::{DatabaseError, DirectoryError},
};

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for is done.
    Done,
    /// Something went wrong that may be over when it is tried again.
    Failed,
    /// The command line, the data directory or the run's manifest is wrong.
    Configuration,
    /// Another program uses the data directory.
    InUse,
    /// This node's key is in use on another machine, or its claim log is missing or behind: signing anything would harm the run.
    Identity,
    /// The disk has no room for the next checkpoints.
    DiskFull,
}

impl Exit {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 6] =
        [Self::Done, Self::Failed, Self::Configuration, Self::InUse, Self::Identity, Self::DiskFull];

    /// The code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Configuration => 2,
            Self::InUse => 3,
            Self::Identity => 4,
            Self::DiskFull => 5,
        }
    }

    /// True if starting the same again may help without anybody having done anything.
    pub fn may_be_restarted(self) -> bool {
        matches!(self, Self::Failed)
    }

    /// What it means, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed; starting again may help",
            Self::Configuration => "wrong usage, data directory or manifest",
            Self::InUse => "the data directory is in use by another paris-node",
            Self::Identity => "this key runs on another machine, or its claim log is missing or behind",
            Self::DiskFull => "no room on the disk for the next checkpoints",
        }
    }

    /// What an error comes to.
    pub fn of(error: &anyhow::Error) -> Self {
        let found = error.chain().find_map(|cause| {
            let of_node = || cause.downcast_ref().map(Self::of_node);
            let of_directory = || cause.downcast_ref().map(Self::of_directory);
            of_node().or_else(of_directory).or_else(|| cause.downcast_ref().map(Self::of_database))
        });
        found.unwrap_or(Self::Failed)
    }

    fn of_node(error: &NodeError) -> Self {
        match error {
            NodeError::Directory(error) => Self::of_directory(error),
            NodeError::Database(error) => Self::of_database(error),
            NodeError::NoRun(_)
            | NodeError::Manifest(_)
            | NodeError::Model { .. }
            | NodeError::Device(_)
            | NodeError::Encoder(_) => Self::Configuration,
            NodeError::Halt(_) => Self::Identity,
            NodeError::DiskFull { .. } => Self::DiskFull,
            NodeError::EncoderThread(_)
            | NodeError::Network(_)
            | NodeError::Blobs(_)
            | NodeError::NoManifest { .. }
            | NodeError::Stopped => Self::Failed,
        }
    }

    fn of_directory(error: &DirectoryError) -> Self {
        match error {
            DirectoryError::InUse(_) => Self::InUse,
            _ => Self::Configuration,
        }
    }

    fn of_database(error: &DatabaseError) -> Self {
        match error {
            DatabaseError::NoLog(_) | DatabaseError::OtherKey(_) => Self::Identity,
            DatabaseError::Directory(error) => Self::of_directory(error),
            DatabaseError::Layout(_) => Self::Configuration,
            DatabaseError::Redb(_) | DatabaseError::Codec(_) => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The registry as `--help` prints it.
pub(super) fn table() -> String {
    Exit::ALL.into_iter().fold("Exit codes (do not restart but after 1):\n".to_owned(), |mut table, exit| {
        let _ = writeln!(table, "  {}  {}", exit.code(), exit.meaning());
        table
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use paris_protocol::{agent::Halt, part::Part};

    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order_and_one_alone_may_be_restarted() {
        assert!(Exit::ALL.is_sorted_by_key(|exit| exit.code()));
        let restarted: Vec<_> = Exit::ALL.into_iter().filter(|exit| exit.may_be_restarted()).collect();
        assert_eq!(restarted, [Exit::Failed]);
    }

    #[test]
    fn the_page_for_operators_has_the_same_registry() {
        let page = include_str!("../../../docs/operating.md");
        for exit in Exit::ALL {
            let restart = if exit.may_be_restarted() { "yes" } else { "no" };
            let row = format!("| {} | {} | {restart} |", exit.code(), exit.meaning());
            assert!(page.contains(&row), "docs/operating.md lacks: {row}");
        }
    }

    #[test]
    fn an_error_is_recognised_under_what_was_said_about_it() {
        let path = || PathBuf::from("node");
        let of = |error: anyhow::Error| Exit::of(&error.context("while starting").context("again"));
        assert_eq!(of(NodeError::Halt(Halt::KeyInUse(Part::Router)).into()), Exit::Identity);
        assert_eq!(of(NodeError::Database(DatabaseError::NoLog(path())).into()), Exit::Identity);
        assert_eq!(of(DatabaseError::OtherKey(path()).into()), Exit::Identity);
        assert_eq!(of(NodeError::Directory(DirectoryError::InUse(path())).into()), Exit::InUse);
        assert_eq!(of(DirectoryError::NoKey(path()).into()), Exit::Configuration);
        assert_eq!(of(NodeError::DiskFull { path: path(), free: 0, needed: 1 }.into()), Exit::DiskFull);
        assert_eq!(of(anyhow::anyhow!("anything")), Exit::Failed);
    }
}
