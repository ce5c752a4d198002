//! The run's manifest at a node's start: from the database or a seed, and served again from the blob store in either case.

use std::time::Duration;

use paris_protocol::{codec::Wire, manifest::Manifest, ticket::Ticket};

use super::{NodeError, tags};
use crate::{
    blobs::{Blobs, FetchRequest, Size},
    store::Database,
};

/// How long a manifest is waited for before it is asked for again.
const WAIT: Duration = Duration::from_secs(5);
/// Attempts from one report to the next.
const ATTEMPTS_UNSAID: u32 = 6;

/// The run's manifest; its bytes hash to the run's id, or it is not the manifest.
pub(super) async fn of_run(database: &Database, blobs: &Blobs, ticket: &Ticket) -> Result<Manifest, NodeError> {
    let run = ticket.run();
    if let Some(bytes) = database.manifest(run)? {
        // Whoever joins fetches it from the store, which may have been moved away.
        blobs.add_bytes(&tags::manifest(run), bytes.clone()).await?;
        return Ok(Manifest::read(&bytes)?);
    }
    fetch(blobs, ticket).await;
    let bytes = blobs.bytes(run.0.0, Manifest::LIMIT as u64).await?;
    let manifest = Manifest::read(&bytes)?;
    database.put_manifest(run, &bytes)?;
    Ok(manifest)
}

/// Brings the manifest into the store, however long no seed answers.
async fn fetch(blobs: &Blobs, ticket: &Ticket) {
    let mut failures = 0;
    loop {
        let request = FetchRequest {
            hash: ticket.run().0.0,
            size: Size::AtMost(Manifest::LIMIT as u64),
            providers: ticket.seeds().iter().map(|seed| seed.node).collect(),
            tag: tags::manifest(ticket.run()),
        };
        let Err(error) = blobs.fetch(request).await else { return };
        if failures % ATTEMPTS_UNSAID == 0 {
            tracing::warn!("no seed of run {} answers ({error}); trying again until one does", ticket.run());
        }
        failures += 1;
        tokio::time::sleep(WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use paris_protocol::ticket::Seed;

    use super::{super::testing, *};
    use crate::store::DataDir;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_whose_blob_store_was_lost_serves_the_manifest_again() {
        let folder = tempfile::tempdir().unwrap();
        let [organiser, guest] = ["organiser", "guest"].map(|name| DataDir::new(folder.path().join(name)));
        for dir in [&organiser, &guest] {
            Database::init(dir).unwrap();
        }
        let expected = testing::manifest(1, 1);
        let run = expected.id().unwrap();
        let database = Database::open(&organiser).unwrap();
        database.put_manifest(run, &expected.to_bytes().unwrap()).unwrap();
        let blobs = testing::blobs(&organiser).await;
        let seedless = Ticket::new(run, []);
        assert_eq!(of_run(&database, &blobs, &seedless).await.unwrap(), expected);

        let node = organiser.keypair().unwrap().id();
        let seed = Seed { node, gossip: Vec::new(), blobs: blobs.addresses() };
        let fetcher = testing::blobs(&guest).await;
        fetcher.learn(node, seed.blobs.clone());
        let database = Database::open(&guest).unwrap();
        let fetched = of_run(&database, &fetcher, &Ticket::new(run, [seed])).await.unwrap();
        assert_eq!(fetched, expected);
        assert!(database.manifest(run).unwrap().is_some());
    }
}
