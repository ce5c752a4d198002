//! The node's database: small, durable, crash-safe.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use paris_protocol::{
    agent::{LogEntry, Memory},
    checkpoint::{Checkpoint, CheckpointId},
    claim::{Claim, ClaimId},
    codec::{CodecError, Wire},
    hash::Hash,
    invitation::{Invitation, InvitedRecords},
    manifest::{Manifest, RunId},
    part::Part,
    register::{Records, Register},
    signed::{Signed, Verified},
    ticket::Ticket,
};
use redb::{ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{DataDir, DirectoryError};

/// Keys begin with the run's id, so that one database serves many runs.
type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: Table = TableDefinition::new("meta");
const MANIFESTS: Table = TableDefinition::new("manifests");
const TICKETS: Table = TableDefinition::new("tickets");
const CLAIM_LOG: Table = TableDefinition::new("claim-log");
const CLAIMS: Table = TableDefinition::new("claims");
const CHECKPOINTS: Table = TableDefinition::new("checkpoints");
const INVITATIONS: Table = TableDefinition::new("invitations");
const HELD: Table = TableDefinition::new("held");
const FIRST_LOSSES: Table = TableDefinition::new("first-losses");
const KNOWN_PEERS: Table = TableDefinition::new("known-peers");
const TABLES: [Table; 10] =
    [META, MANIFESTS, TICKETS, CLAIM_LOG, CLAIMS, CHECKPOINTS, INVITATIONS, HELD, FIRST_LOSSES, KNOWN_PEERS];

/// The layout that this code reads and writes.
const LAYOUT: &[u8] = b"1";

/// A part's loss on its held-out shards at some step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutLoss {
    /// Optimiser steps.
    pub step: u64,
    /// The loss.
    pub loss: f32,
}

/// A database that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database refused: full or failing disk, damage, or another program.
    #[error(
        "the node's database: {0}. Check the disk's room and health; node.redb may be restored from a backup only together with node.key"
    )]
    Redb(#[from] Box<redb::Error>),
    /// What was stored does not decode.
    #[error("the node's database holds a damaged record: {0}")]
    Codec(#[from] CodecError),
    /// Written by another version.
    #[error(
        "the data directory was written by another version of paris-node (layout {0}): use that version, or another --data-dir"
    )]
    Layout(String),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A key without its claim log.
    #[error(
        "{0} has a key and no claim log (node.redb is gone): this node could sign what contradicts what it signed before, and will not. Put the \
         latest node.redb of this key back; if it is lost, move node.key away and run `paris-node init` for a new key"
    )]
    NoLog(PathBuf),
    /// The claim log of another key.
    #[error(
        "node.redb in {0} belongs to another key than node.key: this node could sign what contradicts what it signed before, and will not. Put back the \
         two files that belong together, or move node.key away and run `paris-node init` for a new key"
    )]
    OtherKey(PathBuf),
}

/// The database of a data directory. Every write is durable when it returns.
pub struct Database {
    redb: redb::Database,
}

impl Database {
    /// Makes the directory, its database and its key where they are missing; a key is never replaced. True if the key is new.
    ///
    /// The database comes first: a key that ever signed anything has its claim log beside it, and one found without it has lost it.
    pub fn init(dir: &DataDir) -> Result<bool, DatabaseError> {
        dir.create()?;
        if dir.has_key() {
            dir.keypair()?;
            return match dir.database_path().exists() {
                true => Ok(false),
                false => Err(DatabaseError::NoLog(dir.root().to_owned())),
            };
        }
        // Fresh from the system's generator: libp2p brings it, so that no second source of randomness is needed.
        let keypair = libp2p::identity::ed25519::Keypair::generate();
        Self::create(dir)?.put(META, b"key", &keypair.public().to_bytes())?;
        dir.put_secret(keypair.secret().as_ref())?;
        Ok(true)
    }

    /// Opens the database of a directory that was [initialised](Database::init): refused if it is gone or another key's.
    pub fn open(dir: &DataDir) -> Result<Self, DatabaseError> {
        let key = dir.keypair()?.id();
        if !dir.database_path().exists() {
            return Err(DatabaseError::NoLog(dir.root().to_owned()));
        }
        let database = Self::create(dir)?;
        match database.get(META, b"key")? {
            // Written before keys were noted.
            None => database.put(META, b"key", &key.0)?,
            Some(noted) if noted == key.0 => {}
            Some(_) => return Err(DatabaseError::OtherKey(dir.root().to_owned())),
        }
        Ok(database)
    }

    /// Opens the database's file, creating it where it is missing.
    fn create(dir: &DataDir) -> Result<Self, DatabaseError> {
        let database = Self { redb: create(&dir.database_path()).map_err(Box::new)? };
        match database.get(META, b"layout")? {
            None => database.put(META, b"layout", LAYOUT)?,
            Some(layout) if layout == LAYOUT => {}
            Some(other) => return Err(DatabaseError::Layout(String::from_utf8_lossy(&other).into_owned())),
        }
        Ok(database)
    }

    /// Makes `ticket`'s run this node's current one.
    pub fn join(&self, ticket: &Ticket) -> Result<(), DatabaseError> {
        let run = ticket.run().0.0;
        self.put(TICKETS, &run, &ticket.to_bytes()?)?;
        self.put(META, b"current-run", &run)
    }

    /// The run joined last.
    pub fn current_run(&self) -> Result<Option<RunId>, DatabaseError> {
        let run = self.get(META, b"current-run")?;
        Ok(run.and_then(|bytes| bytes.try_into().ok()).map(|bytes| RunId(Hash(bytes))))
    }

    /// The ticket with which a run was joined.
    pub fn ticket(&self, run: RunId) -> Result<Option<Ticket>, DatabaseError> {
        self.get(TICKETS, &run.0.0)?.map(|bytes| Ok(Ticket::from_bytes(&bytes)?)).transpose()
    }

    /// Keeps a run's manifest.
    pub fn put_manifest(&self, run: RunId, manifest: &[u8]) -> Result<(), DatabaseError> {
        self.put(MANIFESTS, &run.0.0, manifest)
    }

    /// A run's manifest, as its bytes.
    pub fn manifest(&self, run: RunId) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.get(MANIFESTS, &run.0.0)
    }

    /// Makes a claim log entry durable.
    pub fn log(&self, run: RunId, entry: &LogEntry) -> Result<(), DatabaseError> {
        self.put(CLAIM_LOG, &key(run, entry.claim.0), &entry.seq_reserved.to_le_bytes())
    }

    /// Keeps a claim.
    pub fn remember_claim(&self, run: RunId, claim: &Signed<Claim>) -> Result<(), DatabaseError> {
        let records = Records { claims: vec![claim.clone()], checkpoints: Vec::new() }.to_bytes()?;
        self.put(CLAIMS, &key(run, Hash::of(&records)), &records)
    }

    /// Keeps a checkpoint record.
    pub fn remember_checkpoint(&self, run: RunId, checkpoint: &Signed<Checkpoint>) -> Result<(), DatabaseError> {
        let records = Records { claims: Vec::new(), checkpoints: vec![checkpoint.clone()] }.to_bytes()?;
        self.put(CHECKPOINTS, &key(run, Hash::of(&records)), &records)
    }

    /// Notes that a checkpoint's blobs are in the blob store, and whether its resumable state is.
    pub fn hold(&self, run: RunId, id: CheckpointId, state: bool) -> Result<(), DatabaseError> {
        self.put(HELD, &key(run, id.0), &[u8::from(state)])
    }

    /// Notes that they are gone.
    pub fn forget(&self, run: RunId, id: CheckpointId) -> Result<(), DatabaseError> {
        Ok(self.write(HELD, &key(run, id.0), None).map_err(Box::new)?)
    }

    /// Keeps the earliest held-out loss known of a part.
    pub fn put_first_loss(&self, run: RunId, part: Part, first: &HeldOutLoss) -> Result<(), DatabaseError> {
        let value = [&first.step.to_le_bytes()[..], &first.loss.to_le_bytes()].concat();
        self.put(FIRST_LOSSES, &part_key(run, part), &value)
    }

    /// The earliest held-out loss known of each part.
    pub fn first_losses(
        &self,
        run: RunId,
        parts: impl Iterator<Item = Part>,
    ) -> Result<HashMap<Part, HeldOutLoss>, DatabaseError> {
        let mut losses = HashMap::new();
        for part in parts {
            let value = self.get(FIRST_LOSSES, &part_key(run, part))?;
            let read = |value: &[u8]| {
                let (step, loss) = (value.first_chunk()?, value.last_chunk()?);
                Some(HeldOutLoss { step: u64::from_le_bytes(*step), loss: f32::from_le_bytes(*loss) })
            };
            if let Some(first) = value.as_deref().and_then(read) {
                losses.insert(part, first);
            }
        }
        Ok(losses)
    }

    /// Keeps where peers of a run were met, in place of what was kept before.
    pub fn put_known_addresses(&self, run: RunId, addresses: &[String]) -> Result<(), DatabaseError> {
        self.put(KNOWN_PEERS, &run.0.0, addresses.join("\n").as_bytes())
    }

    /// Where peers of a run were met.
    pub fn known_addresses(&self, run: RunId) -> Result<Vec<String>, DatabaseError> {
        let text = self.get(KNOWN_PEERS, &run.0.0)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    /// Keeps an invitation.
    pub fn remember_invitation(&self, run: RunId, invitation: &Signed<Invitation>) -> Result<(), DatabaseError> {
        let invitations = InvitedRecords { invitations: vec![invitation.clone()], records: Records::default() };
        let bytes = invitations.to_bytes()?;
        self.put(INVITATIONS, &key(run, Hash::of(&bytes)), &bytes)
    }

    /// Everything that the agent of a run should know at its start.
    pub fn memory(&self, run: RunId) -> Result<Memory, DatabaseError> {
        let mut memory = Memory::default();
        for (id, seq) in self.entries(CLAIM_LOG, run)? {
            let seq_reserved = u64::from_le_bytes(seq.try_into().unwrap_or([0xff; 8]));
            memory.log.push(LogEntry { claim: ClaimId(id), seq_reserved });
        }
        for (_, bytes) in self.entries(INVITATIONS, run)? {
            memory.invitations.extend(InvitedRecords::from_bytes(&bytes)?.invitations);
        }
        for (_, bytes) in self.entries(CLAIMS, run)? {
            memory.records.claims.extend(Records::from_bytes(&bytes)?.claims);
        }
        for (_, bytes) in self.entries(CHECKPOINTS, run)? {
            memory.records.checkpoints.extend(Records::from_bytes(&bytes)?.checkpoints);
        }
        for (id, state) in self.entries(HELD, run)? {
            memory.held.push((CheckpointId(id), state == [1]));
        }
        Ok(memory)
    }

    /// The register as far as it was remembered.
    pub fn register(&self, run: RunId, manifest: Arc<Manifest>) -> Result<Register, DatabaseError> {
        let Memory { records, invitations, .. } = self.memory(run)?;
        let mut register = Register::new(run, manifest);
        for invitation in invitations.into_iter().filter_map(|invitation| invitation.verify(run).ok()) {
            register.merge_invitation(invitation);
        }
        let mut claims: Vec<_> = records.claims.into_iter().filter_map(|claim| claim.verify(run).ok()).collect();
        // They lie here by their hashes, and the register takes a claim only after the one that it follows.
        claims.sort_by_key(|claim| claim.term);
        for claim in claims {
            register.merge_claim(claim);
        }
        for checkpoint in records.checkpoints.into_iter().filter_map(|checkpoint| checkpoint.verify(run).ok()) {
            register.merge_checkpoint(checkpoint);
        }
        Ok(register)
    }

    /// Drops the checkpoint records that the register lists no more, so that they do not grow for ever.
    pub fn prune_checkpoints(&self, run: RunId, register: &Register) -> Result<(), DatabaseError> {
        let mut surplus = Vec::new();
        for (name, bytes) in self.entries(CHECKPOINTS, run)? {
            let records = Records::from_bytes(&bytes)?.checkpoints;
            let listed =
                |checkpoint: &Verified<Checkpoint>| register.checkpoint(checkpoint.part, checkpoint.id()).is_some();
            if !records.into_iter().filter_map(|record| record.verify(run).ok()).any(|checkpoint| listed(&checkpoint)) {
                surplus.push(key(run, name));
            }
        }
        Ok(self.remove(CHECKPOINTS, &surplus).map_err(Box::new)?)
    }

    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), DatabaseError> {
        Ok(self.write(table, key, Some(value)).map_err(Box::new)?)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        Ok(self.read(table, key).map_err(Box::new)?)
    }

    /// All entries of a run, by the second half of their keys.
    fn entries(&self, table: Table, run: RunId) -> Result<Vec<(Hash, Vec<u8>)>, DatabaseError> {
        Ok(self.read_range(table, run).map_err(Box::new)?)
    }

    /// Sets or removes an entry, durably.
    fn write(&self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), redb::Error> {
        let transaction = self.redb.begin_write()?;
        {
            let mut table = transaction.open_table(table)?;
            match value {
                Some(value) => table.insert(key, value)?,
                None => table.remove(key)?,
            };
        }
        Ok(transaction.commit()?)
    }

    /// Removes entries, all or none.
    fn remove(&self, table: Table, keys: &[Vec<u8>]) -> Result<(), redb::Error> {
        let transaction = self.redb.begin_write()?;
        {
            let mut table = transaction.open_table(table)?;
            for key in keys {
                table.remove(key.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = self.redb.begin_read()?.open_table(table)?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn read_range(&self, table: Table, run: RunId) -> Result<Vec<(Hash, Vec<u8>)>, redb::Error> {
        let table = self.redb.begin_read()?.open_table(table)?;
        let (first, last) = (key(run, Hash([0; 32])), key(run, Hash([0xff; 32])));
        let mut entries = Vec::new();
        for entry in table.range(first.as_slice()..=last.as_slice())? {
            let (key, value) = entry?;
            if let Ok(id) = key.value()[32..].try_into() {
                entries.push((Hash(id), value.value().to_vec()));
            }
        }
        Ok(entries)
    }
}

/// Opens the file with every table in place, so that reading finds them.
fn create(path: &Path) -> Result<redb::Database, redb::Error> {
    let redb = redb::Database::create(path)?;
    let transaction = redb.begin_write()?;
    for table in TABLES {
        transaction.open_table(table)?;
    }
    transaction.commit()?;
    Ok(redb)
}

fn key(run: RunId, id: Hash) -> Vec<u8> {
    [run.0.0, id.0].concat()
}

fn part_key(run: RunId, part: Part) -> Vec<u8> {
    [&run.0.0, part.name().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_reopening_and_runs_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        let (run, other) = (RunId(Hash::of(b"one")), RunId(Hash::of(b"two")));
        let entry = LogEntry { claim: ClaimId(Hash::of(b"claim")), seq_reserved: 77 };
        let id = CheckpointId(Hash::of(b"checkpoint"));
        Database::init(&dir).unwrap();
        {
            let database = Database::open(&dir).unwrap();
            database.join(&Ticket::new(run, [])).unwrap();
            database.log(run, &entry).unwrap();
            database.hold(run, id, false).unwrap();
            database.hold(run, id, true).unwrap();
            database.hold(other, id, true).unwrap();
            database.forget(other, id).unwrap();
            database.put_known_addresses(run, &["/one".into(), "/two".into()]).unwrap();
            database.put_first_loss(run, Part::Router, &HeldOutLoss { step: 3, loss: 1.5 }).unwrap();
        }
        let database = Database::open(&dir).unwrap();
        assert_eq!(database.current_run().unwrap(), Some(run));
        assert_eq!(database.ticket(run).unwrap().unwrap().run(), run);
        let memory = database.memory(run).unwrap();
        assert_eq!(memory.log, vec![entry]);
        assert_eq!(memory.held, vec![(id, true)]);
        assert!(database.memory(other).unwrap().held.is_empty());
        assert_eq!(database.known_addresses(run).unwrap(), ["/one", "/two"]);
        assert!(database.known_addresses(other).unwrap().is_empty());
        let parts = || [Part::Expert(0), Part::Router].into_iter();
        let first = HashMap::from([(Part::Router, HeldOutLoss { step: 3, loss: 1.5 })]);
        assert_eq!(database.first_losses(run, parts()).unwrap(), first);
        assert!(database.first_losses(other, parts()).unwrap().is_empty());
    }

    #[test]
    fn a_directory_of_another_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        Database::init(&dir).unwrap();
        Database::open(&dir).unwrap().put(META, b"layout", b"99").unwrap();
        assert!(matches!(Database::open(&dir), Err(DatabaseError::Layout(_))));
    }

    #[test]
    fn init_never_replaces_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path().join("node"));
        assert!(matches!(dir.secret(), Err(DirectoryError::NoKey(_))));
        assert!(Database::init(&dir).unwrap());
        let secret = dir.secret().unwrap();
        assert!(!Database::init(&dir).unwrap());
        assert_eq!(dir.secret().unwrap(), secret);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        dir.put_secret(b"short").unwrap();
        let refused = |error| matches!(error, DatabaseError::Directory(DirectoryError::DamagedKey(_, 5)));
        assert!(Database::init(&dir).is_err_and(refused));
        assert!(matches!(dir.secret(), Err(DirectoryError::DamagedKey(_, 5))));
    }

    #[test]
    fn a_key_without_its_claim_log_is_refused_and_a_new_key_takes_over_what_was_known() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| DataDir::new(folder.path().join(name)));
        Database::init(&one).unwrap();
        Database::init(&other).unwrap();
        let run = RunId(Hash::of(b"run"));
        Database::open(&one).unwrap().join(&Ticket::new(run, [])).unwrap();
        // The database of another key, then none at all.
        std::fs::copy(one.database_path(), other.database_path()).unwrap();
        assert!(matches!(Database::open(&other), Err(DatabaseError::OtherKey(_))));
        std::fs::remove_file(other.database_path()).unwrap();
        assert!(matches!(Database::open(&other), Err(DatabaseError::NoLog(_))));
        assert!(matches!(Database::init(&other), Err(DatabaseError::NoLog(_))));
        assert!(!other.database_path().exists(), "looking makes no log that passes for the lost one");
        // A new key has signed nothing: the log of the one before is no danger to it.
        std::fs::remove_file(one.root().join("node.key")).unwrap();
        assert!(Database::init(&one).unwrap());
        assert_eq!(Database::open(&one).unwrap().current_run().unwrap(), Some(run));
    }
}
