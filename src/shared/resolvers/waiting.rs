//! A backend that waits for its database's resolver: until it is up, or has answered.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use super::{State, doubt, has_been_looked_at, read_slot, wake};
use crate::guc::answer_timeout;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{in_recovery, is_single_user, my_database};
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Identity;
use crate::store::identity;

/// How often it checks for that.
const POLL: Duration = Duration::from_millis(20);

/// The identity of this database; waits for its resolver, which must be up.
///
/// # Errors
/// 55000 when it does not come up; 25006 on a standby.
pub fn identity() -> Result<Identity> {
    can_have_resolver()?;
    let mut tried = false;
    wait_for("the resolver of this database is not running", answer_timeout(), || {
        let slot = read_slot(my_database());
        match slot.map_or(State::Free, |slot| slot.state) {
            State::Ready => {
                // Only what is stored here and now outlives a crash.
                let identity = slot.and_then(|slot| Identity::new(slot.identity));
                let stored = identity.filter(|i| identity::is_stored(*i));
                if stored.is_none() {
                    doubt();
                }
                Ok(stored)
            }
            State::Absent if tried => Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "extension pg_fdw_xacts is not committed in this database yet",
            )
            .hint(
                "Commit CREATE EXTENSION pg_fdw_xacts before the first distributed transaction.",
            )),
            State::Absent | State::Free => {
                tried = true;
                wake(my_database());
                Ok(None)
            }
            State::Wanted | State::Starting | State::Paused => Ok(None),
        }
    })
}

/// Fails where there never is a resolver, so that nobody waits for one.
fn can_have_resolver() -> Result<()> {
    let (sqlstate, place) = match (in_recovery(), is_single_user()) {
        (true, _) => (SqlState::READ_ONLY_SQL_TRANSACTION, "on a standby"),
        (_, true) => (SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "in single-user mode"),
        (false, false) => return Ok(()),
    };
    Err(Error::new(sqlstate, format!("there is no resolver {place}")).detail(
        "It takes one to commit on several servers at once, and to settle what is in doubt.",
    ))
}

/// Has a resolver look at a database, and waits for that until the deadline.
///
/// # Errors
/// A cancel.
pub fn await_look_at(dbid: Oid) -> Result<()> {
    let deadline = Instant::now() + answer_timeout();
    wake(dbid);
    while !has_been_looked_at(dbid) && Instant::now() < deadline {
        check_for_interrupts()?;
        latch::wait(POLL, WaitEvent::Resolver);
    }
    Ok(())
}

/// Waits until `look` finds something, and fails with the message `failure` after `limit`.
pub(in crate::shared) fn wait_for<T>(
    failure: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        check_for_interrupts()?;
        if Instant::now() >= deadline {
            return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, failure.as_bytes())
                .hint("See the server log; \"max_worker_processes\" must leave room for one worker per database that has the extension, and one launcher."));
        }
        latch::wait(POLL, WaitEvent::Resolver);
    }
}
