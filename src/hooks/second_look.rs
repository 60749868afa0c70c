//! Before something is refused because of what may be in doubt: the resolver looks first, and what it settles is no
//! obstacle any more.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use crate::pg::error::{Result, SqlState, check_for_interrupts};
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::shared::entry::{Entry, Status};
use crate::shared::{entries, requests, resolvers, stats};

/// How long the resolver may take to look, here and in another database.
const LOOK: Duration = Duration::from_secs(2);

/// What may be left of a database, or of a server in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// The resolver's work, or not known until it has looked.
    Perhaps,
    /// It is a session's or the application's.
    Certainly,
}

/// Whether anything is left, after a look.
///
/// # Errors
/// A cancel.
pub fn finds(dbid: Oid, own: bool, concerns: impl Fn(Oid, Option<Oid>) -> bool) -> Result<bool> {
    let look = || {
        let entries: Vec<Entry> = entries::all()
            .into_iter()
            .filter(|e| e.dbid == dbid && concerns(e.serverid, Some(e.userid)))
            .collect();
        if entries.iter().any(|e| e.owner != 0 || e.status == Status::Prepared) {
            return Left::Certainly;
        }
        let unswept = || stats::may_be_unsettled(dbid, |serverid| concerns(serverid, None));
        if !entries.is_empty() || unswept() { Left::Perhaps } else { Left::Nothing }
    };
    match look() {
        Left::Nothing => return Ok(false),
        Left::Certainly => return Ok(true),
        Left::Perhaps => {}
    }
    if own && resolvers::is_up() {
        match requests::resolve_within(LOOK) {
            Err(error) if error.sqlstate() == SqlState::QUERY_CANCELED => return Err(error),
            // It is at another participant still; what it has published so far tells.
            _ => {}
        }
        return Ok(look() != Left::Nothing);
    }
    // Another database's cannot be asked; it looks at once after whatever calls for it.
    let deadline = Instant::now() + LOOK;
    while look() == Left::Perhaps && !own && Instant::now() < deadline {
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(20), WaitEvent::Resolver);
    }
    Ok(look() != Left::Nothing)
}
