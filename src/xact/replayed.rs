//! COMMIT PREPARED and ROLLBACK PREPARED that no session has run: a subscription with `two_phase` replays them, and its
//! worker settles the local transaction without a statement that could be seen. The participants are left to the resolver.

use pgrx::pg_sys::Oid;

use crate::pg::error::Result;
use crate::pg::globals::{is_background_worker, my_database};
use crate::protocol::verdict::Decision;
use crate::shared::entries;
use crate::shared::entry::Status;
use crate::store::decisions;

/// After a transaction of a background worker: leaves what it has settled to the resolver, and wakes it.
pub fn hand_over() -> Result<()> {
    if !is_background_worker() || my_database() == Oid::INVALID {
        return Ok(());
    }
    for entry in entries::left() {
        if entry.status != Status::Prepared {
            continue;
        }
        let Some(gid) = entry.gid() else { continue };
        match decisions::of(entry.xid) {
            Decision::InProgress => {}
            Decision::Committed => entries::hand_over(&gid, Status::Committing),
            Decision::Absent => entries::hand_over(&gid, Status::Aborting),
        }
    }
    Ok(())
}
