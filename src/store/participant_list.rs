//! The durable list of every participant that ever prepared. Only the resolver writes it.
//!
//! After a crash, this list is the only record of aborted transactions: each participant on it may
//! hold something prepared until it has been swept.

use std::collections::HashSet;
use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::error::Result;
use crate::pg::transaction::make_durable;
use crate::protocol::fingerprint::{Fingerprint, of_stored};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::place::Place;
use crate::store::table::{See, Table, text};
use crate::store::trusted;

/// The column of the address, which is missing until ALTER EXTENSION UPDATE has run.
const ADDRESS: usize = 5;

/// A participant on the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParticipantRecord {
    /// Its number, by which decision rows refer to it.
    pub id: i32,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user whose mapping was used.
    pub userid: Oid,
    /// Which server that was, as in a [`Fingerprint`].
    pub system_identifier: u64,
    /// The database there, as in a [`Fingerprint`].
    pub database: CString,
    /// Its address by the options of the foreign server; `None` if it was recorded before addresses
    /// were.
    pub address: Option<CString>,
}

impl ParticipantRecord {
    /// The gid of a transaction on it.
    pub fn gid(&self, identity: Identity, nonce: Nonce) -> Gid {
        let (serverid, userid) = (self.serverid.to_u32(), self.userid.to_u32());
        Gid { identity, nonce, serverid, userid }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        let cluster = (self.system_identifier, self.database.to_bytes());
        Place::new(self.serverid.to_u32(), &cluster, None)
    }

    /// Whether a server at that address may be the recorded one. Only the address tells two copies
    /// of one server apart: both have the same fingerprint.
    pub fn is_where(&self, address: &CStr) -> bool {
        self.address.as_deref().is_none_or(|known| known == address)
    }

    /// Whether a server with that fingerprint may be the recorded one.
    pub fn is_at(&self, fingerprint: &Fingerprint) -> bool {
        self.system_identifier == fingerprint.system_identifier
            && self.database == fingerprint.database
    }
}

/// The list; empty if the extension is missing.
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
            database: of_stored(row.text(4)),
            address: (row.len() > ADDRESS && !row.is_null(ADDRESS)).then(|| row.text(ADDRESS)),
        });
    });
    list
}

/// [`all`]; also works while the extension is being dropped and the table has gone already.
pub fn listed() -> Vec<ParticipantRecord> {
    if trusted::has(c"participant") { all() } else { Vec::new() }
}

/// Adds a participant.
///
/// # Errors
/// 55000 if the extension is missing here.
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

/// Records that participants have moved to another address.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn move_to(ids: &HashSet<i32>, address: Option<&CStr>) -> Result<()> {
    let moved: Vec<ParticipantRecord> = all().into_iter().filter(|r| ids.contains(&r.id)).collect();
    Table::open(c"participant", pg_sys::RowExclusiveLock)?.delete(|row| ids.contains(&row.int4(0)));
    for registered in moved {
        insert(&ParticipantRecord { address: address.map(CStr::to_owned), ..registered })?;
    }
    Ok(())
}

/// Takes the participants on a server off the list; returns how many.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn delete_server(serverid: Oid) -> Result<usize> {
    let table = Table::open(c"participant", pg_sys::RowExclusiveLock)?;
    Ok(table.delete(|row| row.oid(1) == serverid))
}
