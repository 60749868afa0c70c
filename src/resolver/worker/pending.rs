//! What is prepared here under the application's 'gxid': entries for what was so before this server's start, and what has
//! ended without anybody's telling.
//!
//! Looking through the decision table takes a while, in which transactions are prepared and end. So what a row said is
//! asked again of the transaction itself, when it matters.

use pgrx::pg_sys;

use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;
use crate::protocol::verdict::Decision;
use crate::shared::entries::{self, Reserved};
use crate::shared::entry::Status;
use crate::store::decisions::{self, Row};

/// Gives a participant of a transaction that is prepared here an entry, if it has none. One that runs has one, or will
/// have.
pub(super) fn adopt(gid: &Gid, (participant, remote_xid): (i32, u64), row: &Row) {
    // SAFETY: looks through the processes of this server; one that is prepared has none.
    let runs = unsafe { pg_sys::BackendXidGetPid(row.xid) } != 0;
    if !runs && decisions::of(row.xid) == Decision::InProgress {
        let reserved = Reserved { gid: *gid, participant, remote_xid, remote_pid: 0 };
        entries::adopt(&reserved, row.xid, row.participants.len());
    }
}

/// What was prepared here and is not any more has been settled by somebody who told nobody: it has to be delivered.
pub(super) fn note_ended() {
    for entry in entries::left() {
        let Some(gid) = entry.gid().filter(|_| entry.status == Status::Prepared) else { continue };
        match decisions::of(entry.xid) {
            Decision::InProgress => {}
            Decision::Committed => entries::note_decided(&gid, Outcome::Commit),
            Decision::Absent => entries::note_decided(&gid, Outcome::Abort),
        }
    }
}
