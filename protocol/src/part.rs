//! What a node can own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of the mixture: the expert of one cluster, or the router.
///
/// The order is the order of importance: a picture can be drawn without a router, not without experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// The expert of the cluster with this number.
    Expert(u16),
    /// The router.
    Router,
}

impl Part {
    /// A stable wire form for hashing.
    pub(crate) fn key(&self) -> [u8; 3] {
        match self {
            Part::Expert(cluster) => [0, (cluster >> 8) as u8, *cluster as u8],
            Part::Router => [1, 0, 0],
        }
    }

    /// `expert-3` or `router`: for file names and messages.
    pub fn name(&self) -> String {
        match self {
            Part::Expert(cluster) => format!("expert-{cluster}"),
            Part::Router => "router".to_owned(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}
