//! The identity of this database: the number in its gids that tells them from those of any other coordinator. Drawn and
//! written by the resolver alone.

use std::cell::Cell;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::my_database;
use crate::pg::random::random;
use crate::pg::transaction::make_durable;
use crate::protocol::gid::Identity;
use crate::store::table::{See, Table};

/// The identity of this database, if one has been drawn for it.
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

/// Whether this is the identity that is stored in this database. The table of an extension that was created anew is another
/// one; in the same table the identity stays what it is.
pub fn is_stored(identity: Identity) -> bool {
    static READ: BackendLocal<Cell<Option<(Oid, Identity)>>> = BackendLocal::new(Cell::new(None));
    let Some(table) = Table::oid(c"identity") else { return false };
    if READ.get().get() == Some((table, identity)) {
        return true;
    }
    READ.get().set(known().map(|stored| (table, stored)));
    READ.get().get() == Some((table, identity))
}

/// The identity of this database; drawn if it has none. A copied database (`CREATE DATABASE … TEMPLATE`)
/// carries the original's rows with the original's OID: it draws anew and forgets them, because they
/// are not its own. Labels stay: they tell of transactions that the copy has.
///
/// # Errors
/// No randomness, or no extension.
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
    // SAFETY: in a transaction; who reads on in it does not see what was deleted.
    unsafe { pg_sys::CommandCounterIncrement() };
    let identity = Identity::draw(random()?);
    table.insert(&mut [Datum::from(dbid), Datum::from(identity.number() as i64)]);
    make_durable();
    Ok(identity)
}
