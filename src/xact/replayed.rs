//! COMMIT PREPARED and ROLLBACK PREPARED that no session has run: a subscription with `two_phase`
//! replays them, and its worker settles the local transaction without a statement that could be
//! seen. The participants are left to the resolver.

use pgrx::pg_sys::Oid;

use crate::pg::debug::debug;
use crate::pg::error::Result;
use crate::pg::globals::{is_background_worker, my_database};
use crate::protocol::participant::Outcome;
use crate::protocol::verdict::Decision;
use crate::shared::entry::Status;
use crate::shared::{entries, workers};
use crate::store::decisions;

/// After a transaction of a background worker: leaves what it has settled to the resolver, and
/// wakes it.
pub fn hand_over() -> Result<()> {
    let dbid = my_database();
    if !is_background_worker() || dbid == Oid::INVALID {
        return Ok(());
    }
    for entry in entries::left() {
        if entry.status != Status::Prepared {
            continue;
        }
        let Some(gid) = entry.gid() else { continue };
        let outcome = match decisions::of(entry.xid) {
            Decision::InProgress => continue,
            Decision::Committed => Outcome::Commit,
            Decision::Absent => Outcome::Abort,
        };
        entries::note_decided(&gid, outcome);
        debug(|| format!("'{gid}': replayed {outcome:?}; handed over to the resolver"));
        workers::wake_resolver(dbid);
    }
    Ok(())
}
