//! This server's own tables. Under REPEATABLE READ and SERIALIZABLE they belong to what is read
//! together. Their snapshot was taken before any code of this extension could run in the
//! transaction, and cannot be taken again.

use std::cell::Cell;
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::{self, my_database, uses_one_snapshot};
use crate::pg::{snapshot, syncrep};
use crate::protocol::cut::{Snapshot, Taken};
use crate::protocol::fingerprint::escaped;
use crate::protocol::gid::Gid;
use crate::protocol::place::Place;
use crate::protocol::verdict::Decision;
use crate::shared::entry::Entry;
use crate::shared::order::{self, Here};
use crate::store::decisions;

/// The local part of what a transaction reads.
pub(super) struct Local {
    pub(super) here: Here,
    pub(super) taken: Taken,
    in_progress: Vec<u64>,
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
    let snapshot::LocalSnapshot { xmax, in_progress } = snapshot::of_transaction();
    let snapshot = Rc::new(Snapshot::new(xmax, in_progress.clone()));
    let here = Here { place: place()?, dbid: my_database(), xmax, ended: Vec::new() };
    Ok(Some(Local {
        taken: Taken { place: here.place, snapshot, is_fixed: true },
        here,
        in_progress,
    }))
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

    /// Brings up to date what is known of the snapshot, and gives those decisions a number that are
    /// visible here and have none yet: their sessions are about to. Returns one that cannot have a
    /// number: it is not to be delivered before synchronous standbys have it, and others are not to
    /// wait for it.
    pub(super) fn look(&mut self) -> Option<Gid> {
        self.here.ended =
            self.in_progress.iter().copied().filter(|xid| is_committed(*xid)).collect();
        let unnumbered = order::unnumbered(self.here.dbid);
        let visible =
            unnumbered.into_iter().filter(|(xid, _)| self.sees(*xid) && is_committed(*xid));
        let visible: Vec<Gid> = visible.map(|(_, gid)| gid).collect();
        if !visible.is_empty() && !syncrep::outlives_a_failover(syncrep::written_so_far()) {
            return visible.first().copied();
        }
        visible.iter().for_each(order::number_transaction);
        None
    }

    /// Whether something that is visible here is still to be delivered to a server.
    pub(super) fn is_behind(&self, serverid: Oid, place: Option<Place>) -> bool {
        let is_missing = |entry: &Entry| {
            entry.local_xid != 0
                && entry.dbid == self.here.dbid
                && entry.is_on(serverid, place)
                && self.sees(entry.local_xid)
        };
        let candidates: Vec<u64> = order::entries_that(is_missing);
        candidates.into_iter().any(is_committed)
    }
}

fn is_committed(xid: u64) -> bool {
    decisions::of((xid as u32).into()) == Decision::Committed
}
