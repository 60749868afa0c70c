//! Before a participant prepares: checks that the server, user mapping and role that the resolver
//! will use to reach it are committed, and are those that this transaction's connection was made
//! from. Otherwise what is in doubt there could never be settled, or would be looked for elsewhere.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::my_database;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, versions};
use crate::remote::basis::{Seen, View};
use crate::remote::options::Mapping;
use crate::xact::branch::Member;
use crate::xact::participants::Participant;

/// How often a mapping's lock is tried.
const LOOK: Duration = Duration::from_millis(10);

/// Checks the participants that are about to prepare, before anything is written down about them.
///
/// # Errors
/// 55000 if this transaction has changed what the resolver needs, 40001 if another one has; 2F003
/// if the role may not connect any more.
pub fn check(writers: &[&Participant]) -> Result<()> {
    // Makes visible what the last command has changed, and what others have committed.
    // SAFETY: inside a transaction, no parallel work under way.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::AcceptInvalidationMessages();
    }
    writers.iter().try_for_each(|p| check_one(p))
}

/// Checks them again once their entries are in shared memory. A transaction that drops a mapping
/// from now on finds the entry; one that has begun to drop it before is waited for.
///
/// # Errors
/// Those of [`check`], and 55P03 if a transaction that drops the mapping does not end in time.
pub fn check_written_down(writers: &[&Participant], deadline: Instant) -> Result<()> {
    for p in writers {
        let lock = MappingLock::take(p, deadline)?;
        check_one(p)?;
        lock.release();
    }
    Ok(())
}

fn check_one(p: &Participant) -> Result<()> {
    if is_untouched(p) {
        return Ok(());
    }
    let others = Seen::read(p.userid, p.serverid, View::Others)?;
    if Seen::read(p.userid, p.serverid, View::Own)? != others {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("cannot commit atomically on server \"{}\"", p.server()),
        )
        .detail("The transaction has made, changed or dropped the server, its user mapping, its wrapper's handler or the role. The resolver sees committed rows only: it could not settle what is in doubt there.")
        .hint("Do that in a transaction of its own."));
    }
    if others.map(|seen| seen.basis).as_ref() != Some(&p.connection.basis) {
        return Err(Error::new(
            SqlState::new(b"40001"),
            format!("server \"{}\" was changed while the transaction used it", p.server()),
        )
        .detail("Its options, those of the user mapping or the wrapper's handler are not those that the connection was made with.")
        .hint("The transaction was rolled back on all servers; it can be tried again."));
    }
    // Since then the role may have been dropped, or have lost SUPERUSER.
    p.connection.check_permitted(&Mapping::read(p.userid, p.serverid)?)
}

/// The last transaction that has dropped a user mapping.
static DROPPED: BackendLocal<Cell<pg_sys::LocalTransactionId>> = BackendLocal::new(Cell::new(0));

/// This transaction drops a user mapping. The PUBLIC mapping may take its place, and its row does
/// not show that.
pub fn note_dropped_mapping() {
    DROPPED.get().set(versions::local_transaction());
}

/// Whether nobody has changed any of the rows since the connection was made, told by the caches
/// alone.
fn is_untouched(p: &Participant) -> bool {
    use pg_sys::SysCacheIdentifier as Cache;
    let mapping = p.connection.basis.mapping;
    let may_use =
        |found: &Mapping| found.oid == mapping && p.connection.check_permitted(found).is_ok();
    if DROPPED.get().get() == versions::local_transaction()
        || !p.connection.is_valid()
        || !Mapping::find(p.userid, p.serverid).is_some_and(|found| may_use(&found))
    {
        return false;
    }
    // SAFETY: the server exists, as its mapping does.
    let wrapper = unsafe { (*pg_sys::GetForeignServer(p.serverid)).fdwid };
    ![
        (Cache::FOREIGNSERVEROID, p.serverid),
        (Cache::USERMAPPINGOID, mapping),
        (Cache::FOREIGNDATAWRAPPEROID, wrapper),
        (Cache::AUTHOID, p.userid),
    ]
    .iter()
    .any(|(cache, oid)| is_of_this_transaction(*cache, *oid))
}

/// Whether this transaction has written the row.
fn is_of_this_transaction(cache: pg_sys::SysCacheIdentifier::Type, oid: Oid) -> bool {
    // SAFETY: a catalog cache with one OID key, which keeps the rows' headers; the row is read
    // before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache(cache as i32, oid.into(), 0.into(), 0.into(), 0.into());
        if tuple.is_null() {
            return false;
        }
        let header = &*(*tuple).t_data;
        let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
        let ours = header.t_infomask & frozen != frozen
            && pg_sys::TransactionIdIsCurrentTransactionId(header.t_choice.t_heap.t_xmin);
        pg_sys::ReleaseSysCache(tuple);
        ours
    }
}

/// A lock on a user mapping. It conflicts with that of DROP USER MAPPING, and of DROP SERVER …
/// CASCADE and DROP OWNED, which drop the mapping too.
struct MappingLock(pg_sys::LOCKTAG);

impl MappingLock {
    fn take(p: &Participant, deadline: Instant) -> Result<Self> {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: my_database().to_u32(),
            locktag_field2: pg_sys::UserMappingRelationId.to_u32(),
            locktag_field3: p.connection.basis.mapping.to_u32(),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        // Not waited for in the lock's queue, because the wait must end at the deadline of the
        // whole phase.
        loop {
            // SAFETY: the tag of an object of this database, as `LockDatabaseObject` makes it.
            let taken = unsafe {
                let taken = pg_sys::LockAcquire(&tag, pg_sys::AccessShareLock as i32, false, true);
                pg_sys::AcceptInvalidationMessages();
                taken
            };
            if taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
                return Ok(Self(tag));
            }
            check_for_interrupts()?;
            if Instant::now() >= deadline {
                return Err(Error::new(
                    SqlState::new(b"55P03"),
                    format!("could not lock the user mapping for server \"{}\"", p.server()),
                )
                .detail(
                    "Another transaction that has not ended drops the server or the user mapping.",
                )
                .hint("The limit is \"pg_fdw_xacts.prepare_timeout\"."));
            }
            latch::wait(LOOK, WaitEvent::Prepare);
        }
    }

    /// If an error comes before this, the abort releases it.
    fn release(self) {
        // SAFETY: taken by `take`.
        unsafe { pg_sys::LockRelease(&self.0, pg_sys::AccessShareLock as i32, false) };
    }
}
