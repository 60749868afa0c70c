//! What is prepared here under the application's 'gxid': makes entries for what was prepared before
//! the start of this server, and notices what has ended without the resolver being told.
//!
//! Reading the decision table takes a while, and meanwhile transactions are prepared and end. So
//! the state of the transaction itself is read again when it matters.

use pgrx::pg_sys;

use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;
use crate::protocol::verdict::Decision;
use crate::shared::entries::{self, Reserved};
use crate::shared::entry::Status;
use crate::store::decisions::{self, Row};

/// Makes an entry for a participant of a transaction that is prepared here, if there is none. A
/// transaction that still runs makes its entries itself.
pub(super) fn adopt(gid: &Gid, (participant, remote_xid): (i32, u64), row: &Row) {
    // SAFETY: searches the processes of this server; a prepared transaction has none.
    let runs = unsafe { pg_sys::BackendXidGetPid(row.xid) } != 0;
    if !runs && decisions::of(row.xid) == Decision::InProgress {
        let reserved = Reserved { gid: *gid, participant, remote_xid, remote_pid: 0 };
        entries::adopt(&reserved, row.xid, row.participants.len());
    }
}

/// Notices what was prepared here and is not any more: its outcome has to be delivered.
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
