//! What is prepared here under the application's 'gxid': makes entries for what was prepared before
//! the start of this server.
//!
//! Reading the decision table takes a while, and meanwhile transactions are prepared and end. So
//! the state of the transaction itself is read again when it matters.

use pgrx::pg_sys;

use crate::protocol::gid::Gid;
use crate::protocol::verdict::Decision;
use crate::shared::entries::{self, Reserved};
use crate::store::decisions::{self, Row};
use crate::store::participant_list::ParticipantRecord;

/// Makes an entry for a participant of a transaction that is prepared here, if there is none. A
/// transaction that still runs makes its entries itself. `participants`: how many of them get one,
/// if all do; else 0.
pub(super) fn adopt(
    gid: &Gid,
    participant: &ParticipantRecord,
    remote_xid: u64,
    row: &Row,
    participants: usize,
) {
    // SAFETY: searches the processes of this server; a prepared transaction has none.
    let runs = unsafe { pg_sys::BackendXidGetPid(row.xid) } != 0;
    if !runs && decisions::of(row.xid) == Decision::InProgress {
        let place = participant.place();
        let reserved =
            Reserved { gid: *gid, participant: participant.id, remote_xid, place, remote_pid: 0 };
        entries::adopt(&reserved, row.xid, participants);
    }
}
