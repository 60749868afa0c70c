//! This server's own tables. Under REPEATABLE READ and SERIALIZABLE they belong to what is read
//! together. Their snapshot was taken before any code of this extension could run in the
//! transaction, and cannot be taken again.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::{self, my_database, uses_one_snapshot};
use crate::pg::snapshot;
use crate::protocol::cut::{Snapshot, Taken};
use crate::protocol::fingerprint::escaped;
use crate::protocol::place::Place;
use crate::protocol::verdict::Decision;
use crate::shared::entry::Entry;
use crate::shared::order::{self, Here};
use crate::store::decisions;

/// The local part of what a transaction reads.
pub(super) struct Local {
    pub(super) here: Here,
    pub(super) taken: Taken,
}

/// The local part of this transaction; `None` under READ COMMITTED, where each statement has a
/// snapshot of its own.
///
/// # Errors
/// Those of a look-up in the catalog.
pub(super) fn local() -> Result<Option<Local>> {
    if !uses_one_snapshot() {
        return Ok(None);
    }
    let snapshot::LocalSnapshot { xmin, xmax, in_progress } = snapshot::of_transaction();
    let snapshot = Rc::new(Snapshot::new(xmax, in_progress));
    let here = Here { place: place()?, dbid: my_database(), xmin };
    Ok(Some(Local { taken: Taken { place: here.place, snapshot, is_fixed: true }, here }))
}

/// Where this database is, as a foreign server that leads to it would find.
fn place() -> Result<Place> {
    static PLACE: BackendLocal<Cell<Option<Place>>> = BackendLocal::new(Cell::new(None));
    if let Some(place) = PLACE.get().get() {
        return Ok(place);
    }
    let database = escaped(&globals::database_name()?);
    let cluster = (globals::system_identifier(), database.to_bytes());
    let place = Place::new(0, &cluster, Some(globals::server_start_since_1970()));
    PLACE.get().set(Some(place));
    Ok(place)
}

impl Local {
    fn sees(&self, xid: u64) -> bool {
        self.taken.snapshot.sees(xid)
    }

    /// Gives those decisions a number that are visible here and have none yet: their sessions are
    /// about to.
    pub(super) fn number_what_is_visible(&self) {
        for (xid, gid) in order::unnumbered(self.here.dbid) {
            if self.sees(xid) && is_committed(xid) {
                order::number_transaction(&gid);
            }
        }
    }

    /// Whether something that is visible here is still to be delivered to a server.
    pub(super) fn is_behind(&self, serverid: Oid, place: Option<Place>) -> bool {
        let is_missing = |entry: &Entry| {
            let is_there =
                entry.serverid == serverid || place.is_some_and(|p| p.is_same(&entry.place));
            entry.local_xid != 0
                && entry.dbid == self.here.dbid
                && is_there
                && self.sees(entry.local_xid)
        };
        let candidates: Vec<u64> = order::entries_that(is_missing);
        candidates.into_iter().any(is_committed)
    }
}

fn is_committed(xid: u64) -> bool {
    decisions::of((xid as u32).into()) == Decision::Committed
}
