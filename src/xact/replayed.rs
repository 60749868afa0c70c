//! COMMIT PREPARED and ROLLBACK PREPARED that no session has run: a subscription with `two_phase`
//! replays them, and its worker settles the local transaction without a statement that could be
//! seen. The participants are left to the resolver.

use pgrx::pg_sys::Oid;

use crate::pg::debug::debug;
use crate::pg::error::Result;
use crate::pg::globals::{is_background_worker, my_database};
use crate::protocol::participant::Outcome;
use crate::shared::{left, resolvers};

/// After a transaction of a background worker: leaves what it has settled to the resolver, and
/// wakes it.
pub fn hand_over() -> Result<()> {
    let dbid = my_database();
    if !is_background_worker() || dbid == Oid::INVALID {
        return Ok(());
    }
    for (gid, outcome) in left::note_ended() {
        let command = match outcome {
            Outcome::Commit => "COMMIT PREPARED",
            Outcome::Abort => "ROLLBACK PREPARED",
        };
        debug(|| format!("'{gid}': replayed {command}; handed over to the resolver"));
        resolvers::wake(dbid);
    }
    Ok(())
}
