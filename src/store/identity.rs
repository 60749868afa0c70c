//! The identity of this database: the number in its gids that tells them from those of any other
//! coordinator. Only the resolver draws and writes it.

use std::cell::Cell;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::my_database;
use crate::pg::random::random;
use crate::pg::transaction::make_durable;
use crate::protocol::gid::Identity;
use crate::store::table::{See, Table};

/// The identity of this database, if it has one.
pub fn known() -> Option<Identity> {
    let dbid = my_database();
    let table = Table::open_if_exists(c"identity", pg_sys::AccessShareLock)?;
    let mut found = None;
    table.scan(See::Committed, |row| {
        if row.oid(0) == dbid {
            found = Identity::new(row.int8(1) as u64);
        }
    });
    found
}

/// Whether this identity is stored in this database. The answer is cached as long as the table
/// keeps its OID: the identity changes only when the extension is dropped and created again.
pub fn is_stored(identity: Identity) -> bool {
    static READ: BackendLocal<Cell<Option<(Oid, Identity)>>> = BackendLocal::new(Cell::new(None));
    let Some(table) = Table::oid(c"identity") else { return false };
    if READ.get().get() == Some((table, identity)) {
        return true;
    }
    READ.get().set(known().map(|stored| (table, stored)));
    READ.get().get() == Some((table, identity))
}

/// The identity of this database; draws one if it has none. A copied database (`CREATE DATABASE …
/// TEMPLATE`) has the original's rows with the original's OID: it draws its own identity and
/// deletes those rows. Labels stay, because the copy contains the transactions that they name.
///
/// # Errors
/// XX000 when the system gives no random bytes; 55000 if the extension is missing here.
pub fn known_or_drawn() -> Result<Identity> {
    let dbid = my_database();
    if let Some(identity) = known() {
        return Ok(identity);
    }
    let table = Table::open(c"identity", pg_sys::RowExclusiveLock)?;
    table.delete(|_| true);
    for copied in [c"decision", c"participant", c"forgotten"] {
        Table::open(copied, pg_sys::RowExclusiveLock)?.delete(|_| true);
    }
    // SAFETY: in a transaction. From here on it does not see the deleted rows.
    unsafe { pg_sys::CommandCounterIncrement() };
    let identity = Identity::draw(random()?);
    table.insert(&mut [Datum::from(dbid), Datum::from(identity.number() as i64)]);
    make_durable();
    Ok(identity)
}
