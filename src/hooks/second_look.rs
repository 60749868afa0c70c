//! A second look: before a command is refused because of what may be in doubt, the resolver looks,
//! and what it settles is no obstacle any more.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use crate::pg::error::{Result, SqlState, check_for_interrupts};
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::shared::entry::{Entry, Status};
use crate::shared::{entries, requests, stats, workers};

/// How long the resolver may take to look, here and in another database.
const LOOK: Duration = Duration::from_secs(2);

/// What stands in the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    None,
    /// The resolver may remove it, or has to look whether there is any.
    Possible,
    /// Something that a session or the application has to settle.
    Certain,
}

/// Whether anything that `concerns` the command is in doubt, after a look of the resolver.
///
/// # Errors
/// A cancel.
pub fn finds(dbid: Oid, own: bool, concerns: impl Fn(Oid, Option<Oid>) -> bool) -> Result<bool> {
    let look = || {
        let entries: Vec<Entry> = entries::all()
            .into_iter()
            .filter(|e| e.dbid == dbid && concerns(e.serverid, Some(e.userid)))
            .collect();
        if entries.iter().any(|e| !e.is_left() || e.status == Status::Prepared) {
            return Obstacle::Certain;
        }
        let unswept = || stats::may_be_unswept(dbid, |serverid| concerns(serverid, None));
        if !entries.is_empty() || unswept() { Obstacle::Possible } else { Obstacle::None }
    };
    match look() {
        Obstacle::None => return Ok(false),
        Obstacle::Certain => return Ok(true),
        Obstacle::Possible => {}
    }
    if own && workers::resolver_is_up() {
        match requests::resolve_within(LOOK) {
            Err(error) if error.sqlstate() == SqlState::QUERY_CANCELED => return Err(error),
            // On a timeout it is still at another participant: what it has found so far counts.
            _ => {}
        }
        return Ok(look() != Obstacle::None);
    }
    // The resolver of another database cannot be asked; it looks as soon as something is left to
    // it.
    let deadline = Instant::now() + LOOK;
    while look() == Obstacle::Possible && !own && Instant::now() < deadline {
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(20), WaitEvent::Resolver);
    }
    Ok(look() != Obstacle::None)
}
