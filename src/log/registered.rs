//! The identity of this database, and the durable list of every participant that ever prepared. Both are
//! written by the resolver alone.
//!
//! The list is what a crash leaves of an aborted transaction: each participant on it may hold something
//! prepared until it has been swept.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::log::replication;
use crate::log::table::{See, Table, text};
use crate::log::trusted;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::remote::{Fingerprint, session_state};

/// The column of the address, which is not there before ALTER EXTENSION UPDATE.
const ADDRESS: usize = 5;

/// A participant on the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Its number, which the decision rows refer to.
    pub id: i32,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user whose mapping was used.
    pub userid: Oid,
    /// Which server that was.
    pub system_identifier: u64,
    /// The database there, as in a [`Fingerprint`].
    pub database: CString,
    /// Where the foreign server's options said that it is; `None` where that is not known, from before an upgrade.
    pub address: Option<CString>,
}

impl Registered {
    /// The gid of a transaction there.
    pub fn gid(&self, identity: Identity, nonce: Nonce) -> Gid {
        let (serverid, userid) = (self.serverid.to_u32(), self.userid.to_u32());
        Gid { identity, nonce, serverid, userid }
    }

    /// Whether a server of that address may be the one that was used. Two servers of one image cannot be told apart by
    /// what they say of themselves.
    pub fn is_where(&self, address: &CStr) -> bool {
        self.address.as_deref().is_none_or(|known| known == address)
    }

    /// Whether a connection has reached the participant that was recorded.
    pub fn is_at(&self, fingerprint: &Fingerprint) -> bool {
        self.system_identifier == fingerprint.system_identifier
            && self.database == fingerprint.database
    }
}

/// The list; empty where the extension is missing.
pub fn all() -> Vec<Registered> {
    let mut list = Vec::new();
    let Some(table) = Table::open_if_exists(c"participant", pg_sys::AccessShareLock) else {
        return list;
    };
    table.scan(See::Committed, |row| {
        list.push(Registered {
            id: row.int4(0),
            serverid: row.oid(1),
            userid: row.oid(2),
            system_identifier: row.int8(3) as u64,
            database: session_state::escaped(&row.text(4)),
            address: (row.len() > ADDRESS && !row.is_null(ADDRESS)).then(|| row.text(ADDRESS)),
        });
    });
    list
}

/// [`all`], also while the extension is being dropped and the list has gone.
pub fn listed() -> Vec<Registered> {
    if trusted::has(c"participant") { all() } else { Vec::new() }
}

/// Adds a participant.
///
/// # Errors
/// The extension is missing here.
pub fn insert(participant: &Registered) -> Result<()> {
    let table = Table::open(c"participant", pg_sys::RowExclusiveLock)?;
    let mut values = vec![
        Datum::from(participant.id),
        Datum::from(participant.serverid),
        Datum::from(participant.userid),
        Datum::from(participant.system_identifier as i64),
        text(&participant.database),
    ];
    if table.has_column(ADDRESS, pg_sys::TEXTOID) {
        values.extend(participant.address.as_deref().map(text));
    }
    table.insert(&mut values);
    durably();
    Ok(())
}

/// What is written down here has to outlive a crash, and a fail-over to a synchronous standby, from the moment it is
/// used: whatever `synchronous_commit` says.
fn durably() {
    // SAFETY: sets a flag of the transaction.
    unsafe { pg_sys::ForceSyncCommit() };
    replication::require_synchronous_commit();
}

/// Participants have moved to another address.
///
/// # Errors
/// The extension is missing here.
pub fn move_to(ids: &HashSet<i32>, address: Option<&CStr>) -> Result<()> {
    let moved: Vec<Registered> = all().into_iter().filter(|r| ids.contains(&r.id)).collect();
    Table::open(c"participant", pg_sys::RowExclusiveLock)?.delete(|row| ids.contains(&row.int4(0)));
    for registered in moved {
        insert(&Registered { address: address.map(CStr::to_owned), ..registered })?;
    }
    Ok(())
}

/// Takes the participants on a server off the list.
///
/// # Errors
/// The extension is missing here.
pub fn delete_server(serverid: Oid) -> Result<usize> {
    let table = Table::open(c"participant", pg_sys::RowExclusiveLock)?;
    Ok(table.delete(|row| row.oid(1) == serverid))
}

/// The transactions that are not delivered to a participant any more.
pub fn forgotten() -> HashSet<(Nonce, i32)> {
    let mut found = HashSet::new();
    if let Some(table) = Table::open_if_exists(c"forgotten", pg_sys::AccessShareLock) {
        table.scan(See::Committed, |row| {
            found.extend(Nonce::new(row.int8(0) as u64).map(|nonce| (nonce, row.int4(1))));
        });
    }
    found
}

/// From now on a transaction is not delivered to a participant any more.
///
/// # Errors
/// The extension is missing here.
pub fn forget(nonce: Nonce, id: i32) -> Result<()> {
    let table = Table::open(c"forgotten", pg_sys::RowExclusiveLock)?;
    table.insert(&mut [Datum::from(nonce.number() as i64), Datum::from(id)]);
    durably();
    Ok(())
}

/// Whether the extension exists in this database.
pub fn extension_exists() -> bool {
    trusted::extension().is_some()
}

/// Checks that the tables that a commit rests on are the extension's, where it exists.
///
/// # Errors
/// 55000: one is not.
pub fn check_tables() -> Result<()> {
    [c"identity", c"participant", c"decision", c"forgotten"]
        .into_iter()
        .try_for_each(|name| trusted::oid(name).map(|_| ()))
}

/// The identity of this database, if one has been drawn for it.
pub fn known_identity() -> Option<Identity> {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    let table = Table::open_if_exists(c"identity", pg_sys::AccessShareLock)?;
    let mut found = None;
    table.scan(See::Committed, |row| {
        if row.oid(0) == dbid {
            found = Identity::new(row.int8(1) as u64);
        }
    });
    found
}

/// Whether this is the identity that is stored in this database. The table of an extension that was created anew is another
/// one; in the same table the identity stays what it is.
pub fn is_stored(identity: Identity) -> bool {
    static READ: BackendLocal<Cell<Option<(Oid, Identity)>>> = BackendLocal::new(Cell::new(None));
    let Some(table) = Table::oid(c"identity") else { return false };
    if READ.get().get() == Some((table, identity)) {
        return true;
    }
    READ.get().set(known_identity().map(|stored| (table, stored)));
    READ.get().get() == Some((table, identity))
}

/// The identity of this database; drawn if it has none. A copied database (`CREATE DATABASE … TEMPLATE`)
/// carries the original's rows with the original's OID: it draws anew and forgets them, because they
/// are not its own. Labels stay: they tell of transactions that the copy has.
///
/// # Errors
/// No randomness, or no extension.
pub fn identity() -> Result<Identity> {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    if let Some(identity) = known_identity() {
        return Ok(identity);
    }
    let table = Table::open(c"identity", pg_sys::RowExclusiveLock)?;
    table.delete(|_| true);
    for copied in [c"decision", c"participant", c"forgotten"] {
        Table::open(copied, pg_sys::RowExclusiveLock)?.delete(|_| true);
    }
    // SAFETY: in a transaction; who reads on in it does not see what was deleted.
    unsafe { pg_sys::CommandCounterIncrement() };
    let identity = Identity::draw(random()?);
    table.insert(&mut [Datum::from(dbid), Datum::from(identity.number() as i64)]);
    durably();
    Ok(identity)
}

/// Random bytes that nobody can predict or repeat.
///
/// # Errors
/// XX000 when the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: as many bytes as told.
    if unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) } {
        Ok(bytes)
    } else {
        Err(Error::new(SqlState::INTERNAL_ERROR, "could not generate random values"))
    }
}
