//! The identity of this database, and the durable list of every participant that ever prepared. Both are
//! written by the resolver alone.
//!
//! The list is what a crash leaves of an aborted transaction: each participant on it may hold something
//! prepared until it has been swept.

use std::collections::HashSet;
use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::error::Result;
use crate::pg::transaction::make_durable;
use crate::protocol::fingerprint::{Fingerprint, escaped};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::store::table::{See, Table, text};
use crate::store::trusted;

/// The column of the address, which is not there before ALTER EXTENSION UPDATE.
const ADDRESS: usize = 5;

/// A participant on the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParticipantRecord {
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

impl ParticipantRecord {
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
pub fn all() -> Vec<ParticipantRecord> {
    let mut list = Vec::new();
    let Some(table) = Table::open_if_exists(c"participant", pg_sys::AccessShareLock) else {
        return list;
    };
    table.scan(See::Committed, |row| {
        list.push(ParticipantRecord {
            id: row.int4(0),
            serverid: row.oid(1),
            userid: row.oid(2),
            system_identifier: row.int8(3) as u64,
            database: escaped(&row.text(4)),
            address: (row.len() > ADDRESS && !row.is_null(ADDRESS)).then(|| row.text(ADDRESS)),
        });
    });
    list
}

/// [`all`], also while the extension is being dropped and the list has gone.
pub fn listed() -> Vec<ParticipantRecord> {
    if trusted::has(c"participant") { all() } else { Vec::new() }
}

/// Adds a participant.
///
/// # Errors
/// The extension is missing here.
pub fn insert(participant: &ParticipantRecord) -> Result<()> {
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
    make_durable();
    Ok(())
}

/// Participants have moved to another address.
///
/// # Errors
/// The extension is missing here.
pub fn move_to(ids: &HashSet<i32>, address: Option<&CStr>) -> Result<()> {
    let moved: Vec<ParticipantRecord> = all().into_iter().filter(|r| ids.contains(&r.id)).collect();
    Table::open(c"participant", pg_sys::RowExclusiveLock)?.delete(|row| ids.contains(&row.int4(0)));
    for registered in moved {
        insert(&ParticipantRecord { address: address.map(CStr::to_owned), ..registered })?;
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
